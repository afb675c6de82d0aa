#!/usr/bin/env python
"""Copy a label store with known faults, to study what self-training makes of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Annotated, Literal

import numpy as np

from engine import __version__
from engine.bounds import Bounded, Bounds
from engine.errors import ConfigurationError
from engine.masks.packing import make_instances
from engine.masks.rle import decode_rles
from engine.objects.object_store import open_objects
from engine.solo.labelled_images import is_held_out
from engine.store.planning import check_is_finished
from engine.store.pseudo_labels import PseudoLabelStore
from engine.types import Outcome
from jobs.cli.console import run_job

Fault = Literal["phantom", "half", "missing"]
# Rows and columns of the phantom, in shares of the image's height and width.
_PHANTOM_ROWS, _PHANTOM_COLUMNS = (0.7, 0.9), (0.1, 0.3)
_MISSING_SHARE = 0.5


@dataclass(frozen=True, kw_only=True)
class CorruptLabelsArguments(Bounded):
    """Copy a store's labels with a systematic fault, which a network learns: stable and wrong predictions.

    Run jobs/self_train.py on the copy and jobs/evaluate.py --score stability on its rounds to learn whether
    stability tells right labels from wrong ones in images like these.

    Exit codes: 0 done, 1 failed, 2 wrong use.
    """

    store: str
    """Label store: a folder or s3://bucket/prefix."""
    output: str
    """Store to write the noisy labels to: a new folder or s3://bucket/prefix."""
    round: int | None = None
    """Round of labels to copy; the latest by default. The copy is round 0 of its store."""
    fault: Fault = "phantom"
    """phantom: one more object, in the same place of every image; half: all objects lose their lower half;
    missing: half of all objects, drawn by hash, are removed, but never the last one of an image."""
    share: Annotated[float, Bounds(0, 1, "a share", above=True)] = 1.0
    """Share of the images that are made noisy, chosen by a hash of their ids."""


def main(arguments: CorruptLabelsArguments) -> None:
    version = PseudoLabelStore(open_objects(arguments.store)).version(arguments.round)
    check_is_finished(version)
    if open_objects(arguments.output).uri == open_objects(arguments.store).uri:
        raise ConfigurationError("--output is the store itself: give another folder or prefix for the copy")
    fault = {"fault": arguments.fault, "share": arguments.share}
    info = replace(
        version.info,
        round=0,
        configuration={"noisy": fault, "from": asdict(version.info)},
        parent=version.name,
        code_version=__version__,
    )
    noisy = PseudoLabelStore(open_objects(arguments.output)).begin(info, "resume")
    num_images = 0
    for plan in version.plans():
        noisy.record_plan(plan)
        outcomes = []
        for outcome in version.shard(plan.index):
            is_chosen = is_held_out(f"noisy {outcome.record.image_id}", arguments.share)
            is_chosen = is_chosen and outcome.instances is not None
            num_images += is_chosen
            outcomes.append(add_label_noise(outcome, arguments.fault) if is_chosen else outcome)
        noisy.commit(plan.index, outcomes)
    noisy.finish()
    print(f"labels: {arguments.output} (version {noisy.name}), {num_images} noisy images")


def add_label_noise(outcome: Outcome, fault: Fault) -> Outcome:
    """Add the fault to a labelled image."""
    instances = outcome.instances
    assert instances is not None
    if fault == "missing":
        names = (f"missing {outcome.record.image_id} {number}" for number in range(len(instances)))
        is_kept = np.array([not is_held_out(name, _MISSING_SHARE) for name in names])
        is_kept[0] |= not is_kept.any()
        return replace(outcome, instances=instances.keep(is_kept))
    height, width = instances.size
    masks, scores = decode_rles(instances.rles, instances.size), instances.scores
    if fault == "half":
        for mask, (_, top, _, bottom) in zip(masks, instances.boxes_xyxy.tolist(), strict=True):
            mask[(top + bottom + 1) // 2 :] = False
    else:
        phantom = np.zeros((1, height, width), bool)
        rows, columns = (
            slice(int(start * length), int(stop * length) + 1)
            for (start, stop), length in ((_PHANTOM_ROWS, height), (_PHANTOM_COLUMNS, width))
        )
        phantom[:, rows, columns] = True
        masks = np.concatenate([masks, phantom])
        # The best score of the image, so that no selection by score drops it.
        scores = np.append(scores, scores.max(initial=0))
    made = make_instances(masks, scores.astype(np.float32), instances.size, instances.method)
    return replace(outcome, instances=made)


if __name__ == "__main__":
    run_job(CorruptLabelsArguments, main)
