"""The command `maskmill`: subcommands that run the jobs of this folder."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import NoReturn

from engine import __version__
from engine.errors import UsageError


@dataclass(frozen=True)
class Subcommand:
    """A job as a subcommand.

    `module` holds `main` and the dataclass `arguments` of its flags. Words before the first flag are values
    of the flag `first`. --help shows the flags `common`, or those of no nested settings if there are none.
    """

    module: str
    arguments: str
    first: str
    summary: str
    common: tuple[str, ...] = ()


_LABEL_FLAGS = (
    "--corpus", "--store", "--kind", "--annotations", "--method", "--encoder.name", "--encoder.weights",
    "--tile", "--limit", "--preview", "--extend", "--overwrite", "--device", "--address",
)  # fmt: skip
SUBCOMMANDS = {
    "label": Subcommand(
        "jobs.label",
        "CorpusArguments",
        "--corpus",
        "label the images of a folder, a bucket or a data set",
        _LABEL_FLAGS,
    ),
    "report": Subcommand("jobs.report", "ReportArguments", "--store", "summarise labels on one HTML page"),
    "evaluate": Subcommand(
        "jobs.evaluate", "EvaluateArguments", "--store", "measure labels against ground truth"
    ),
    "export": Subcommand(
        "jobs.export", "ExportArguments", "--store", "write labels as COCO, YOLO, WebDataset or Parquet"
    ),
    "train": Subcommand("jobs.train_solo", "TrainArguments", "--store", "train a segmenter on labels"),
    "self-train": Subcommand(
        "jobs.self_train", "SelfTrainArguments", "--store", "train, label again and repeat"
    ),
    "pretrain": Subcommand(
        "jobs.pretrain_encoder", "PretrainingArguments", "--corpus", "train an encoder on your images"
    ),
    "choose-bias": Subcommand(
        "jobs.choose_bias", "BiasArguments", "--corpus", "choose MultiCut's biases without ground truth"
    ),
    "sweep": Subcommand("jobs.sweep", "SweepArguments", "--corpus", "compare settings on annotated images"),
    "evaluate-encoder": Subcommand(
        "jobs.evaluate_encoder", "EvaluateEncoderArguments", "--corpus", "measure an encoder"
    ),
    "doctor": Subcommand("jobs.doctor", "DoctorArguments", "--encoder", "show what maskmill finds here"),
}


def run(args: Sequence[str]) -> NoReturn:
    """Run the subcommand that `args` name, and exit with its code."""
    name, *rest = args or ["--help"]
    if name in ("-h", "--help"):
        print(help_text())
        raise SystemExit(0)
    if name == "--version":
        print(f"maskmill {__version__}")
        raise SystemExit(0)
    # tyro, which reads the flags, is not needed for the help above.
    from jobs.cli.console import WRONG_USE, exit_with, run_job

    subcommand = SUBCOMMANDS.get(name)
    if subcommand is None:
        exit_with(WRONG_USE, UsageError(unknown_text(name)))
    module = import_module(subcommand.module)
    arguments_type = getattr(module, subcommand.arguments)
    if "--help-all" in rest:
        rest = ["--help"]
    elif "--help" in rest or "-h" in rest:
        from jobs.cli.short_help import shorten

        arguments_type = shorten(arguments_type, subcommand.common)
    run_job(arguments_type, module.main, name_first(rest, subcommand.first), f"maskmill {name}")


def help_text() -> str:
    """The subcommands, one in a line."""
    width = max(map(len, SUBCOMMANDS))
    lines = [f"  {name:{width}}  {subcommand.summary}" for name, subcommand in SUBCOMMANDS.items()]
    return "\n".join(
        [
            "usage: maskmill SUBCOMMAND ...",
            "",
            "Label images without humans: images in, instance masks out.",
            "",
            *lines,
            "",
            "Start with: maskmill label FOLDER. Every subcommand has --help.",
        ]
    )


def unknown_text(name: str) -> str:
    """The message for an unknown subcommand.

    >>> unknown_text("lable")
    "maskmill has no subcommand 'lable'; did you mean label? (maskmill --help lists all)"
    """
    similar = difflib.get_close_matches(name.replace("_", "-"), SUBCOMMANDS, n=2)
    hint = f"; did you mean {' or '.join(similar)}?" if similar else ""
    return f"maskmill has no subcommand {name!r}{hint} (maskmill --help lists all)"


def name_first(args: Sequence[str], flag: str) -> list[str]:
    """The arguments with `flag` before words that come before every flag.

    >>> name_first(["photos", "--limit", "3"], "--corpus"), name_first(["--limit", "3"], "--corpus")
    (['--corpus', 'photos', '--limit', '3'], ['--limit', '3'])
    """
    is_word = bool(args) and not args[0].startswith("-")
    return [flag, *args] if is_word else list(args)
