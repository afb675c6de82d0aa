"""A version stays the same configuration when the code changes and its settings do not."""

from dataclasses import replace

import pytest

from engine.encoders import EncoderConfig
from engine.images.tiling import TilingConfig
from engine.labelling.config import LabellingConfig, NetworkConfig
from engine.labelling.description import (
    NetworkDescription,
    describe_first_round,
    describe_labelling,
    describe_network,
    describe_next_round,
)
from engine.store.version_info import VersionInfo

DESCRIPTOR = EncoderConfig(name="descriptor", batch_size=4, precision="float32")
TILED = LabellingConfig(method="multicut", encoder=DESCRIPTOR, tiling=TilingConfig(tile=64))
FIXED = NetworkDescription(image_size=(64, 64), weights_digest="fixed", settings={})
SOLO = NetworkDescription(
    image_size=(64, 64), weights_digest="last", settings={"network": {}, "earlier_networks": ["first"]}
)
BY_NETWORK = LabellingConfig(
    method="solo",
    network=NetworkConfig(weights="b", earlier_weights=("a",), batch_size=5, precision="bfloat16"),
)


def describe(config: LabellingConfig, network: NetworkDescription) -> VersionInfo:
    return describe_first_round(config, network, "folder", shard_size=1000, chunk_size=8, limit=None)


@pytest.mark.parametrize(
    ("config", "network", "digest"),
    [
        (LabellingConfig(method="promerge", encoder=DESCRIPTOR), FIXED, "d01a00dcee45"),
        (
            LabellingConfig(method="multicut", encoder=DESCRIPTOR, tiling=TilingConfig(tile=64)),
            FIXED,
            "bbce737036d1",
        ),
        (
            LabellingConfig(method="promerge", encoder=EncoderConfig(precision="float32")),
            FIXED,
            "9a23172fbff0",
        ),
        (BY_NETWORK, SOLO, "b5f3d0c42d35"),
    ],
)
def test_stores_of_the_first_versions_are_the_same_configuration(
    config: LabellingConfig, network: NetworkDescription, digest: str
) -> None:
    assert describe(config, network).digest == digest


def test_places_of_weights_are_no_part_of_it() -> None:
    moved = replace(
        BY_NETWORK, network=replace(BY_NETWORK.network, weights="s3://b", earlier_weights=("s3://a",))
    )
    assert describe(moved, SOLO) == describe(BY_NETWORK, SOLO)
    vit = EncoderConfig(name="vit_small_patch16_224", weights="a.pth")
    described = describe(LabellingConfig(encoder=vit), FIXED)
    assert described == describe(LabellingConfig(encoder=replace(vit, weights="b.pth")), FIXED)
    assert "a.pth" not in str(described)


def test_everything_else_is_part_of_it() -> None:
    first = describe(LabellingConfig(), FIXED)
    others = [
        describe(LabellingConfig(refine="crf"), FIXED),
        describe(LabellingConfig(tiling=TilingConfig(tile=64)), FIXED),
        describe(LabellingConfig(), replace(FIXED, weights_digest="other")),
        describe_first_round(LabellingConfig(), FIXED, "folder", shard_size=1000, chunk_size=8, limit=5),
        describe_first_round(LabellingConfig(), FIXED, "folder", shard_size=999, chunk_size=8, limit=None),
    ]
    assert len({info.digest for info in (first, *others)}) == 6
    # auto is described by what it means.
    assert describe(LabellingConfig(refine="none"), FIXED) == first
    batch = replace(BY_NETWORK, network=replace(BY_NETWORK.network, batch_size=1))
    assert describe(batch, SOLO).digest != describe(BY_NETWORK, SOLO).digest


def test_a_later_round_names_its_parent_and_its_training() -> None:
    first = describe(LabellingConfig(), FIXED)
    training = {"training": {"steps": 3}, "begin": "scratch"}
    later = describe_next_round(BY_NETWORK, SOLO, first, chunk_size=2, training=training)
    assert (later.round, later.parent, later.corpus_kind) == (1, first.name, "folder")
    expected = {**describe_labelling(BY_NETWORK, SOLO), "chunk_size": 2, **training}
    assert later.configuration == expected
    assert "shard_size" not in later.configuration


def test_an_encoder_is_described_by_its_size_and_weights() -> None:
    found = describe_network(LabellingConfig(encoder=replace(DESCRIPTOR, image_size=100)))
    assert found.image_size == (96, 96)
    assert (len(found.weights_digest), found.settings) == (64, {})
