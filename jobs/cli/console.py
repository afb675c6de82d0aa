"""What every job shares at its ends: flags to a dataclass, errors to one line and an exit code."""

from __future__ import annotations

import contextlib
import io
import re
import signal
import sys
from collections.abc import Callable
from typing import NoReturn, TypeVar

import tyro

from engine.errors import MaskmillError, UsageError

Arguments = TypeVar("Arguments")
DONE, FAILED, WRONG_USE, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143


class Terminated(KeyboardInterrupt):
    """Somebody has asked this process to end, as the end of a job's time does."""


def run_job(arguments_type: type[Arguments], job: Callable[[Arguments], None]) -> NoReturn:
    """Parse the command line, run the job and exit: 0 done, 1 failed, 2 wrong use, 130 interrupted, 143
    terminated."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Names of images hold what a terminal or a log may have no letters for.
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
    """Let SIGTERM end the job as Ctrl-C does. Once Ray has started: it would answer with a dump of stacks."""

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
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UsageError(_one_line(messages.getvalue())) from None


def _one_line(panel: str) -> str:
    """What a panel of the command line parser says, without its frame and its hints.

    A panel is a title, the message, hints and where the help is, with rules between them. Where the terminal
    cannot show frames, the title has a rule below it; elsewhere it is part of the frame.
    """
    lines = [line.strip("│ ") for line in panel.splitlines() if not line.startswith(("╭", "╰"))]
    text = " ".join("\n" if re.fullmatch("[─-]{5,}", line) else line for line in lines)
    paragraphs = [" ".join(paragraph.split()) for paragraph in text.split("\n")]
    message, *hints = paragraphs if "╭" in panel else paragraphs[1:]
    alike = dict.fromkeys(re.findall(r"(?<!\S)--[\w.-]+", " ".join(hints[:-1])))
    if alike and message.startswith("Unrecognized"):
        message += f"; did you mean {' or '.join(alike)}?"
    return f"{message} (--help lists all flags)"


def _exit_with(code: int, error: MaskmillError) -> NoReturn:
    # An error out of a worker carries its traceback as text; what it was raised as is its cause.
    original = getattr(error, "cause", None) or error
    print(f"error: {' '.join(str(original).split())}", file=sys.stderr)
    sys.exit(code)
