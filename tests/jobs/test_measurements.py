"""Benchmarks and studies on tiny inputs."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from engine.encoders import EncoderConfig
from engine.errors import ConfigurationError, CorpusError
from engine.proposals.config import MultiCutConfig
from jobs import benchmark, choose_bias
from jobs.studies import benchmark_refinement, evaluate_superpixels


@pytest.fixture
def coco_folder(
    tmp_path: Path, photograph: Callable[[int], np.ndarray], encode_image: Callable[..., bytes]
) -> Path:
    """Two images in COCO's layout, with a square drawn in each."""
    root = tmp_path / "coco"
    for folder in ("val", "annotations"):
        (root / folder).mkdir(parents=True)
    images, annotations = [], []
    for number in range(2):
        (root / f"val/{number}.png").write_bytes(encode_image(photograph(number), "PNG"))
        images.append({"id": number, "file_name": f"{number}.png", "height": 48, "width": 64})
        square = [16, 8, 48, 8, 48, 40, 16, 40]
        annotations.append({"image_id": number, "segmentation": [square], "iscrowd": 0})
    content = json.dumps({"images": images, "annotations": annotations})
    (root / "annotations/instances_val.json").write_text(content)
    return root


def test_the_benchmark_times_stages_and_pipeline(
    run_job: Callable[..., subprocess.CompletedProcess[str]],
    image_folder: Callable[[int], Path],
    tmp_path: Path,
) -> None:
    output = tmp_path / "benchmark.json"
    small = ("--num-images", "12", "--stage-images", "2", "--chunk-size", "1", "--encoder.image-size", "96",
             "--encoder", "descriptor", "--refine", "crf")  # fmt: skip
    few = (*small, "--encoder-seconds", "0.1")
    result = run_job("benchmark", "--corpus", str(image_folder(3)), *few, "--output", str(output))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "share of ideal" in result.stdout
    figures = json.loads(output.read_text())
    # Stages are timed before and after the pipeline, by 2 images in each process.
    assert figures["stages"]["images"] == 2 * 2 * figures["cores"]
    shares = figures["stages"]["share"]
    assert {"read", "decode, resize", "encode", "propose", "refine", "write"} <= shares.keys()
    assert sum(shares.values()) == pytest.approx(1)
    assert figures["pipeline"]["images"] == 12
    assert figures["pipeline"]["start_up_s"] < figures["pipeline"]["total_s"]
    assert figures["ratios"].keys() == {"of ideal", "of the encoder alone"}
    with pytest.raises(ConfigurationError, match="no steady part"):
        benchmark.BenchmarkArguments(num_images=80)


def test_a_bias_is_chosen_without_ground_truth(
    image_folder: Callable[[int], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "bias.json"
    folder = image_folder(5)
    (folder / "pipe.png").symlink_to("pipe.png")
    arguments = choose_bias.BiasArguments(
        corpus=str(folder),
        num_images=3,
        stride=2,
        encoder=EncoderConfig(image_size=96, batch_size=2),
        multicut=MultiCutConfig(distances=(1, 3), biases=(0.1, 0.3)),
        output=str(output),
    )
    choose_bias.main(arguments)
    figures = json.loads(output.read_text())
    best = max(figures["scores"], key=lambda score: score["criterion"])
    assert figures["biases"] == best["biases"]
    assert best["biases"][1] - best["biases"][0] == pytest.approx(0.2)
    printed = capsys.readouterr().out
    assert "--multicut.biases {:g} {:g}".format(*best["biases"]) in printed
    assert len(figures["images"]) + printed.count("left out") == 3
    with pytest.raises(ConfigurationError, match="stride is a whole number >= 1"):
        choose_bias.BiasArguments(corpus=str(folder), stride=0)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/a.png").write_bytes(b"broken")
    with pytest.raises(ConfigurationError, match="no readable image"):
        choose_bias.main(choose_bias.BiasArguments(corpus=str(tmp_path / "bad")))


def test_flat_images_have_no_best_bias(
    tmp_path: Path,
    encode_image: Callable[..., bytes],
    run_here: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    grey = encode_image(np.full((48, 64, 3), 128, np.uint8), "PNG")
    (tmp_path / "grey.png").write_bytes(grey)
    ended = run_here("choose_bias", "--corpus", str(tmp_path), "--encoder", "descriptor")
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: no bias is better than another")
    assert "--multicut.biases" not in ended.stdout


@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_the_crf_backends_agree(
    coco_folder: Path, tmp_path: Path, backend: Literal["numba", "torch"]
) -> None:
    output = tmp_path / "refinement.json"
    config = benchmark_refinement.BenchmarkArguments(
        coco=coco_folder, masks_per_image=4, size=96, backend=backend, threads=(1,), output=str(output)
    )
    benchmark_refinement.main(config)
    summary = json.loads(output.read_text())["summary"]
    assert summary["masks"] == 8
    assert summary["mean IoU with the reference"] > 0.99


def test_superpixels_are_measured_on_coco(coco_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "superpixels.json"
    evaluate_superpixels.main(
        evaluate_superpixels.SuperpixelsArguments(coco=coco_folder, counts=(6,), output=str(output))
    )
    rows = json.loads(output.read_text())["figures"]["coco"]
    assert [row["COCO"] for row in rows] == ["hierarchy", "slic", "felzenszwalb"]
    assert all(row["objects"] == 2 and 0 <= row["of them crossing"] <= 1 for row in rows)
    with pytest.raises(CorpusError):
        evaluate_superpixels.main(evaluate_superpixels.SuperpixelsArguments(coco=tmp_path))


def test_superpixels_of_a_broken_data_set(
    coco_folder: Path, tmp_path: Path, run_here: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    (tmp_path / "images/val").mkdir(parents=True)
    (coco_folder / "val/1.png").rename(tmp_path / "images/val/1.jpg")
    annotations = coco_folder / "annotations/instances_val.json"
    for flags, said in (
        (("--coco", str(annotations)), "instances_val.json is no folder: give one with annotations/"),
        (("--coco", str(coco_folder)), "val/1.png: "),
        (("--data", str(tmp_path)), "groundTruth/val/1.mat as a ground truth of BSDS500"),
    ):
        ended = run_here("studies/evaluate_superpixels", *flags, "--counts", "6", "--methods", "slic")
        assert ended.returncode == 2
        assert said in ended.stderr.splitlines()[-1]
    (tmp_path / "groundTruth/val").mkdir(parents=True)
    (tmp_path / "groundTruth/val/1.mat").write_bytes(b"broken")
    with pytest.raises(CorpusError, match=r"1\.mat"):
        evaluate_superpixels.main(evaluate_superpixels.SuperpixelsArguments(data=tmp_path, counts=(6,)))
    annotations.write_text(json.dumps({"images": [], "annotations": []}))
    with pytest.raises(CorpusError, match="no image with instances"):
        evaluate_superpixels.main(evaluate_superpixels.SuperpixelsArguments(coco=coco_folder))


def test_superpixels_are_measured_on_bsds500(development_data: Callable[[str], Path], tmp_path: Path) -> None:
    output = tmp_path / "superpixels.json"
    evaluate_superpixels.main(
        evaluate_superpixels.SuperpixelsArguments(
            data=development_data("data/bsds500"),
            counts=(100,),
            methods=("hierarchy",),
            limit=1,
            output=str(output),
        )
    )
    (row,) = json.loads(output.read_text())["figures"]["bsds500"]
    assert row["segments"] == 100
    assert row["boundary recall"] > 0.5
