"""A version's identity: the network and the settings that decide its labels.

Two runs whose descriptions are equal give equal labels, and share a version of the store.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from engine import __version__
from engine.corpora import CorpusKind
from engine.labelling.config import LabellingConfig
from engine.store.version_info import VersionInfo


@dataclass(frozen=True, kw_only=True)
class NetworkDescription:
    """The encoder or trained network of a labelling.

    `image_size` is the (height, width) that it takes, `weights_digest` the digest of its weights, `settings`
    the architecture of a trained network.
    """

    image_size: tuple[int, int]
    weights_digest: str
    settings: dict[str, Any]


def describe_network(config: LabellingConfig) -> NetworkDescription:
    """Load what workers will load, so that mistakes show at once. Raises WeightsError, ConfigurationError."""
    # torch takes seconds to import.
    from engine.labelling.labeller import load_labeller

    # Nothing is encoded here: centring waits for the statistics of the corpus.
    plain = replace(config, encoder=replace(config.encoder, centring="none"))
    labeller = load_labeller(plain, device="cpu")
    return NetworkDescription(
        image_size=labeller.image_size,
        weights_digest=labeller.weights_digest,
        settings=labeller.settings,
    )


def describe_labelling(config: LabellingConfig, network: NetworkDescription) -> dict[str, Any]:
    """Everything that decides an image's labels except the weights, as a version's configuration holds it."""
    configuration: dict[str, Any] = asdict(config)
    configuration["encoder"] = config.encoder.describe()
    del configuration["encoder"]["weights"]
    if config.uses_network:
        # Versions have always held the batch size and precision of a network here.
        configuration["encoder"] |= {
            "batch_size": config.network.batch_size,
            "precision": config.network.precision,
        }
    if config.method != "tree":
        # Versions older than the method do not hold its settings.
        del configuration["tree"]
    # Weights are identified by their digests, wherever they are.
    del configuration["network"]
    configuration["refine"] = "crf" if config.uses_crf else "none"
    return configuration | network.settings


def describe_first_round(
    config: LabellingConfig,
    network: NetworkDescription,
    corpus_kind: CorpusKind,
    *,
    shard_size: int,
    chunk_size: int,
    limit: int | None,
) -> VersionInfo:
    """The identity of round 0, labelled from a corpus; the device is filled in when it is known."""
    run = {"shard_size": shard_size, "chunk_size": chunk_size, "limit": limit}
    return VersionInfo(
        round=0,
        configuration=describe_labelling(config, network) | run,
        weights_digest=network.weights_digest,
        parent=None,
        code_version=__version__,
        device="",
        corpus_kind=corpus_kind,
    )


def describe_next_round(
    config: LabellingConfig,
    network: NetworkDescription,
    parent: VersionInfo,
    *,
    chunk_size: int,
    training: Mapping[str, Any],
) -> VersionInfo:
    """The identity of the round after `parent`, labelled by a network whose `training` is described."""
    configuration = describe_labelling(config, network) | {"chunk_size": chunk_size} | dict(training)
    return replace(
        parent,
        round=parent.round + 1,
        configuration=configuration,
        weights_digest=network.weights_digest,
        parent=parent.name,
        code_version=__version__,
        device="",
    )
