"""Settings that depend on encoder and corpus, chosen from a few images."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.corpora import FolderCorpus
from engine.encoders import EncoderConfig, FeatureStatistics
from engine.errors import ConfigurationError, StoreError
from engine.labelling.calibration import (
    Calibration,
    calibrate,
    choose_multicut,
    choose_promerge,
    measure_features,
)
from engine.labelling.config import LabellingConfig
from engine.objects.memory import MemoryObjects
from engine.proposals.config import MultiCutConfig, ProMergeConfig
from engine.store.pseudo_labels import PseudoLabelStore
from engine.store.version_info import VersionInfo

UNKNOWN = EncoderConfig(name="test_vit", weights="random", image_size=64, precision="float32")


@pytest.fixture
def corpus(
    tmp_path: Path, photograph: Callable[[int], np.ndarray], encode_image: Callable[..., bytes]
) -> FolderCorpus:
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(encode_image(photograph(number), "PNG"))
    (tmp_path / "broken.png").write_bytes(b"not an image")
    return FolderCorpus.open(str(tmp_path))


def features(spread: float) -> torch.Tensor:
    """Unit features (4, 12, 10, 16) around a shared direction: the larger the spread, the less they share."""
    drawn = torch.randn((4, 12, 10, 16), generator=torch.Generator().manual_seed(0)) * spread
    drawn[..., 0] += 1
    return torch.nn.functional.normalize(drawn, dim=-1)


def test_an_encoder_that_is_known_to_fit_is_not_measured(corpus: FolderCorpus) -> None:
    config = LabellingConfig(encoder=EncoderConfig(name="descriptor"))
    calibration = calibrate(corpus, config, "cpu")
    assert calibration == Calibration(
        precision="float32", centring="none", statistics=None, promerge={}, multicut={}
    )


def test_the_choice_is_repeatable_and_survives_as_json(corpus: FolderCorpus) -> None:
    config = LabellingConfig(method="multicut", encoder=UNKNOWN)
    first, second = (calibrate(corpus, config, "cpu") for _ in range(2))
    assert first == second == Calibration.from_json(first.to_json())
    assert first.statistics is not None
    assert first.statistics.num_images == 3  # without the broken one
    assert first.multicut["biases"] == first.apply(config).multicut.biases
    assert first.apply(config).encoder.centring == first.centring != "auto"


def test_centring_that_is_given_needs_no_measurement(corpus: FolderCorpus) -> None:
    for centring in ("none", "image"):
        resolved, measured = measure_features(
            corpus, replace(UNKNOWN, centring=centring), LabellingConfig().decoding, "cpu"
        )
        assert (resolved.centring, measured) == (centring, None)


def test_a_corpus_without_a_readable_image_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"not an image")
    corpus = FolderCorpus.open(str(tmp_path))
    with pytest.raises(ConfigurationError, match="none of the first images"):
        calibrate(corpus, LabellingConfig(encoder=UNKNOWN), "cpu")


def test_thresholds_move_to_where_the_cosines_are() -> None:
    alike = features(0.1)
    chosen = choose_promerge(alike, ProMergeConfig())
    assert chosen["tau_b"] > 0.5
    flat = alike.reshape(-1, 16).numpy()
    assert 0.2 < float((flat @ flat.T > chosen["tau_b"]).mean()) < 0.6
    assert chosen["merge_similarity"] == pytest.approx(chosen["tau_b"] / 2, abs=1e-3)


def test_thresholds_that_fit_or_are_given_stay() -> None:
    assert choose_promerge(features(1.2), ProMergeConfig()) == {}
    assert "tau_b" not in choose_promerge(features(0.1), ProMergeConfig(tau_b=0.7))
    given = LabellingConfig(method="multicut", multicut=MultiCutConfig(biases=(0.1, 0.2, 0.3)))
    assert choose_multicut(features(1.0), given) == {}


def test_a_version_keeps_the_first_calibration() -> None:
    info = VersionInfo(
        round=0, configuration={}, weights_digest="", parent=None, code_version="", device="cpu"
    )
    version = PseudoLabelStore(MemoryObjects()).begin(info, "resume")
    assert version.calibration() is None
    statistics = FeatureStatistics(mean=(0.5, -1.0), resultant_length=0.9, num_images=2)
    calibration = Calibration(
        precision="bfloat16", centring="corpus", statistics=statistics, promerge={"tau_b": 0.4}, multicut={}
    )
    version.record_calibration(calibration.to_json())
    version.record_calibration({})
    assert Calibration.from_json(version.calibration() or {}) == calibration
    assert calibration.describe() == "bfloat16, centring corpus, promerge.tau_b 0.4"


@pytest.mark.parametrize("damaged", [{}, {"precision": "float32"}, {"statistics": 3}])
def test_a_damaged_calibration_is_told(damaged: dict[str, object]) -> None:
    with pytest.raises(StoreError, match="calibration is damaged"):
        Calibration.from_json(damaged)
