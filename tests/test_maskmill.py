"""The command and the import, in folders of users."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import maskmill
from engine.errors import CorpusError
from engine.masks.rle import cross_ious

_ROOT = Path(__file__).parents[1]
# As where maskmill is installed: the working folder comes first on the path, its own packages last.
_START = f"import sys; sys.path.append({str(_ROOT)!r}); "


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder whose own packages have the names of maskmill's, with a photograph in photos/."""
    for name in ("engine", "actors", "jobs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text('raise RuntimeError("a package of the user")')
    (tmp_path / "photos").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photos/noise.png")
    return tmp_path


def _python(folder: Path, code: str, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _START + code, *args]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def _command(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return _python(folder, "import maskmill; maskmill.run_command()", *args)


def test_the_import_finds_its_own_packages(project: Path) -> None:
    done = _python(project, "import maskmill, engine, actors, jobs; print(engine.__file__, jobs.__file__)")
    assert done.stdout.split() == [str(_ROOT / "engine/__init__.py"), str(_ROOT / "jobs/__init__.py")]


def test_another_package_that_is_loaded_is_named(tmp_path: Path) -> None:
    (tmp_path / "engine.py").touch()
    done = _python(tmp_path, "import engine, maskmill")
    assert "ImportError: maskmill has a package 'engine', and " in done.stderr
    assert str(tmp_path / "engine.py") in done.stderr


def test_workers_of_a_label_job_import_the_same_packages(project: Path) -> None:
    done = _command(project, "label", "photos", "--encoder", "descriptor", "--method", "multicut")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "corpus: photos (kind folder)"
    assert done.stdout.splitlines()[-1] == (
        "next: look at photos-labels/preview/sheet.jpg, then "
        "maskmill report photos-labels --corpus photos --output report.html"
    )
    assert (project / "photos-labels/round-000.json").is_file()
    report = _command(project, "report", "photos-labels", "--corpus", "photos", "--output", "report.html")
    assert report.returncode == 0, report.stderr
    assert (project / "report.html").stat().st_size > 1000


def test_the_help_lists_the_subcommands(tmp_path: Path) -> None:
    done = _command(tmp_path, "--help")
    assert done.returncode == 0
    assert "  self-train        train, label again and repeat\n" in done.stdout


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["lable", "photos"], "maskmill has no subcommand 'lable'; did you mean label?"),
        (["label", "nowhere"], "no folder 'nowhere'"),
        (["label", "s3://bucket/photos"], "--store is missing"),
        (["label", "photos", "--limt", "3"], "did you mean --limit?"),
        (["label", "photos", "more"], "'more' follows no flag: a value needs one"),
        (["report"], "missing: --store, --output"),
        (["label", "photos", "--kind", "coc"], "--kind is one of auto, folder, coco, sa1b, hrsid, got 'coc'"),
        (["label", "photos", "--kind", "folder", "--annotations", "a.json"], "--annotations lists images"),
        (["label", "photos", "--encoder", "dinov22"], "did you mean vit_base_patch14_dinov2"),
        (["label", "photos", "--encoder", "embeded"], "did you mean embedded"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(project: Path, args: list[str], message: str) -> None:
    done = _command(project, *args)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_page_about_python_runs(
    labelled_discs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    images, store = labelled_discs
    Path("photos").symlink_to(images)
    Path("photos-labels").symlink_to(store)
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", (_ROOT / "docs/api.md").read_text(), re.DOTALL):
        exec(block, names)
    height, width = names["instances"].size
    assert names["masks"].shape == (len(names["masks"]), height, width)
    assert names["masks"].any()
    assert names["image"].shape == (3, height, width)
    assert names["target"]["masks"].shape == (1, height, width)
    assert names["target"]["boxes"].shape == (1, 4)
    assert names["target"]["labels"].tolist() == [1]
    with Image.open("drawn.png") as drawn:
        assert drawn.size == (width, height)
    assert Path("training/annotations/instances_train.json").is_file()


def test_a_batch_for_a_detector(labelled_discs: tuple[Path, Path]) -> None:
    images, store = labelled_discs
    dataset = maskmill.LabelDataset(*maskmill.open_labels(str(store), str(images)))
    loader = DataLoader(dataset, batch_size=2, collate_fn=lambda items: tuple(zip(*items, strict=True)))
    pictures, targets = next(iter(loader))
    assert [picture.dtype for picture in pictures] == [torch.uint8, torch.uint8]
    for target in targets:
        rows, columns = torch.nonzero(target["masks"][0], as_tuple=True)
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert target["boxes"][0].tolist() == [int(side) for side in box]
    with pytest.raises(IndexError, match="there is none of number"):
        dataset[len(dataset)]


def test_images_of_another_size_are_refused(labelled_discs: tuple[Path, Path]) -> None:
    images, store = labelled_discs
    dataset = maskmill.LabelDataset(*maskmill.open_labels(str(store), str(images)))
    for path in images.iterdir():
        Image.new("RGB", (30, 20)).save(path)
    with pytest.raises(CorpusError, match=r"\(20, 30\) now"):
        dataset[0]


def test_labels_of_no_image_one_pixel_and_another_type() -> None:
    config = maskmill.LabellingConfig(encoder=maskmill.EncoderConfig(name="descriptor"))
    assert maskmill.label([], config) == []
    (found,) = maskmill.label([np.zeros((1, 1, 3), np.uint8)], config)
    assert found.size == (1, 1)
    assert maskmill.masks_of(found).shape == (len(found), 1, 1)
    with pytest.raises(ValueError, match=r"images are uint8 \(H, W, 3\), got float64 \(2, 3\)"):
        maskmill.label([np.zeros((2, 3))], config)


def test_a_single_image_gets_the_masks_that_it_gets_among_others(photograph: Any) -> None:
    images = [photograph(seed) for seed in range(3)]
    alone, among = maskmill.label(images[:1])[0], maskmill.label(images)[0]
    assert abs(len(alone) - len(among)) <= 2
    assert cross_ious(alone.rles[:1], among.rles, alone.size).max() > 0.9


def test_every_public_name_exists_and_has_a_docstring() -> None:
    for name in maskmill.__all__:
        assert inspect.getdoc(getattr(maskmill, name))
    with pytest.raises(AttributeError, match="no attribute 'lable'"):
        maskmill.lable  # noqa: B018
