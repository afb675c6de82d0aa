"""Overfitting on true masks without augmentation: every object is found."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine.corpora import FolderCorpus
from engine.evaluation.ground_truth import read_ground_truth
from engine.masks.packing import make_instances
from engine.masks.rle import decode_rles
from engine.objects.memory import MemoryObjects
from engine.solo.augmentation import AugmentationConfig
from engine.solo.batch import collate, make_sample
from engine.solo.config import GridConfig, SoloConfig
from engine.solo.inference import find_instances
from engine.solo.labelled_images import list_images
from engine.solo.run import Run, train_solo
from engine.solo.samples import SampleConfig, SampleMaker
from engine.solo.trainer import SoloTrainer
from engine.solo.training_config import TrainingConfig
from engine.solo.validation import plan_validation
from engine.store.pseudo_labels import PseudoLabelStore
from engine.store.selection import SelectionConfig
from engine.store.version_info import VersionInfo
from engine.superpixels import SuperpixelConfig
from engine.training.distribution import WorkerContext
from engine.training.metrics import read_metrics
from engine.training.schedule import OptimiserConfig
from engine.training.settings import RunSettings
from engine.types import ImageRecord, Outcome, ShardPlan, Status

CONFIG = TrainingConfig(
    steps=120,
    batch_size=4,
    snapshots=1,
    solo=SoloConfig(
        backbone="resnet18",
        image_size=128,
        pyramid_channels=64,
        head_channels=64,
        mask_channels=64,
        head_depth=2,
        grid=GridConfig(
            grids=(16, 12, 10, 8, 6), ranges_px=((1, 24), (16, 48), (32, 64), (48, 96), (80, 256))
        ),
    ),
    optimiser=OptimiserConfig(kind="adamw", learning_rate=1e-3, warmup_steps=20, schedule="cosine"),
    samples=SampleConfig(
        augmentation=AugmentationConfig.none(), superpixels=SuperpixelConfig(num_segments=300)
    ),
)


@pytest.mark.slow
def test_eight_photographs_are_learned_by_heart(development_data, tmp_path):
    data = development_data("data/pennfudan")
    truths = list(read_ground_truth(str(data)))[:8]
    outcomes = []
    for truth in truths:
        record = ImageRecord(image_id=truth.path, path=str(Path(truth.path).with_suffix(".jpg")))
        masks = decode_rles(truth.rles, truth.size)
        instances = make_instances(masks, np.ones(len(masks), np.float32), truth.size, "truth")
        height, width = truth.size
        outcomes.append(
            Outcome(record=record, status=Status.LABELLED, height=height, width=width, instances=instances)
        )
    info = VersionInfo(
        round=0, configuration={}, weights_digest="", parent=None, code_version="", device="cpu"
    )
    version = PseudoLabelStore(MemoryObjects()).begin(info, "resume")
    version.record_plan(ShardPlan(index=0, records=tuple(o.record for o in outcomes), is_last=True))
    version.commit(0, outcomes)
    corpus = FolderCorpus.open(str(data / "images"))
    run = Run(
        output=MemoryObjects(),
        config=CONFIG,
        settings=RunSettings(processes=0, checkpoint_every=60),
        context=WorkerContext(),
        validation=plan_validation(
            corpus, [outcome.record for outcome in outcomes], truths, CONFIG.samples.decoding
        ),
    )
    maker = SampleMaker(list_images(version, SelectionConfig()), corpus, tmp_path, CONFIG.sample_task)
    train_solo(run, maker)
    metrics = read_metrics(run.output)[-1]
    assert metrics["mask_AP50"] >= 0.9
    # A mask that leaks has a wrong box.
    assert metrics["box_AP50"] >= 0.9


def test_boxes_are_learned_by_heart(tiny_solo, make_canvas):
    scenes = [
        make_canvas(0, [(4, 4, 24, 28), (36, 10, 56, 30)]),
        make_canvas(1, [(8, 20, 20, 52), (30, 30, 60, 50)]),
        make_canvas(2, [(20, 6, 44, 40)]),
    ]
    config = replace(
        CONFIG,
        steps=40,
        solo=tiny_solo,
        optimiser=replace(CONFIG.optimiser, learning_rate=3e-3, warmup_steps=10),
    )
    superpixels = config.objective.superpixel_loss
    samples = [make_sample("a", scene, tiny_solo.grid, superpixels) for scene in scenes]
    trainer = SoloTrainer(config, WorkerContext())
    for _ in range(config.steps):
        trainer.train_step(collate(samples))
    found = find_instances(trainer.network.eval(), [scene.image_hwc for scene in scenes], tiny_solo)
    for scene, instances in zip(scenes, found, strict=True):
        certain = decode_rles(instances.rles, instances.size)[instances.scores > 0.3]
        overlaps = (certain[:, None] & scene.masks).sum(axis=(2, 3))
        ious = overlaps / (certain[:, None] | scene.masks).sum(axis=(2, 3))
        assert ious.shape == (len(scene.masks), len(scene.masks))
        assert (ious.max(axis=0) > 0.7).all()
