"""What jobs that label annotated images share: finding them, encoding them, showing how far they are."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from engine.corpora import Corpus
from engine.encoders import Encoder
from engine.feature_cache import CachedImages, FeatureCache, cache_features
from engine.ground_truth import read_ground_truth, thin_out
from engine.labelling import LabellingConfig
from engine.matching import Match, match_images
from engine.sweep import SweptImage
from engine.types import ImageRecord

_SECONDS_BETWEEN_LINES = 10.0
_LISTED = 5


class ProgressLine:
    """So many of so many are done: one line that changes on a terminal, a line from time to time in a log."""

    def __init__(self, what: str, total: int) -> None:
        self._what = what
        self._total = total
        self._start = self._last = time.monotonic()

    def show(self, done: int) -> None:
        now = time.monotonic()
        left_s = (now - self._start) / max(done, 1) * (self._total - done)
        line = f"{self._what}: {done} of {self._total}, about {left_s:.0f} s left"
        if sys.stderr.isatty():
            print(f"\r\x1b[K{line if done < self._total else ''}", end="", file=sys.stderr, flush=True)
        elif now - self._last >= _SECONDS_BETWEEN_LINES:
            self._last = now
            print(line, file=sys.stderr, flush=True)


def annotated_images(corpus: Corpus, ground_truth: str, limit: int | None) -> list[Match[ImageRecord]]:
    """The annotated images of a corpus, at most `limit` of them, spread evenly."""
    records = ((record, record) for record in corpus.records())
    return thin_out(match_images(records, list(read_ground_truth(ground_truth))), limit)


def encode_images(
    corpus: Corpus,
    matches: Sequence[Match[ImageRecord]],
    encoder: Encoder,
    config: LabellingConfig,
    cache: FeatureCache,
) -> tuple[tuple[SweptImage, ...], CachedImages]:
    """The images with their features in the cache; those of another size than the truth's are left out."""
    progress = ProgressLine(f"encoding with {encoder.name}", len(matches))
    records = [match.item for match in matches]
    cached = cache_features(corpus, records, encoder, config, cache, progress.show)
    for image_id, reason in list(cached.rejected.items())[:_LISTED]:
        print(f"cannot read {image_id!r}: {reason}")
    images = []
    for match in matches:
        image_id, truth = match.item.image_id, match.truth
        if cached.sizes.get(image_id, truth.size) == truth.size:
            images.append(SweptImage(truth=truth, key=cached.keys.get(image_id)))
        else:
            print(
                f"left out {image_id!r}: it is {cached.sizes[image_id]}, the ground truth says {truth.size}"
            )
    return tuple(images), cached
