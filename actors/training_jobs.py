"""What the workers of a training run: SOLO on labels, or an encoder on images without labels."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from engine.corpora import Corpus
from engine.objects.object_store import ObjectStore
from engine.store.pseudo_labels import Version
from engine.training.distribution import WorkerContext
from engine.training.metrics import Report
from engine.training.settings import RunSettings

# Networks take seconds to import, and the driver and Ray's controller do not need them: `train` imports them.
if TYPE_CHECKING:
    from engine.pretraining.config import PretrainingConfig
    from engine.solo.training_config import TrainingConfig
    from engine.solo.validation import Validation


@dataclass(frozen=True, kw_only=True, eq=False)
class SoloJob:
    """A training of SOLO on a version of labels.

    `cache` is a local folder on each node; `init_from` is the URI of a network to start from.
    """

    version: Version
    corpus: Corpus
    output: ObjectStore
    config: TrainingConfig
    settings: RunSettings
    cache: Path
    validation: Validation | None = None
    init_from: str | None = None
    name: str = "train_solo"

    def train(self, context: WorkerContext, report: Report, on_checkpoint: Callable[[int], None]) -> None:
        """See `TrainingJob`."""
        from engine.solo.labelled_images import list_images
        from engine.solo.run import Run, train_solo
        from engine.solo.samples import SampleMaker

        config = self.config
        _use_deterministic_algorithms(config.deterministic)
        images = list_images(
            self.version, config.selection, config.keep_empty, config.held_out, config.ignore_above_score
        )
        run = Run(
            output=self.output,
            config=config,
            settings=self.settings,
            context=context,
            report=report,
            on_checkpoint=on_checkpoint,
            validation=self.validation,
            init_from=self.init_from,
        )
        train_solo(run, SampleMaker(images, self.corpus, self.cache, config.sample_task))


@dataclass(frozen=True, kw_only=True, eq=False)
class PretrainingJob:
    """Pre-training of an encoder on corpora; `cache` is a local folder on each node."""

    corpora: tuple[Corpus, ...]
    output: ObjectStore
    config: PretrainingConfig
    settings: RunSettings
    cache: Path
    name: str = "pretrain_encoder"

    def train(self, context: WorkerContext, report: Report, on_checkpoint: Callable[[int], None]) -> None:
        """See `TrainingJob`."""
        from engine.pretraining.run import Run, pretrain

        pretrain(
            Run(
                corpora=self.corpora,
                output=self.output,
                config=self.config,
                settings=self.settings,
                context=context,
                cache=self.cache,
                report=report,
                on_checkpoint=on_checkpoint,
            )
        )


def _use_deterministic_algorithms(wanted: bool) -> None:
    if wanted:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(wanted)
