import subprocess
import sys
from dataclasses import replace

import pytest
from ray.exceptions import RayTaskError, WorkerCrashedError

from actors.pipeline import Progress, write_errors
from actors.storage import Work
from engine.corpora import FolderCorpus
from engine.errors import OutOfBoundsError, RunError, StoreError
from engine.objects.memory import MemoryObjects
from engine.store.pseudo_labels import Version
from engine.types import ImageRecord, Outcome, Reason, Status


def test_a_write_that_ray_gives_up_is_a_run_error() -> None:
    with (
        pytest.raises(RunError, match=r"a shard could not be written .* run the same command again"),
        write_errors(),
    ):
        raise WorkerCrashedError


def test_an_error_of_the_write_itself_passes_unchanged() -> None:
    failed = RayTaskError("commit_shard", "traceback", StoreError("cannot write"))
    with pytest.raises(RayTaskError), write_errors():
        raise failed


def test_progress_counts_rows_and_reasons() -> None:
    progress = Progress()
    record = ImageRecord(image_id="a", path="a")
    progress.add([Outcome(record=record, status=Status.REJECTED, reason=Reason.CORRUPT)] * 2)
    progress.add([Outcome(record=record, status=Status.LABELLED)])
    assert (progress.images, progress.instances, progress.reasons) == (3, 0, {Reason.CORRUPT: 2})


@pytest.mark.parametrize("wrong", ["shard_size", "chunk_size", "limit"])
def test_work_without_images_is_refused(wrong: str) -> None:
    objects = MemoryObjects()
    work = Work(
        corpus=FolderCorpus(objects), version=Version(objects, "round-000-x"), shard_size=10, chunk_size=2
    )
    with pytest.raises(OutOfBoundsError, match=f"{wrong} is a whole number >= 1, got 0"):
        replace(work, **{wrong: 0})


@pytest.mark.parametrize("module", ["actors.reader", "actors.storage", "engine.encoders"])
def test_light_modules_stay_light(module: str) -> None:
    heavy = "{'torch', 'timm', 'numba', 'skimage'}"
    program = f"import sys, {module}; print(sorted({heavy} & sys.modules.keys()))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
