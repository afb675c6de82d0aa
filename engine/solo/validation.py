"""How well a network does on images that it does not learn from, while it learns from the others."""

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
from engine.solo.samples import list_held_out
from engine.solo.training import TrainingConfig
from engine.types import ImageRecord

if TYPE_CHECKING:
    from engine.solo.network import SoloNetwork
    from engine.store.pseudo_labels import Version


@dataclass(frozen=True, kw_only=True, eq=False)
class Validation:
    """Held-out images of a corpus, and what people drew in them."""

    corpus: Corpus
    images: tuple[tuple[ImageRecord, AnnotatedImage], ...]
    decoding: DecodingConfig

    def measure(self, network: SoloNetwork, config: SoloConfig) -> Mapping[str, float]:
        """AP and AP50 of masks and boxes, 0 to 1, by name; an unreadable image counts as empty."""
        was_training = network.training
        network.eval()
        measured = [
            EvaluatedImage(truth=truth, instances=self._find(network, config, record))
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

    def _find(self, network: SoloNetwork, config: SoloConfig, record: ImageRecord) -> Instances | None:
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
    """The images among `records`, those that training leaves out, of which the truth is known.

    Raises CorpusError where few or none of them are in the ground truth.
    """
    matches = match_images(((record, record) for record in records), truths)
    return Validation(
        corpus=corpus, images=tuple((match.item, match.truth) for match in matches), decoding=decoding
    )


def plan_held_out(
    version: Version, corpus: Corpus, truths: Sequence[AnnotatedImage], training: TrainingConfig
) -> Validation:
    """The part that is not trained on, with its truth."""
    held_out = list_held_out(version, training.held_out)
    return plan_validation(corpus, held_out, truths, training.samples.decoding)
