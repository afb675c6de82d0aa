"""Which training a round's labels came from, and where that training is kept."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from engine.errors import StoreError
from engine.objects.object_store import ObjectStore
from engine.selftraining.rounds import SelfTrainingConfig
from engine.solo.training_output import RESULT_KEY, labels_fingerprint
from engine.store.pseudo_labels import PseudoLabelStore, Version
from engine.store.version_info import describe_difference


def round_folder(number: int) -> str:
    """The folder, within the output, of the training on a round's labels.

    >>> round_folder(1)
    'round-001'
    """
    return f"round-{number:03d}"


def network_before(output: ObjectStore, config: SelfTrainingConfig, number: int) -> str | None:
    """URI of the network that a round's training starts from; None for a training from scratch."""
    if number == 0 or config.later.begin == "scratch":
        return None
    return f"{output.uri}/{round_folder(number - 1)}/{RESULT_KEY}"


def training_data(version: Version, init_from: str | None) -> dict[str, str]:
    """The labels and the initial network of a training, as its output's description holds them."""
    return {**labels_fingerprint(version), "init_from": version.info.weights_digest if init_from else ""}


def describe_round_training(config: SelfTrainingConfig, number: int) -> dict[str, Any]:
    """The training on a round's labels, as the next round's configuration holds it."""
    training = asdict(config.training_of(number))
    # Without the location of initial weights: they are part of the networks, whose digests are recorded.
    training["solo"].pop("backbone_weights")
    return {"training": training, "begin": "scratch" if number == 0 else config.later.begin}


def check_next_round(store: PseudoLabelStore, version: Version, config: SelfTrainingConfig) -> None:
    """Raise StoreError, before a training, if the store's next round came from another training than this."""
    number = version.info.round
    if number + 1 not in store.rounds():
        return
    theirs = store.version(number + 1).info
    configuration = {**theirs.configuration, **describe_round_training(config, number)}
    ours = replace(theirs, parent=version.name, configuration=configuration)
    if ours.digest != theirs.digest:
        raise StoreError(
            f"{store.uri} holds round {number + 1} of another training "
            f"({describe_difference(theirs, ours)}); give those flags, or another --store and --output"
        )
