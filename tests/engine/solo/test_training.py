"""A training on one process: it learns, resumes exactly, and stops on errors."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.errors import ConfigurationError, RunError, StoreError, WeightsError
from engine.evaluation.ground_truth import AnnotatedImage
from engine.images.decoding import DecodingConfig
from engine.masks.boxes import xyxy_to_xywh
from engine.objects.local import LocalObjects
from engine.objects.memory import MemoryObjects
from engine.solo.augmentation import AugmentationConfig
from engine.solo.batch import collate
from engine.solo.inference import find_instances
from engine.solo.labelled_images import list_images
from engine.solo.objective import ObjectiveConfig
from engine.solo.run import Run, train_solo
from engine.solo.samples import SampleMaker
from engine.solo.trainer import SoloTrainer
from engine.solo.training_config import TrainingConfig
from engine.solo.training_output import describe_training, labels_fingerprint
from engine.solo.validation import plan_validation
from engine.solo.weights import load_network
from engine.store.pseudo_labels import PseudoLabelStore
from engine.store.selection import SelectionConfig
from engine.training.distribution import WorkerContext
from engine.training.loader import load_batches
from engine.training.metrics import read_metrics
from engine.training.order import SampleNumber, batch_numbers
from engine.training.output import check_output, create_output
from engine.training.schedule import OptimiserConfig
from engine.training.settings import RunSettings
from tests.fake_cuda import fake_cuda


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
    return Run(output=output, config=config, settings=settings, context=WorkerContext())


def test_missing_and_replaced_images_are_reported(labelled_folder, make_maker, tiny_training, encode_image):
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
    lines = read_metrics(run.output)
    assert sum(line["unread"] for line in lines) > 0
    assert all(np.isfinite(line["loss"]) for line in lines)
    unread = [
        json.loads(line)
        for key in run.output.keys("log/unread-")
        for line in run.output.read(key).splitlines()
    ]
    assert {line["image_id"] for line in unread} == {"1.png", "3.png"}
    assert len(unread) == sum(line["unread"] for line in lines)


def test_a_corpus_without_readable_images_ends_the_run(labelled_folder, make_maker, tiny_training):
    corpus, _ = labelled_folder
    for path in Path(corpus.uri).iterdir():
        path.write_bytes(b"damaged")
    run = run_of(MemoryObjects(), replace(tiny_training, steps=40))
    with pytest.raises(RunError, match=r"no image of 20 steps in a row could be read, the last .*png"):
        train_solo(run, make_maker(tiny_training))


def test_a_resumed_run_ends_with_the_same_bytes(make_maker, tiny_training, tmp_path):
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
    lines = [{**line, "images_per_s": 0} for line in read_metrics(parts.output)]
    assert lines == [{**line, "images_per_s": 0} for line in read_metrics(whole.output)]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]


def test_instances_are_weighted_by_stability(labelled_folder, stable_version, tiny_training, tmp_path):
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
    weights = [float(sample.targets.adaptive.instance_weights[0]) for sample in samples]
    np.testing.assert_allclose(weights, (np.array([0, 0.5, 1, 1.5, 2]) + 0.1) / 2.1, rtol=1e-6)
    targets = samples[0].targets
    phi = targets.adaptive.pixel_weights
    assert phi.shape == targets.masks.shape
    assert (phi[:, targets.on_image == 0] == 0).all()
    assert phi.max() > 0.9
    run = run_of(MemoryObjects(), plain)
    train_solo(run, maker)
    assert all(np.isfinite(line["loss"]) and line["mask"] > 0 for line in read_metrics(run.output))
    without = SampleMaker(list_images(unmeasured, SelectionConfig()), corpus, tmp_path / "cache", task)
    with pytest.raises(StoreError, match="these have none"):
        without[SampleNumber(0, 0)]


def test_a_run_starts_from_another_network(make_maker, tiny_training, tmp_path):
    maker, first = make_maker(tiny_training), LocalObjects(tmp_path / "first")
    train_solo(run_of(first, replace(tiny_training, steps=2)), maker)
    uri = f"{first.uri}/network.safetensors"
    # With next to no learning rate the weights stay the initial ones, although the networks' seeds differ.
    still = replace(
        tiny_training,
        solo=replace(tiny_training.solo, seed=5),
        optimiser=OptimiserConfig(learning_rate=1e-30, warmup_steps=0, weight_decay=0),
    )
    second = replace(run_of(LocalObjects(tmp_path / "second"), still), init_from=uri)
    train_solo(second, maker)
    initial, final = (
        load_network(f"{output.uri}/network.safetensors", torch.device("cpu"))[0].state_dict()
        for output in (first, second.output)
    )
    torch.testing.assert_close(final, initial, rtol=0, atol=1e-20)
    wider = replace(tiny_training, solo=replace(tiny_training.solo, mask_channels=8))
    with pytest.raises(WeightsError, match="of another configuration"):
        train_solo(replace(run_of(MemoryObjects(), wider), init_from=uri), maker)


def test_tensorboard_reads_the_log(make_maker, tiny_training, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = run_of(LocalObjects(tmp_path / "out"), tiny_training)
    train_solo(run, make_maker(tiny_training))
    accumulator = EventAccumulator(str(tmp_path / "out/log/events.out.tfevents.000000000"))
    accumulator.Reload()
    assert [event.step for event in accumulator.Scalars("loss")] == [1, 2]


def test_an_output_knows_its_configuration_and_labels(tiny_training):
    output, labels = MemoryObjects(), {"version": "round-000-a"}
    assert not create_output(output, describe_training(tiny_training, labels), resume=False)
    assert not check_output(output, describe_training(tiny_training, labels), resume=True)
    other = describe_training(replace(tiny_training, steps=7), {"version": "round-000-b"})
    with pytest.raises(ConfigurationError, match="differs in labels, steps"):
        check_output(output, other, resume=True)


def test_a_fingerprint_is_of_the_labels_not_of_their_shards(labelled_folder):
    _, version = labelled_folder
    store = PseudoLabelStore(MemoryObjects())
    same, other = store.begin(version.info, "resume"), store.begin(replace(version.info, round=1), "resume")
    same.commit(0, list(version.outcomes()))
    other.commit(0, list(version.outcomes())[1:])
    assert labels_fingerprint(same) == labels_fingerprint(version)
    assert labels_fingerprint(other)["content"] != labels_fingerprint(version)["content"]
    same.commit(1, list(version.outcomes())[:1])
    assert labels_fingerprint(same) != labels_fingerprint(version)


def test_a_gradient_that_is_not_finite_leaves_the_weights(make_maker, tiny_training):
    maker = make_maker(tiny_training)
    trainer = SoloTrainer(tiny_training, WorkerContext())
    weight = trainer.network.mask_branch.output[0].weight
    weight.register_hook(lambda gradient: gradient * torch.inf)
    before = weight.detach().clone()
    batch = next(load_batches(maker, batch_numbers(0, len(maker), 2, range(1), slice(None)), 0, collate))
    with pytest.raises(RunError, match=r"the gradient is (inf|nan) at step 1"):
        trainer.train_step(batch)
    assert torch.equal(weight, before)


def test_a_loss_that_is_not_finite_names_the_images(make_maker, tiny_training):
    maker = make_maker(tiny_training)
    trainer = SoloTrainer(tiny_training, WorkerContext())
    with torch.no_grad():
        trainer.network.mask_branch.output[0].weight[0, 0] = torch.nan
    before = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    numbers = batch_numbers(0, len(maker), 2, range(1), slice(None))
    batch = next(load_batches(maker, numbers, 0, collate))
    with pytest.raises(RunError, match=rf"loss is nan at step 1, among '{batch.image_ids[0]}'"):
        trainer.train_step(batch)
    torch.testing.assert_close(trainer.network.state_dict(), before, equal_nan=True, rtol=0, atol=0)


def test_a_step_measures_the_same_on_a_gpu(make_maker, tiny_training):
    maker = make_maker(tiny_training)
    batch = next(load_batches(maker, batch_numbers(0, len(maker), 2, range(1), slice(None)), 0, collate))
    expected = SoloTrainer(tiny_training, WorkerContext()).train_step(batch)
    with fake_cuda():
        measured = SoloTrainer(tiny_training, WorkerContext(device=torch.device("cuda"))).train_step(batch)
    assert expected.mask > 0
    for name in ("loss", "focal", "mask", "soft", "positives", "fallback_share"):
        assert getattr(measured, name) == pytest.approx(getattr(expected, name), rel=1e-4), name


@pytest.mark.parametrize("precision", ["bfloat16"])
def test_mixed_precision_stays_finite(make_maker, tiny_training, precision):
    run = run_of(MemoryObjects(), replace(tiny_training, precision=precision, steps=3))
    train_solo(run, make_maker(tiny_training))
    assert all(np.isfinite(line["loss"]) for line in read_metrics(run.output))


def test_a_tiny_run_learns_its_discs(make_maker, tiny_training, labelled_folder):
    """From random weights to the masks of the training images, by the superpixel loss."""
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
    run = Run(
        output=MemoryObjects(),
        config=config,
        settings=settings,
        context=WorkerContext(),
        validation=validation,
    )
    train_solo(run, make_maker(config))
    assert read_metrics(run.output)[-1]["mask_AP50"] >= 0.9


def test_networks_are_loaded_with_their_configuration(make_maker, tiny_training, tmp_path, photograph):
    output = LocalObjects(tmp_path / "out")
    run = run_of(output, replace(tiny_training, steps=2))
    train_solo(run, make_maker(tiny_training))
    network, config, digest = load_network(f"{output.uri}/network.safetensors", torch.device("cpu"))
    assert config == tiny_training.solo
    assert len(digest) == 64
    assert len(find_instances(network, [photograph(0)], config)) <= 50
    output.write("other.safetensors", b"\x02\x00\x00\x00\x00\x00\x00\x00{}")
    for name, message in (
        ("other.safetensors", "is not a network written by"),
        ("none.safetensors", "no weights at"),
    ):
        with pytest.raises(WeightsError, match=message):
            load_network(f"{output.uri}/{name}", torch.device("cpu"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrainingConfig(steps=0), "steps is a whole number >= 1, got 0"),
        (lambda: TrainingConfig(steps=2, snapshots=3), "at most as many"),
        (lambda: TrainingConfig(seed=-1), "seed is a seed"),
        (lambda: TrainingConfig(held_out=1), "held_out is a share"),
        (lambda: RunSettings(processes=-1), "processes"),
        (lambda: RunSettings(log_every=0), "log_every"),
        (lambda: AugmentationConfig(flip=2), "flip is a share, 0 to 1"),
        (lambda: AugmentationConfig(scales=(2, 1)), "scales are the smallest"),
        (lambda: OptimiserConfig(learning_rate=0), "learning_rate is a number > 0"),
        (lambda: OptimiserConfig(warmup_steps=-1), "warmup_steps is a whole number >= 0"),
    ],
)
def test_settings_out_of_range_are_named(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()


def test_the_configuration_is_plain_json(tiny_training):
    assert json.loads(json.dumps(asdict(tiny_training)))["objective"] == asdict(ObjectiveConfig())
