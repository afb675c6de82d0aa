"""Samples: a function of their number, the labels and the image."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine.errors import StoreError
from engine.masks.packing import make_instances
from engine.objects.memory import MemoryObjects
from engine.solo.augmentation import AugmentationConfig, SampleImage, paste_objects, place_on_canvas
from engine.solo.labelled_images import list_held_out, list_images
from engine.solo.samples import SampleMaker, cut_superpixels
from engine.store.pseudo_labels import PseudoLabelStore
from engine.store.selection import SelectionConfig
from engine.superpixels import SuperpixelConfig
from engine.superpixels.hierarchy import number_by_first_pixel
from engine.training.order import SampleNumber
from engine.types import ImageRecord, Outcome, Status


def equal_samples(one, other):
    return (
        np.array_equal(one.shown_chw, other.shown_chw)
        and np.array_equal(one.targets.masks, other.targets.masks)
        and np.array_equal(one.targets.superpixels.states, other.targets.superpixels.states)
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
    # Image 0 has no instance, so only the held-out images count it.
    assert len(trained) + len(held_out - {"0.png"}) == 5
    with_empty = replace(tiny_training, keep_empty=True)
    assert len(make_maker(with_empty)) == 6
    assert make_maker(with_empty)[SampleNumber(0, 0)].targets.masks.shape == (0, 256)
    with pytest.raises(StoreError, match="no image with a selected instance"):
        list_images(version, SelectionConfig(min_score=5))


def test_a_sample_is_a_function_of_its_number(make_maker, tiny_training):
    maker, again = make_maker(tiny_training), make_maker(tiny_training)
    first = maker[SampleNumber(0, 1)]
    assert equal_samples(first, again[SampleNumber(0, 1)])
    assert not equal_samples(first, maker[SampleNumber(1, 1)])
    assert not equal_samples(first, make_maker(replace(tiny_training, seed=1))[SampleNumber(0, 1)])


def test_without_augmentation_the_image_is_the_one_of_inference(make_maker, tiny_training):
    plain = replace(
        tiny_training, samples=replace(tiny_training.samples, augmentation=AugmentationConfig.none())
    )
    sample = make_maker(plain)[SampleNumber(3, 0)]
    on_image = sample.targets.on_image.reshape(16, 16)
    assert on_image[:12].all()
    assert not on_image[12:].any()
    assert (sample.shown_chw[:, 48:] == 0).all()
    # A disc of radius 12, not resized.
    assert sample.targets.masks.sum() * 16 == pytest.approx(np.pi * 144, rel=0.1)


def test_superpixels_are_computed_at_the_images_own_size():
    # Stripes of 3 pixels, which vanish at a quarter of the size.
    stripes = np.repeat(np.repeat(np.uint8([[0, 255] * 20]), 3, axis=1), 60, axis=0)
    image = np.repeat(stripes[..., None], 3, axis=2)
    config = SuperpixelConfig(num_segments=40, method="felzenszwalb")
    labels = cut_superpixels(image, (15, 30), config)
    assert labels.shape == (15, 30)
    assert np.array_equal(np.unique(labels), np.arange(labels.max() + 1))
    assert labels.max() + 1 == 30
    assert cut_superpixels(image, (15, 30), config, max_side=30).max() < 20


def test_pasted_objects_hide_what_is_behind(make_canvas):
    behind = make_canvas(0, [(0, 0, 30, 30), (40, 40, 44, 44)])
    front = make_canvas(1, [(20, 20, 50, 50)])
    rng = np.random.default_rng(0)
    pasted = behind
    while pasted is behind:
        pasted = paste_objects(behind, front, rng)
    # The small object is hidden; the large one loses a corner.
    assert len(pasted.masks) == 2
    assert not (pasted.masks[0] & pasted.masks[1]).any()
    assert np.array_equal(pasted.masks[1], front.masks[0])
    assert pasted.weights.tolist() == [behind.weights[0], front.weights[0]]
    assert (pasted.image_hwc[front.masks[0]] == front.image_hwc[front.masks[0]]).all()
    on_image = pasted.superpixels >= 0
    assert np.array_equal(np.unique(pasted.superpixels[on_image]), np.arange(pasted.superpixels.max() + 1))


@pytest.mark.parametrize("scale", [0.3, 1.0, 2.5])
def test_scaled_images_stay_within_the_square(scale):
    rng = np.random.default_rng(2)
    labels = number_by_first_pixel(rng.integers(0, 9, (40, 64)))
    source = SampleImage(
        image_hwc=rng.integers(0, 255, (40, 64, 3)).astype(np.uint8),
        masks=np.ones((1, 40, 64), bool),
        weights=np.ones(1, np.float32),
        superpixels=labels,
    )
    canvas = place_on_canvas(source, 64, AugmentationConfig(scales=(scale, scale)), rng)
    assert canvas.image_hwc.shape == (64, 64, 3)
    assert np.array_equal(canvas.masks[0], canvas.superpixels >= 0)
    assert canvas.masks[0].sum() == min(round(40 * scale), 64) * min(round(64 * scale), 64)


def test_ignored_instances_are_neither_learned_nor_background(labelled_folder, tiny_training, tmp_path):
    corpus, version = labelled_folder
    plain = replace(
        tiny_training, samples=replace(tiny_training.samples, augmentation=AugmentationConfig.none())
    )

    def make(**arguments):
        images = list_images(version, **arguments)
        return images, SampleMaker(images, corpus, tmp_path / "cache", plain.sample_task)

    everything, whole = make(selection=SelectionConfig())
    # Each image has one disc: three are learned, and two are ignored for their low score.
    strict = SelectionConfig(min_score=0.35)
    images, maker = make(selection=strict, keep_empty=True, ignore_above_score=0.0)
    names = [images.record(index).image_id for index in range(len(images))]
    num_ignored = 0
    for index in range(len(everything)):
        sample = whole[SampleNumber(0, index)]
        other = names.index(everything.record(index).image_id)
        ignoring = maker[SampleNumber(0, other)]
        if images.weights(other, None).tolist() == [1.0]:
            assert equal_samples(ignoring, sample)
            assert np.array_equal(ignoring.targets.cells.objectness, sample.targets.cells.objectness)
        else:
            num_ignored += 1
            assert len(ignoring.targets.masks) == len(ignoring.targets.cells.indices) == 0
            assert np.array_equal(
                ignoring.targets.cells.objectness.isnan(), sample.targets.cells.objectness == 1
            )
    assert num_ignored == 2
    # With a score below `ignore_above_score` they are background.
    _, taught = make(selection=strict, keep_empty=True, ignore_above_score=0.3499)
    assert all(
        taught[SampleNumber(0, i)].targets.cells.objectness.isfinite().all() for i in range(len(images))
    )


def test_ignored_objects_are_not_pasted(make_canvas):
    behind, front = make_canvas(0, [(0, 0, 30, 30)]), make_canvas(1, [(20, 20, 50, 50)])
    ignored = replace(front, weights=np.zeros(1, np.float32))
    assert all(paste_objects(behind, ignored, np.random.default_rng(seed)) is behind for seed in range(8))


def test_cached_images_are_those_that_were_labelled(
    labelled_folder, tiny_training, encode_image, make_maker, tmp_path
):
    corpus, version = labelled_folder
    path = Path(corpus.uri) / "1.png"
    number = SampleNumber(0, 0)
    assert make_maker(tiny_training)[number].failure == ""
    # Another file of the same name and size, labelled again.
    path.write_bytes(encode_image(np.zeros((48, 64, 3), np.uint8), "PNG"))
    outcomes = list(version.outcomes())
    (position,) = (i for i, row in enumerate(outcomes) if row.record.image_id == "1.png")
    for sha256, expected in ((hashlib.sha256(path.read_bytes()).hexdigest(), ""), ("0", "not the one")):
        outcomes[position] = replace(outcomes[position], sha256=sha256)
        again = PseudoLabelStore(MemoryObjects()).begin(version.info, "resume")
        again.commit(0, outcomes)
        images = list_images(again, SelectionConfig())
        sample = SampleMaker(images, corpus, tmp_path / "cache", tiny_training.sample_task)[number]
        assert expected in sample.failure
        assert (sample.failure == "") == (expected == "")
        assert sample.shown_chw.max() < 100


def test_an_image_too_thin_for_a_superpixel_is_reported(
    labelled_folder, tiny_training, encode_image, tmp_path
):
    corpus, version = labelled_folder
    (Path(corpus.uri) / "1.png").write_bytes(encode_image(np.zeros((16, 1024, 3), np.uint8), "PNG"))
    instances = make_instances(np.ones((1, 16, 1024), bool), np.float32([1]), (16, 1024), "promerge")
    thin = Outcome(
        record=ImageRecord(image_id="1.png", path="1.png"),
        status=Status.LABELLED,
        height=16,
        width=1024,
        instances=instances,
    )
    labels = PseudoLabelStore(MemoryObjects()).begin(version.info, "resume")
    labels.commit(0, [thin])
    augmentation = AugmentationConfig.none()
    plain = replace(tiny_training, samples=replace(tiny_training.samples, augmentation=augmentation))
    images = list_images(labels, SelectionConfig())
    maker = SampleMaker(images, corpus, tmp_path / "cache", plain.sample_task)
    assert "so thin" in maker[SampleNumber(0, 0)].failure
