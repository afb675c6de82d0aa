"""The ends of every job."""

import os
import subprocess
import sys
from pathlib import Path

_SAYS_A_NAME = """
from dataclasses import dataclass
from jobs.console import run_job

@dataclass
class Arguments:
    name: str

run_job(Arguments, lambda arguments: print(arguments.name))
"""


def test_what_a_log_has_no_letters_for_is_written_another_way() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", _SAYS_A_NAME, "--name", "é☃"]
    said = subprocess.run(command, env=environment, capture_output=True, check=True).stdout
    assert said == b"\xe9\\u2603\n"
