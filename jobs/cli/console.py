"""Start and end of every job: flags to a dataclass, errors to one line and an exit code."""

from __future__ import annotations

import contextlib
import io
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeVar

import tyro

from engine.errors import ConfigurationError, MaskmillError, OutOfBoundsError, UsageError
from jobs.cli.messages import name_flag, tell_panel

Arguments = TypeVar("Arguments")
DONE, FAILED, WRONG_USE, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143


class Terminated(KeyboardInterrupt):
    """SIGTERM asked this process to end, as a scheduler does at the end of a job's time."""


def run_job(
    arguments_type: type[Arguments],
    job: Callable[[Arguments], None],
    args: Sequence[str] | None = None,
    program: str | None = None,
) -> NoReturn:
    """Parse the command line, run the job and exit: 0 done, 1 failed, 2 wrong use, 130 interrupted, 143
    terminated.

    `args` and `program`, its name in the help, are those of this process if None.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Image names may hold characters that the terminal's or log's encoding lacks.
            stream.reconfigure(errors="backslashreplace")
    try:
        job(parse_arguments(arguments_type, list(sys.argv[1:] if args is None else args), program))
    except UsageError as error:
        exit_with(WRONG_USE, error)
    except MaskmillError as error:
        exit_with(FAILED, error)
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


def parse_arguments(
    arguments_type: type[Arguments], args: list[str], program: str | None = None
) -> Arguments:
    """The dataclass that the flags describe. Raises UsageError, or SystemExit(0) after --help."""
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages):
            return tyro.cli(
                arguments_type,
                prog=program,
                args=args,
                config=(tyro.conf.FlagCreatePairsOff, tyro.conf.HelptextFromCommentsOff),
            )
    except OutOfBoundsError as error:
        raise ConfigurationError(name_flag(error, arguments_type, args)) from error
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UsageError(tell_panel(messages.getvalue(), arguments_type, args)) from None


def exit_with(code: int, error: MaskmillError) -> NoReturn:
    """Print the error in one line and exit."""
    # Ray's error of a worker holds a traceback as text; the error that the worker raised is its cause.
    original = getattr(error, "cause", None) or error
    print(f"error: {' '.join(str(original).split())}", file=sys.stderr)
    sys.exit(code)
