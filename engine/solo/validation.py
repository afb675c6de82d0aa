"""Average precision on held-out images during training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.corpora import Corpus
from engine.errors import ImageError
from engine.evaluation.ground_truth import AnnotatedImage
from engine.evaluation.matching import match_images
from engine.evaluation.protocol import EvaluatedImage, EvaluationProtocol, evaluate
from engine.images.decoding import DecodingConfig, decode_image
from engine.masks.instances import Instances
from engine.solo.config import SoloConfig
from engine.solo.inference import find_instances
from engine.solo.labelled_images import list_held_out
from engine.solo.training_config import TrainingConfig
from engine.types import ImageRecord

if TYPE_CHECKING:
    from engine.solo.network import SoloNetwork
    from engine.store.pseudo_labels import Version


@dataclass(frozen=True, kw_only=True, eq=False)
class Validation:
    """Held-out images of a corpus with their ground truth."""

    corpus: Corpus
    images: tuple[tuple[ImageRecord, AnnotatedImage], ...]
    decoding: DecodingConfig

    def measure(self, network: SoloNetwork, config: SoloConfig) -> Mapping[str, float]:
        """AP and AP50 of masks and boxes, 0 to 1, by name; an unreadable image has no detections."""
        was_training = network.training
        network.eval()
        measured = [
            EvaluatedImage(truth=truth, instances=self._detect(network, config, record))
            for record, truth in self.images
        ]
        network.train(was_training)
        evaluation = evaluate(measured, EvaluationProtocol())
        kinds = {"mask": evaluation.masks.metrics, "box": evaluation.boxes.metrics}
        return {
            f"{kind}_{name}": figures[name] or 0.0
            for kind, figures in kinds.items()
            for name in ("AP", "AP50")
        }

    def _detect(self, network: SoloNetwork, config: SoloConfig, record: ImageRecord) -> Instances | None:
        try:
            image = decode_image(self.corpus.read(record), self.decoding)
        except ImageError:
            return None
        return find_instances(network, [image], config)[0]


def plan_validation(
    corpus: Corpus,
    records: Sequence[ImageRecord],
    truths: Sequence[AnnotatedImage],
    decoding: DecodingConfig,
) -> Validation:
    """A validation on the images among `records` that have ground truth.

    Raises CorpusError if few or none of them have.
    """
    matches = match_images(((record, record) for record in records), truths)
    return Validation(
        corpus=corpus, images=tuple((match.item, match.truth) for match in matches), decoding=decoding
    )


def plan_held_out(
    version: Version, corpus: Corpus, truths: Sequence[AnnotatedImage], training: TrainingConfig
) -> Validation:
    """A validation on the share of a version that `training` holds out. Raises as `plan_validation`."""
    held_out = list_held_out(version, training.held_out)
    return plan_validation(corpus, held_out, truths, training.samples.decoding)
