"""The jobs that measure labels and encoders against ground truth."""

import csv
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from engine.encoders import EncoderConfig
from engine.errors import ConfigurationError
from engine.labelling.config import LabellingConfig
from engine.masks.boxes import mask_boxes_xyxy
from engine.masks.instances import Instances
from engine.masks.rle import encode_rles
from engine.objects.object_store import open_objects
from engine.store.pseudo_labels import PseudoLabelStore
from engine.store.version_info import VersionInfo
from engine.types import ImageRecord, Outcome, Status
from jobs import evaluate, evaluate_encoder, sweep

SMALL = LabellingConfig(refine="none", encoder=EncoderConfig(image_size=96))


@pytest.fixture
def annotated_folder(
    tmp_path: Path, photograph: Callable[[int], np.ndarray], encode_image: Callable[..., bytes]
) -> Path:
    """Six photographs in images/, and id masks of their discs in masks/."""
    root = tmp_path / "discs"
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for seed in range(6):
        image = photograph(seed)
        ids = (image.mean(axis=2) > 125).astype(np.uint8)
        (root / f"images/{seed}.png").write_bytes(encode_image(image, "PNG"))
        (root / f"masks/{seed}.png").write_bytes(encode_image(ids, "PNG"))
    return root


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Two images without a mask in round 0, with their left half as a mask in round 1."""
    path = tmp_path / "store"
    for number in range(2):
        info = VersionInfo(
            round=number, configuration={}, weights_digest="", parent=None, code_version="", device="cpu"
        )
        version = PseudoLabelStore(open_objects(str(path))).begin(info, "resume")
        masks = np.zeros((1, 48, 64), bool)
        masks[:, :, :32] = True
        half = Instances(
            size=(48, 64),
            method="test",
            rles=encode_rles(masks),
            boxes_xyxy=mask_boxes_xyxy(masks),
            areas=masks.sum(axis=(1, 2)),
            scores=np.array([0.5], np.float32),
            stabilities=np.array([np.nan], np.float32),
        )
        outcomes = [
            Outcome(
                record=ImageRecord(image_id=f"images/{seed}.png", path=f"images/{seed}.png"),
                status=Status.LABELLED if number else Status.NO_OBJECT,
                height=48,
                width=64,
                instances=half if number else None,
            )
            for seed in range(2)
        ]
        version.commit(0, outcomes)
        version.finish()
    return path


@pytest.fixture
def coco_json(tmp_path: Path) -> Path:
    """Ground truth: the left half of three images."""
    images = [{"id": i, "file_name": f"{i}.png", "height": 48, "width": 64} for i in range(3)]
    half = [0, 0, 32, 0, 32, 48, 0, 48]
    annotations = [{"id": i, "image_id": i, "category_id": i, "segmentation": [half]} for i in range(3)]
    path = tmp_path / "halves.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    return path


def test_each_round_is_evaluated_and_its_metrics_are_kept(
    store: Path, coco_json: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "metrics.json"
    for round_number, expected in ((0, 0.0), (None, 1.0)):
        evaluate.main(
            evaluate.EvaluateArguments(
                store=str(store), ground_truth=str(coco_json), round=round_number, output=str(output)
            )
        )
        content = json.loads(output.read_text())
        assert content["boxes"]["AP"] == content["masks"]["AR@100"] == pytest.approx(expected)
        assert content["protocol"]["ground_truth"]["images_absent"] == 1
    said = capsys.readouterr().out
    assert "left out: 1 images of the ground truth that are not in the store: 2.png" in said
    assert "2 images with 2 objects" in said
    labels = PseudoLabelStore(open_objects(str(store)))
    (kept_0,), (kept_1,) = (labels.version(number).evaluations().items() for number in (0, 1))
    assert kept_1 == (kept_0[0], content)
    assert (kept_0[1]["round"], kept_1[1]["round"]) == (0, 1)


def test_ground_truth_of_other_images_is_one_line(
    store: Path, annotated_folder: Path, run_here: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    (annotated_folder / "masks/0.png").rename(annotated_folder / "masks/other.png")
    (annotated_folder / "masks/1.png").unlink()
    ended = run_here("evaluate", "--store", str(store), "--ground-truth", str(annotated_folder))
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: 0 of 5 images of the ground truth are among the 2 given")
    assert "'2.png'" in line
    assert "'images/0.png'" in line


def test_a_grid_is_swept(annotated_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (annotated_folder / "images/5.png").write_bytes(b"broken")
    common = {
        "corpus": str(annotated_folder / "images"),
        "ground_truth": str(annotated_folder),
        "labelling": SMALL,
        "workers": 1,
        "cache": str(tmp_path / "cache"),
        "grid": ("promerge.tau-b=0.2,0.9", "promerge.filter=cascade,ioa"),
    }
    written = {"output": tmp_path / "new/folder/sweep.json", "plot": tmp_path / "sweep.svg"}
    sweep.main(sweep.SweepArguments(**common, **{flag: str(path) for flag, path in written.items()}))
    content = json.loads(written["output"].read_text())
    points = content["points"]
    assert [point["settings"] for point in points] == [
        {"promerge.tau_b": tau_b, "promerge.filter": kind}
        for tau_b in (0.2, 0.9)
        for kind in ("cascade", "ioa")
    ]
    assert points[0]["masks"]["AP50"] > 0.2
    assert points[0]["masks_per_image"] > 0
    assert content["protocol"]["ground_truth"]["images"] == 6
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 5
    said = capsys.readouterr().out
    assert "cannot read '5.png': not_an_image" in said
    assert "6 images, 4 points" in said
    texts = {
        text.text for text in ElementTree.parse(written["plot"]).iter("{http://www.w3.org/2000/svg}text")
    }
    assert {"promerge.tau_b", "0.9", "filter cascade", "filter ioa", "mask AP, %"} <= texts
    rows = list(csv.DictReader(sweep.rows_as_csv(points).splitlines()))
    assert [row["promerge.tau_b"] for row in rows] == ["0.2", "0.2", "0.9", "0.9"]
    assert [float(row["masks AP50"]) for row in rows] == [point["masks"]["AP50"] for point in points]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"output": "a.txt"}, "--output is a .json or a .csv file"),
        ({"plot": "a.png"}, "--plot is an .svg file"),
        ({"plot": "a.svg"}, "give --grid"),
        ({"limit": 0}, "limit is a whole number >= 1, got 0"),
        ({"workers": 0}, "workers is a whole number >= 1, got 0"),
    ],
)
def test_wrong_use_of_a_sweep(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        sweep.SweepArguments(corpus=".", ground_truth=".", **wrong)


def test_an_encoder_is_evaluated(
    annotated_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "results.json"
    evaluate_encoder.main(
        evaluate_encoder.EvaluateEncoderArguments(
            corpus=str(annotated_folder),
            ground_truth=str(annotated_folder / "masks"),
            labelling=SMALL,
            workers=1,
            limit=4,
            output=str(output),
        )
    )
    results = json.loads(output.read_text())
    assert results["encoder"]["name"] == "embedded"
    assert results["images"] == 4
    assert results["methods"].keys() == set(evaluate_encoder.METHODS)
    assert results["methods"]["promerge"]["masks"]["AR@100"] > 0
    assert 0.8 < results["foreground_auc"] <= 1
    assert 0.5 < results["foreground_auc_of_pixels"] <= 1
    assert results["encoder_wall_s_per_image"] > 0
    assert "embedded on 4 images: foreground AUC" in capsys.readouterr().out
