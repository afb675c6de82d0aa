"""Start and end of every job: flags to a dataclass, errors to one line and an exit code."""

from __future__ import annotations

import contextlib
import io
import signal
import sys
from collections.abc import Callable
from typing import NoReturn, TypeVar

import tyro

from engine.errors import ConfigurationError, MaskmillError, OutOfBoundsError, UsageError
from jobs.cli.messages import name_flag, tell_panel

Arguments = TypeVar("Arguments")
DONE, FAILED, WRONG_USE, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143


class Terminated(KeyboardInterrupt):
    """SIGTERM asked this process to end, as a scheduler does at the end of a job's time."""


def run_job(arguments_type: type[Arguments], job: Callable[[Arguments], None]) -> NoReturn:
    """Parse the command line, run the job and exit: 0 done, 1 failed, 2 wrong use, 130 interrupted, 143
    terminated."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Image names may hold characters that the terminal's or log's encoding lacks.
            stream.reconfigure(errors="backslashreplace")
    try:
        job(parse_arguments(arguments_type, sys.argv[1:]))
    except UsageError as error:
        _exit_with(WRONG_USE, error)
    except MaskmillError as error:
        _exit_with(FAILED, error)
    except KeyboardInterrupt as error:
        print("interrupted; the same command goes on (trainings: with --resume)", file=sys.stderr)
        sys.exit(TERMINATED if isinstance(error, Terminated) else INTERRUPTED)
    sys.exit(DONE)


def exit_on_sigterm() -> None:
    """Let SIGTERM end the job as Ctrl-C does.

    To be called after Ray has started, since Ray's own handler would print a dump of all stacks.
    """

    def end(*_: object) -> NoReturn:
        raise Terminated

    signal.signal(signal.SIGTERM, end)


def parse_arguments(arguments_type: type[Arguments], args: list[str]) -> Arguments:
    """The dataclass that the flags describe. Raises UsageError, or SystemExit(0) after --help."""
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages):
            return tyro.cli(
                arguments_type,
                args=args,
                config=(tyro.conf.FlagCreatePairsOff, tyro.conf.HelptextFromCommentsOff),
            )
    except OutOfBoundsError as error:
        raise ConfigurationError(name_flag(error, arguments_type, args)) from error
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UsageError(tell_panel(messages.getvalue(), arguments_type, args)) from None


def _exit_with(code: int, error: MaskmillError) -> NoReturn:
    # Ray's error of a worker holds a traceback as text; the error that the worker raised is its cause.
    original = getattr(error, "cause", None) or error
    print(f"error: {' '.join(str(original).split())}", file=sys.stderr)
    sys.exit(code)
