"""Training on one process: what a sample is, that a run learns, goes on exactly, and stops where it must."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.boxes import xyxy_to_xywh
from engine.corpora import FolderCorpus
from engine.decoding import DecodingConfig
from engine.errors import ConfigurationError, RunError, StoreError, WeightsError
from engine.ground_truth import AnnotatedImage
from engine.selection import SelectionConfig
from engine.solo import samples
from engine.solo.augmentation import AugmentationConfig, Source, paste_objects, place_scene
from engine.solo.inference import find_instances
from engine.solo.objective import ObjectiveConfig
from engine.solo.run import Run, train_solo
from engine.solo.samples import (
    SampleConfig,
    SampleMaker,
    cut_superpixels,
    list_held_out,
    list_images,
    load_batches,
)
from engine.solo.trainer import SoloTrainer
from engine.solo.training import RunSettings, TrainingConfig, begin_output
from engine.solo.validation import plan_validation
from engine.solo.weights import load_network
from engine.store.local import LocalObjects
from engine.store.objects import MemoryObjects
from engine.store.pseudo_labels import PseudoLabelStore
from engine.superpixels import SuperpixelConfig
from engine.superpixels.hierarchy import number_by_first_pixel
from engine.training.distribution import Place
from engine.training.log import read_figures
from engine.training.order import SampleNumber, batch_numbers
from engine.training.schedule import OptimiserConfig


@pytest.fixture
def labelled_folder(labelled_discs):
    """The corpus and the version of `labelled_discs`."""
    images, store = labelled_discs
    return FolderCorpus.open(str(images)), PseudoLabelStore(LocalObjects(store)).version()


@pytest.fixture
def tiny_training(tiny_solo):
    return TrainingConfig(
        steps=6,
        batch_size=2,
        solo=tiny_solo,
        optimiser=OptimiserConfig(kind="adamw", learning_rate=2e-3, warmup_steps=2, schedule="cosine"),
        samples=SampleConfig(superpixels=SuperpixelConfig(num_segments=40)),
        snapshots=2,
    )


@pytest.fixture
def make_maker(labelled_folder, tmp_path):
    corpus, version = labelled_folder

    def make(config, **selection):
        images = list_images(version, SelectionConfig(**selection), config.keep_empty)
        return SampleMaker(images, corpus, tmp_path / "cache", config.sample_task)

    return make


@pytest.fixture
def stable_version(labelled_folder):
    """The version of `labelled_discs`, with the stability 2, 2.5 and so on of one disc after the other."""
    _, version = labelled_folder
    stabilities = iter(np.arange(2, 5, 0.5, dtype=np.float32))
    outcomes = [
        outcome
        if outcome.instances is None
        else replace(outcome, instances=replace(outcome.instances, stabilities=next(stabilities)[None]))
        for outcome in version.outcomes()
    ]
    measured = PseudoLabelStore(MemoryObjects()).begin(version.info, "resume")
    measured.commit(0, outcomes)
    return measured


def true_annotation(outcome):
    instances = outcome.instances
    return AnnotatedImage(
        coco_id=None,
        path=outcome.record.path,
        size=instances.size,
        rles=instances.rles,
        boxes_xywh=xyxy_to_xywh(instances.boxes_xyxy).astype(float),
        areas=instances.areas.astype(float),
        is_crowd=np.zeros(len(instances), bool),
    )


def run_of(output, config, **settings):
    settings = RunSettings(processes=0, log_every=1, checkpoint_every=2, **settings)
    return Run(output=output, config=config, settings=settings, place=Place())


def equal_samples(one, other):
    return (
        np.array_equal(one.shown_chw, other.shown_chw)
        and np.array_equal(one.masks, other.masks)
        and np.array_equal(one.superpixels.states, other.superpixels.states)
    )


def test_rejected_and_empty_images_are_left_out(labelled_folder, make_maker, tiny_training):
    _, version = labelled_folder
    images = list_images(version, SelectionConfig())
    assert [images.record(i).image_id for i in range(len(images))] == [
        "1.png",
        "3.png",
        "4.png",
        "6.png",
        "7.png",
    ]
    assert len(list_images(version, SelectionConfig(min_score=0.35))) == 3
    trained = list_images(version, SelectionConfig(), held_out=0.5)
    held_out = {record.image_id for record in list_held_out(version, 0.5)}
    assert held_out.isdisjoint(trained.record(i).image_id for i in range(len(trained)))
    # But for the image in which nothing was found.
    assert len(trained) + len(held_out - {"0.png"}) == 5
    with_empty = replace(tiny_training, keep_empty=True)
    assert len(make_maker(with_empty)) == 6
    assert make_maker(with_empty)[SampleNumber(0, 0)].masks.shape == (0, 256)
    with pytest.raises(StoreError, match="no image with an instance"):
        list_images(version, SelectionConfig(min_score=5))


def test_a_sample_is_a_function_of_its_number(make_maker, tiny_training):
    maker, again = make_maker(tiny_training), make_maker(tiny_training)
    first = maker[SampleNumber(0, 1)]
    assert equal_samples(first, again[SampleNumber(0, 1)])
    assert not equal_samples(first, maker[SampleNumber(1, 1)])
    assert not equal_samples(first, make_maker(replace(tiny_training, seed=1))[SampleNumber(0, 1)])


def test_without_augmentation_the_image_is_as_inference_sees_it(make_maker, tiny_training):
    plain = replace(
        tiny_training, samples=replace(tiny_training.samples, augmentation=AugmentationConfig.none())
    )
    sample = make_maker(plain)[SampleNumber(3, 0)]
    on_image = sample.on_image.reshape(16, 16)
    assert on_image[:12].all()
    assert not on_image[12:].any()
    assert (sample.shown_chw[:, 48:] == 0).all()
    # A disc of radius 12 in an image that is shown at its own size.
    assert sample.masks.sum() * 16 == pytest.approx(np.pi * 144, rel=0.1)


def test_superpixels_are_cut_at_the_images_own_size(monkeypatch: pytest.MonkeyPatch) -> None:
    # Stripes of 3 pixels, which are lost at a quarter of the size.
    stripes = np.repeat(np.repeat(np.uint8([[0, 255] * 20]), 3, axis=1), 60, axis=0)
    image = np.repeat(stripes[..., None], 3, axis=2)
    config = SuperpixelConfig(num_segments=40, method="felzenszwalb")
    labels = cut_superpixels(image, (15, 30), config)
    assert labels.shape == (15, 30)
    assert np.array_equal(np.unique(labels), np.arange(labels.max() + 1))
    assert labels.max() + 1 == 30
    monkeypatch.setattr(samples, "_SUPERPIXEL_SIDE", 30)
    assert cut_superpixels(image, (15, 30), config).max() < 20


def test_an_image_that_is_gone_or_another_is_said_to_be(
    labelled_folder, make_maker, tiny_training, encode_image
):
    corpus, _ = labelled_folder
    plain = replace(
        tiny_training, samples=replace(tiny_training.samples, augmentation=AugmentationConfig.none())
    )
    folder = LocalObjects(Path(corpus.uri))
    folder.delete("1.png")
    folder.write("3.png", encode_image(np.zeros((30, 30, 3), np.uint8), "PNG"))
    maker = make_maker(plain)
    assert "missing" in maker[SampleNumber(0, 0)].failure
    assert "is (30, 30) now and was (48, 64)" in maker[SampleNumber(0, 1)].failure
    run = run_of(MemoryObjects(), plain)
    train_solo(run, maker)
    figures = read_figures(run.output)
    assert sum(line["unread"] for line in figures) > 0
    assert all(np.isfinite(line["loss"]) for line in figures)
    unread = [
        json.loads(line)
        for key in run.output.keys("log/unread-")
        for line in run.output.read(key).splitlines()
    ]
    assert {line["image_id"] for line in unread} == {"1.png", "3.png"}
    assert len(unread) == sum(line["unread"] for line in figures)


def test_pasting_keeps_what_is_in_front(make_scene):
    behind = make_scene(0, [(0, 0, 30, 30), (40, 40, 44, 44)])
    front = make_scene(1, [(20, 20, 50, 50)])
    rng = np.random.default_rng(0)
    pasted = behind
    while pasted is behind:
        pasted = paste_objects(behind, front, rng)
    # The small object is hidden; the large one lost its corner.
    assert len(pasted.masks) == 2
    assert not (pasted.masks[0] & pasted.masks[1]).any()
    assert np.array_equal(pasted.masks[1], front.masks[0])
    assert pasted.weights.tolist() == [behind.weights[0], front.weights[0]]
    assert (pasted.image_hwc[front.masks[0]] == front.image_hwc[front.masks[0]]).all()
    on_image = pasted.superpixels >= 0
    assert np.array_equal(np.unique(pasted.superpixels[on_image]), np.arange(pasted.superpixels.max() + 1))


@pytest.mark.parametrize("scale", [0.3, 1.0, 2.5])
def test_scaled_scenes_keep_to_the_square(scale):
    rng = np.random.default_rng(2)
    labels = number_by_first_pixel(rng.integers(0, 9, (40, 64)))
    source = Source(
        image_hwc=rng.integers(0, 255, (40, 64, 3)).astype(np.uint8),
        masks=np.ones((1, 40, 64), bool),
        weights=np.ones(1, np.float32),
        superpixels=labels,
    )
    scene = place_scene(source, 64, AugmentationConfig(scales=(scale, scale)), rng)
    assert scene.image_hwc.shape == (64, 64, 3)
    assert np.array_equal(scene.masks[0], scene.superpixels >= 0)
    assert scene.masks[0].sum() == min(round(40 * scale), 64) * min(round(64 * scale), 64)


def test_a_run_that_goes_on_ends_with_the_same_bytes(make_maker, tiny_training, tmp_path):
    maker = make_maker(tiny_training)
    whole = run_of(MemoryObjects(), tiny_training)
    train_solo(whole, maker)

    class Interrupted(Exception):
        pass

    def stop(step):
        if step == 4:
            raise Interrupted

    parts = run_of(LocalObjects(tmp_path / "out"), tiny_training)
    with pytest.raises(Interrupted):
        train_solo(replace(parts, on_checkpoint=stop), maker)
    train_solo(parts, make_maker(tiny_training))
    for key in ("network.safetensors", "network-000000003.safetensors", "network-000000006.safetensors"):
        assert parts.output.read(key) == whole.output.read(key)
    assert parts.output.read("network.safetensors") == parts.output.read("network-000000006.safetensors")
    speeds = [{**line, "images_per_s": 0} for line in read_figures(parts.output)]
    assert speeds == [{**line, "images_per_s": 0} for line in read_figures(whole.output)]
    assert [line["step"] for line in speeds] == [1, 2, 3, 4, 5, 6]


def test_instances_count_by_their_stability(labelled_folder, stable_version, tiny_training, tmp_path):
    plain = replace(
        tiny_training,
        samples=replace(tiny_training.samples, augmentation=AugmentationConfig.none()),
        objective=ObjectiveConfig(mask_term="adaptive", soft_weight=0),
    )
    task = plain.sample_task
    corpus, unmeasured = labelled_folder
    images = list_images(stable_version, SelectionConfig())
    maker = SampleMaker(images, corpus, tmp_path / "cache", task)
    samples = [maker[SampleNumber(0, index)] for index in range(5)]
    weights = [float(sample.adaptive.instance_weights[0]) for sample in samples]
    np.testing.assert_allclose(weights, (np.array([0, 0.5, 1, 1.5, 2]) + 0.1) / 2.1, rtol=1e-6)
    phi = samples[0].adaptive.pixel_weights
    assert phi.shape == samples[0].masks.shape
    assert (phi[:, samples[0].on_image == 0] == 0).all()
    assert phi.max() > 0.9
    run = run_of(MemoryObjects(), plain)
    train_solo(run, maker)
    assert all(np.isfinite(line["loss"]) and line["mask"] > 0 for line in read_figures(run.output))
    without = SampleMaker(list_images(unmeasured, SelectionConfig()), corpus, tmp_path / "cache", task)
    with pytest.raises(StoreError, match="these have none"):
        without[SampleNumber(0, 0)]


def test_a_run_begins_from_another_network(make_maker, tiny_training, tmp_path):
    maker, first = make_maker(tiny_training), LocalObjects(tmp_path / "first")
    train_solo(run_of(first, replace(tiny_training, steps=2)), maker)
    uri = f"{first.uri}/network.safetensors"
    # Without a learning rate it stays what it began from; the networks' own seeds differ.
    still = replace(
        tiny_training,
        solo=replace(tiny_training.solo, seed=5),
        optimiser=OptimiserConfig(learning_rate=1e-30, warmup_steps=0, weight_decay=0),
    )
    second = replace(run_of(LocalObjects(tmp_path / "second"), still), begins_from=uri)
    train_solo(second, maker)
    begun, ended = (
        load_network(f"{output.uri}/network.safetensors", torch.device("cpu"))[0].state_dict()
        for output in (first, second.output)
    )
    torch.testing.assert_close(ended, begun, rtol=0, atol=1e-20)
    wider = replace(tiny_training, solo=replace(tiny_training.solo, mask_channels=8))
    with pytest.raises(WeightsError, match="of another configuration"):
        train_solo(replace(run_of(MemoryObjects(), wider), begins_from=uri), maker)


def test_tensorboard_reads_the_log(make_maker, tiny_training, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = run_of(LocalObjects(tmp_path / "out"), tiny_training)
    train_solo(run, make_maker(tiny_training))
    accumulator = EventAccumulator(str(tmp_path / "out/log/events.out.tfevents.000000000"))
    accumulator.Reload()
    assert [event.step for event in accumulator.Scalars("loss")] == [1, 2]


def test_output_of_another_run_is_refused(tiny_training):
    output, labels = MemoryObjects(), {"version": "round-000-a"}
    assert not begin_output(output, tiny_training, labels, resume=False)
    with pytest.raises(ConfigurationError, match="--resume goes on"):
        begin_output(output, tiny_training, labels, resume=False)
    assert not begin_output(output, tiny_training, labels, resume=True)
    with pytest.raises(ConfigurationError, match="differs in steps"):
        begin_output(output, replace(tiny_training, steps=7), labels, resume=True)
    with pytest.raises(ConfigurationError, match="differs in labels"):
        begin_output(output, tiny_training, {"version": "round-000-b"}, resume=True)
    output.write("network.safetensors", b"")
    assert begin_output(output, tiny_training, labels, resume=True)


def test_a_loss_that_is_not_finite_names_the_images(make_maker, tiny_training):
    maker = make_maker(tiny_training)
    trainer = SoloTrainer(tiny_training, Place())
    with torch.no_grad():
        trainer.network.mask_branch.output[0].weight[0, 0] = torch.nan
    before = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    numbers = batch_numbers(0, len(maker), 2, range(1), slice(None))
    batch = next(load_batches(maker, numbers, 0))
    with pytest.raises(RunError, match=rf"loss is nan at step 1, among '{batch.image_ids[0]}'"):
        trainer.train_step(batch)
    torch.testing.assert_close(trainer.network.state_dict(), before, equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("precision", ["bfloat16"])
def test_mixed_precision_stays_finite(make_maker, tiny_training, precision):
    run = run_of(MemoryObjects(), replace(tiny_training, precision=precision, steps=3))
    train_solo(run, make_maker(tiny_training))
    assert all(np.isfinite(line["loss"]) for line in read_figures(run.output))


def test_a_tiny_run_learns_its_discs(make_maker, tiny_training, labelled_folder):
    """From nothing to the masks of the images that it saw, by the superpixel loss."""
    config = replace(
        tiny_training,
        steps=60,
        batch_size=5,
        samples=replace(tiny_training.samples, augmentation=AugmentationConfig.none()),
        optimiser=OptimiserConfig(kind="adamw", learning_rate=5e-3, warmup_steps=5, schedule="cosine"),
    )
    corpus, version = labelled_folder
    records = [outcome.record for outcome in version.outcomes() if outcome.instances is not None]
    truths = [true_annotation(outcome) for outcome in version.outcomes() if outcome.instances is not None]
    validation = plan_validation(corpus, records, truths, DecodingConfig())
    settings = RunSettings(processes=0, checkpoint_every=60)
    run = Run(output=MemoryObjects(), config=config, settings=settings, place=Place(), validation=validation)
    train_solo(run, make_maker(config))
    assert read_figures(run.output)[-1]["mask_AP50"] >= 0.9


def test_networks_are_read_back_with_their_configuration(make_maker, tiny_training, tmp_path, photograph):
    output = LocalObjects(tmp_path / "out")
    run = run_of(output, replace(tiny_training, steps=2))
    train_solo(run, make_maker(tiny_training))
    network, config, digest = load_network(f"{output.uri}/network.safetensors", torch.device("cpu"))
    assert config == tiny_training.solo
    assert len(digest) == 64
    assert len(find_instances(network, [photograph(0)], config)) <= 50
    output.write("other.safetensors", b"\x02\x00\x00\x00\x00\x00\x00\x00{}")
    for name, message in (("other.safetensors", "no network that"), ("none.safetensors", "no weights at")):
        with pytest.raises(WeightsError, match=message):
            load_network(f"{output.uri}/{name}", torch.device("cpu"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrainingConfig(steps=0), "steps is at least 1"),
        (lambda: TrainingConfig(steps=2, snapshots=3), "at most as many"),
        (lambda: TrainingConfig(seed=-1), "seed"),
        (lambda: RunSettings(processes=-1), "processes"),
        (lambda: RunSettings(log_every=0), "log_every"),
        (lambda: AugmentationConfig(flip=2), "flip is 0 to 1"),
        (lambda: AugmentationConfig(scales=(2, 1)), "rising"),
        (lambda: OptimiserConfig(learning_rate=0), "above 0"),
        (lambda: OptimiserConfig(warmup_steps=-1), "negative"),
    ],
)
def test_settings_out_of_range_are_refused(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()


def test_the_configuration_is_plain_json(tiny_training):
    assert json.loads(json.dumps(asdict(tiny_training)))["objective"] == asdict(ObjectiveConfig())
