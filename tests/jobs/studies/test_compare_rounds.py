"""Losses of a second round, and labels with known faults, with a tiny network."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine.errors import ConfigurationError, StoreError
from engine.evaluation.ground_truth import read_ground_truth
from engine.masks.packing import make_instances
from engine.objects.local import LocalObjects
from engine.objects.memory import MemoryObjects
from engine.selftraining.rounds import LaterRoundsConfig
from engine.solo.config import DetectionConfig, GridConfig, SoloConfig
from engine.solo.samples import SampleConfig
from engine.solo.training_config import TrainingConfig
from engine.store.pseudo_labels import PseudoLabelStore
from engine.store.selection import SelectionConfig
from engine.superpixels import SuperpixelConfig
from engine.training.schedule import OptimiserConfig
from engine.training.settings import RunSettings
from engine.types import ImageRecord, Outcome, Status
from jobs.studies import compare_rounds, corrupt_labels

TINY = TrainingConfig(
    steps=4,
    batch_size=2,
    snapshots=2,
    solo=SoloConfig(
        backbone="test_resnet",
        image_size=64,
        pyramid_channels=16,
        head_channels=16,
        mask_channels=16,
        head_depth=1,
        grid=GridConfig(grids=(8, 6, 4, 3, 2)),
        # Untrained networks must predict something.
        detection=DetectionConfig(
            min_score=0, min_score_after_nms=0, max_before_nms=20, max_instances=5, mask_threshold=0.3
        ),
    ),
    optimiser=OptimiserConfig(kind="adamw", learning_rate=2e-3, warmup_steps=1),
    samples=SampleConfig(superpixels=SuperpixelConfig(num_segments=40)),
)
SETTINGS = RunSettings(processes=0, log_every=1, checkpoint_every=2)


@pytest.fixture
def discs(
    tmp_path: Path, photograph: Callable[[int], np.ndarray], encode_image: Callable[..., bytes]
) -> Path:
    """Six photographs and their discs as id masks."""
    for number in range(6):
        image = photograph(number)
        mask = (image.mean(axis=2) > (float(image.min()) + float(image.max())) / 2).astype(np.uint8)
        for kind, pixels, suffix in (("images", image, "JPEG"), ("masks", mask, "PNG")):
            path = tmp_path / f"discs/{kind}/{number}.{'jpg' if suffix == 'JPEG' else 'png'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_image(pixels, suffix))
    return tmp_path / "discs"


def test_losses_of_a_second_round(discs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = compare_rounds.CompareRoundsArguments(
        data=discs,
        output=tmp_path / "out",
        seeds=(3,),
        num_train=4,
        block_px=4,
        max_shift_px=1,
        training=TINY,
        run=SETTINGS,
        later=LaterRoundsConfig(selection=SelectionConfig(max_per_image=3), steps=2),
    )
    compare_rounds.main(arguments)
    said = capsys.readouterr().out
    assert "| adaptive |" in said
    assert "rank correlation of stability and IoU" in said
    assert "with 0.5 or more" in said
    store = PseudoLabelStore(LocalObjects(tmp_path / "out/seed-3/labels"))
    assert store.rounds() == [0, 1]
    predicted = store.version(1)
    assert predicted.info.parent == store.version(0).name
    assert len(predicted.evaluations()) == 2
    (stabilities,) = predicted.instance_columns("stability")
    assert len(stabilities) > 0
    assert ((stabilities >= 0) & (stabilities <= 1)).all()
    trained = {path.parent.name for path in (tmp_path / "out/seed-3").glob("*/network.safetensors")}
    assert trained == {"round-000", "round-001-pixel", "round-001-adaptive"}
    results = json.loads((tmp_path / "out/results.json").read_text())["results"]
    compare_rounds.main(arguments)
    assert "step " not in capsys.readouterr().out
    assert json.loads((tmp_path / "out/results.json").read_text())["results"] == results
    with pytest.raises(ConfigurationError, match="differs in batch_size"):
        compare_rounds.main(replace(arguments, training=replace(TINY, batch_size=1)))


@pytest.mark.parametrize(("fault", "areas"), [("phantom", [452, 143]), ("half", [226]), ("missing", [452])])
def test_faults_are_added_to_labels(
    labelled_discs: tuple[Path, Path], tmp_path: Path, fault: str, areas: list[int]
) -> None:
    store = tmp_path / "noisy"
    arguments = corrupt_labels.CorruptLabelsArguments(
        store=str(labelled_discs[1]), output=str(store), fault=fault
    )
    corrupt_labels.main(arguments)
    corrupt_labels.main(arguments)
    version = PseudoLabelStore(LocalObjects(store)).version(0)
    before = PseudoLabelStore(LocalObjects(labelled_discs[1])).version(0)
    assert version.is_finished()
    assert version.info.parent == before.name
    rows = list(zip(before.outcomes(), version.outcomes(), strict=True))
    assert len(rows) == 9
    for old, new in rows:
        assert (old.record, old.status, old.instances is None) == (
            new.record,
            new.status,
            new.instances is None,
        )
        if new.instances is not None:
            np.testing.assert_allclose(new.instances.areas, areas, rtol=0.15)
            assert (new.instances.scores == old.instances.scores[0]).all()
    with pytest.raises(ConfigurationError, match="share is a share > 0"):
        replace(arguments, share=0)


def test_an_unfinished_version_is_refused(labelled_discs: tuple[Path, Path], tmp_path: Path) -> None:
    store, output = labelled_discs[1], tmp_path / "noisy"
    (manifest,) = store.rglob("manifest.parquet")
    manifest.unlink()
    with pytest.raises(StoreError, match="not complete: run the label job again first"):
        corrupt_labels.main(corrupt_labels.CorruptLabelsArguments(store=str(store), output=str(output)))
    assert not output.exists()


def test_half_of_all_objects_go_missing_but_never_the_last_one() -> None:
    masks = np.eye(64, dtype=bool).reshape(64, 8, 8)
    kept = []
    for name in "abcdefgh":
        outcome = Outcome(
            record=ImageRecord(image_id=name, path=name),
            status=Status.LABELLED,
            instances=make_instances(masks, np.ones(64, np.float32), (8, 8), "promerge"),
        )
        kept.append(corrupt_labels.add_label_noise(outcome, "missing").instances.rles)
        assert set(kept[-1]) < set(outcome.instances.rles)
        lone = replace(outcome, instances=outcome.instances.keep(np.arange(64) == 5))
        assert len(corrupt_labels.add_label_noise(lone, "missing").instances) == 1
    assert 0.4 < sum(map(len, kept)) / 512 < 0.6
    assert len(set(kept)) == 8


def test_round_0_can_learn_from_noisy_labels(discs: Path, tmp_path: Path) -> None:
    arguments = compare_rounds.CompareRoundsArguments(
        data=discs, output=tmp_path / "out", num_train=4, training=TINY, run=SETTINGS, fault="phantom"
    )
    truths = list(read_ground_truth(str(discs)))
    version = compare_rounds.store_labels(MemoryObjects(), truths, arguments, 0)
    assert {len(outcome.instances) for outcome in version.outcomes()} == {2}
