import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.exceptions import WorkerCrashedError

from actors import pipeline
from actors.pipeline import Progress
from actors.pool import size_pool
from actors.storage import Work
from engine.corpora import FolderCorpus
from engine.errors import ConfigurationError, RunError
from engine.objects.memory import MemoryObjects
from engine.store.pseudo_labels import Version
from engine.types import ImageRecord, Outcome, Reason, Status


@given(st.floats(1, 512), st.integers(0, 64))
def test_pools_never_ask_for_more_than_there_is(num_cpus: float, num_gpus: int) -> None:
    size = size_pool(num_cpus, num_gpus)
    assert size.workers * size.cpus_each <= num_cpus
    assert size.workers * size.gpus_each <= num_gpus
    assert min(size.workers, size.cpus_each) > 0


def test_small_and_large_clusters() -> None:
    laptop, node, few_cpus = size_pool(2, 0), size_pool(96, 8), size_pool(12, 8)
    assert (laptop.workers, laptop.gpus_each) == (2, 0)
    assert (node.workers, node.gpus_each) == (64, 0.125)
    assert node.workers * node.cpus_each > 60
    assert (few_cpus.workers, few_cpus.gpus_each) == (8, 1.0)
    with pytest.raises(ConfigurationError, match="at least one"):
        size_pool(0.5, 4)


def test_a_write_that_ray_gives_up_ends_the_run_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(_: object) -> None:
        raise WorkerCrashedError

    monkeypatch.setattr(pipeline.ray, "get", crash)
    with pytest.raises(RunError, match=r"a shard could not be written .* run the same command again"):
        pipeline._count_written([], Progress(), print)


def test_progress_counts_what_came() -> None:
    progress = Progress()
    record = ImageRecord(image_id="a", path="a")
    progress.add([Outcome(record=record, status=Status.REJECTED, reason=Reason.CORRUPT)] * 2)
    progress.add([Outcome(record=record, status=Status.LABELLED)])
    assert (progress.images, progress.instances, progress.reasons) == (3, 0, {Reason.CORRUPT: 2})


@pytest.mark.parametrize("wrong", ["shard_size", "chunk_size", "limit"])
def test_work_of_nothing_is_refused(wrong: str) -> None:
    objects = MemoryObjects()
    work = Work(
        corpus=FolderCorpus(objects), version=Version(objects, "round-000-x"), shard_size=10, chunk_size=2
    )
    with pytest.raises(ConfigurationError, match=wrong):
        replace(work, **{wrong: 0})


@pytest.mark.parametrize("module", ["actors.reader", "actors.storage", "engine.encoders"])
def test_light_modules_stay_light(module: str) -> None:
    heavy = "{'torch', 'timm', 'numba', 'skimage'}"
    program = f"import sys, {module}; print(sorted({heavy} & sys.modules.keys()))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
