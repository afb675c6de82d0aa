import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine.objects.object_store import open_objects
from engine.store.pseudo_labels import PseudoLabelStore
from engine.types import Reason, Status

RunJob = Callable[..., subprocess.CompletedProcess[str]]
LabelsIn = Callable[[Path], dict[str, bytes]]
# Enough for small images: the labels themselves are not tested here.
QUICK = ("--refine", "none", "--encoder", "descriptor", "--encoder.image-size", "96")


def store_at(uri: Path | str) -> PseudoLabelStore:
    return PseudoLabelStore(open_objects(str(uri)))


def flags(corpus: Path | str, store: Path | str, *more: str) -> tuple[str, ...]:
    return ("label_folder", "--corpus", str(corpus), "--store", str(store), *QUICK, *more)


def succeeded(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def wrong_use(result: subprocess.CompletedProcess[str]) -> str:
    errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert (result.returncode, len(errors)) == (2, 1), result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    return errors[0]


def test_photographs_are_labelled_on_a_local_ray(
    labels_in: LabelsIn, run_job: RunJob, run_here: RunJob, tmp_path: Path
) -> None:
    store, previews = tmp_path / "store", tmp_path / "previews"
    command = ("label_folder", "--corpus", "skimage:", "--store", str(store), "--preview", str(previews))
    output = succeeded(run_job(*command))
    assert re.search(r"joined a local Ray: 1 node\(s\), \d+ CPUs", output)
    rows = list(store_at(store).version().outcomes())
    assert "astronaut.png" in [row.record.path for row in rows]
    assert all(row.status != Status.REJECTED for row in rows)
    assert sum(len(row.instances or ()) for row in rows) > len(rows)
    labelled = sum(row.status == Status.LABELLED for row in rows)
    assert len(list(previews.glob("*.jpg"))) == labelled + 1
    with Image.open(previews / "sheet.jpg") as sheet:
        assert min(sheet.size) > 200
    (run,) = store_at(store).version().runs()
    assert run.images == len(rows)
    assert run.images_per_s > 0
    before = labels_in(store)
    again = succeeded(run_here(*command[:5]))
    assert "nothing to do" in again
    assert labels_in(store) == before
    assert store_at(store).version().runs() == [run]


@pytest.fixture
def broken_folder(
    image_folder: Callable[[int], Path], encode_image: Callable[..., bytes]
) -> tuple[Path, dict[str, Reason]]:
    """Four valid images among broken ones, and the reasons of the broken ones."""
    corpus = image_folder(4)
    noise = np.random.default_rng(0).integers(0, 256, (64, 80, 3), np.uint8)
    jpeg = encode_image(noise, "JPEG")
    broken = {
        "bomb.png": (encode_image(Image.new("1", (30_000, 30_000)), "PNG"), Reason.TOO_LARGE),
        "cut.jpg": (jpeg[: len(jpeg) // 2], Reason.TRUNCATED),
        "dot.png": (encode_image(noise[:1, :1], "PNG"), Reason.TOO_SMALL),
        "empty.jpg": (b"", Reason.EMPTY_FILE),
        "text.jpg": (b"I am a text.", Reason.NOT_AN_IMAGE),
    }
    for name, (data, _) in broken.items():
        (corpus / name).write_bytes(data)
    (corpus / "loop.jpg").symlink_to("loop.jpg")
    (corpus / "vanished.jpg").symlink_to("nothing.jpg")
    reasons = {name: reason for name, (_, reason) in broken.items()}
    return corpus, reasons | {"loop.jpg": Reason.UNREADABLE, "vanished.jpg": Reason.MISSING}


@pytest.mark.parametrize(
    "entrypoint",
    [
        ("python", "jobs/label_folder.py"),
        pytest.param(("jobs/label_folder.py",), marks=pytest.mark.slow),
    ],
)
def test_a_submitted_job_labels_the_valid_images(
    cluster: Any, broken_folder: tuple[Path, dict[str, Reason]], tmp_path: Path, entrypoint: tuple[str, ...]
) -> None:
    corpus, expected = broken_folder
    output = succeeded(cluster.submit(*entrypoint, *flags(corpus, tmp_path / "store")[1:]))
    assert "joined Ray at" in output
    assert "rejected 'cut.jpg': truncated" in output
    rows = {row.record.image_id: row for row in store_at(tmp_path / "store").version().outcomes()}
    assert {name: rows[name].reason for name in expected} == expected
    assert {rows[name].status for name in expected} == {Status.REJECTED}
    assert len(rows) == 4 + len(expected)
    assert str(corpus) not in json.dumps([row.detail for row in rows.values()])


@pytest.mark.slow
def test_a_submitted_job_that_fails_prints_the_reason(cluster: Any, tmp_path: Path) -> None:
    result = cluster.submit(
        "python", "jobs/label_folder.py", *flags(tmp_path / "nowhere", tmp_path / "store")[1:]
    )
    assert result.returncode == 1
    assert "error: no folder" in result.stdout + result.stderr


@pytest.mark.slow
def test_many_chunks_fit_through_a_small_object_store(
    run_job: RunJob, cluster: Any, image_folder: Callable[[int], Path], tmp_path: Path
) -> None:
    # 300 images of 480 x 480 are 207 MB, their features 86 MB, in a store of 400 MB.
    command = ["label_folder", "--corpus", str(image_folder(300)), "--store", str(tmp_path / "store")]
    result = run_job(
        *command,
        "--refine",
        "none",
        "--shard-size",
        "64",
        "--address",
        cluster.address,
        **cluster.environment,
    )
    assert "300" in succeeded(result)
    rows = list(store_at(tmp_path / "store").version().outcomes())
    assert len({row.record.image_id for row in rows}) == len(rows) == 300


@pytest.mark.slow
def test_from_s3_to_s3(
    labels_in: LabelsIn,
    run_job: RunJob,
    cluster: Any,
    s3_server: Any,
    image_folder: Callable[[int], Path],
    tmp_path: Path,
) -> None:
    disk = image_folder(6)
    disk.rename(s3_server.root / "bucket/images")
    succeeded(run_job(*flags("s3://bucket/images", "s3://bucket/store", "--shard-size", "4")))
    from_disk = flags(s3_server.root / "bucket/images", tmp_path / "store", "--shard-size", "4")
    succeeded(run_job(*from_disk, "--address", cluster.address, **cluster.environment))
    assert labels_in(s3_server.root / "bucket/store") == labels_in(tmp_path / "store")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (("--corpus", "/nonexistent/corpus"), "no folder '/nonexistent/corpus'"),
        (("--corpus", "gs://bucket"), "s3://bucket/prefix"),
        (("--corpus", str(Path(__file__).parent)), "no images"),
        (("--address", "127.0.0.1:1"), "no Ray at '127.0.0.1:1'"),
        (("--encoder", "vit_smal_patch16_224"), "vit_small_patch16_224"),
        (("--encoder", "resnet18", "--weights", "random"), "resnet18"),
        (("--encoder", "vit_tiny_patch16_224", "--weights", "/nonexistent.pth"), "/nonexistent.pth"),
        (("--encodr", "x"), "did you mean --encoder"),
        (("--method", "magic"), "promerge"),
        (("--method", "solo"), "needs a trained network: give --weights"),
        (("--method", "solo", "--weights", __file__), "not a network written by jobs/train_solo.py"),
        (
            ("--method", "solo", "--network.weights", __file__),
            "not a network written by jobs/train_solo.py",
        ),
        (("--shard-size", "0"), "--shard-size is a whole number >= 1"),
        (("--promerge.tau-b", "7"), "--promerge.tau-b is a cosine"),
        (("--extend", "--overwrite"), "one of the two"),
        (("--store", "s3:///x"), "names no bucket"),
        (("--preview", __file__), "is a file: give a folder"),
    ],
)
def test_wrong_use_is_one_line(
    run_here: RunJob, tmp_path: Path, wrong: tuple[str, ...], message: str
) -> None:
    right = {"--corpus": "skimage:", "--store": str(tmp_path / "store")}
    for name in right.keys() & set(wrong):
        del right[name]
    result = run_here("label_folder", *wrong, *(x for pair in right.items() for x in pair))
    assert message in wrong_use(result)
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "store").exists()


@pytest.mark.slow
def test_an_unwritable_store_is_one_line_too(
    run_job: RunJob, cluster: Any, image_folder: Callable[[int], Path], tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")
    command = (*flags(image_folder(3), tmp_path / "file/store"), "--address", cluster.address)
    assert "cannot write" in wrong_use(run_job(*command, **cluster.environment))


def test_help_explains_every_flag(run_here: RunJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    output = succeeded(run_here("label_folder", "--help"))
    for flag in (
        "--corpus", "--store", "--method", "--encoder", "--weights", "--network.weights", "--refine",
        "--limit", "--shard-size", "--device", "--address", "--extend", "--overwrite", "--preview",
        "--promerge.tau-b", "--multicut.biases", "--tile", "--overlap", "--detection.min-score",
    ):  # fmt: skip
        assert flag in output
    unexplained = re.findall(r"^│ (--\S+(?: \S+)?)\s+\(default: ", output, re.MULTILINE)
    assert unexplained == []


def test_jobs_are_executable() -> None:
    jobs = Path(__file__).parents[2] / "jobs"
    scripts = [path for path in jobs.glob("*.py") if path.read_text().startswith("#!")]
    assert jobs / "label_folder.py" in scripts
    assert all(os.access(path, os.X_OK) for path in scripts)
