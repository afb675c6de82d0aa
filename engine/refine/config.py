"""Configuration of the dense CRF."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args, get_type_hints

from engine.bounds import Bounded, Count, NotNegative, Positive
from engine.errors import ConfigurationError


@dataclass(frozen=True, kw_only=True)
class CrfConfig(Bounded):
    """Mean-field inference in a fully connected CRF with a smoothness kernel on positions and an appearance
    kernel on positions and colours.

    Source: ProMerge (arXiv 2409.18961), section 2.7, for the values; Krähenbühl & Koltun, "Efficient
    Inference in Fully Connected CRFs with Gaussian Edge Potentials" (NeurIPS 2011), eq. 3, for the kernels.
    """

    steps: Count = 10
    """Mean-field updates."""
    gaussian_sigma_xy: Positive = 3.0
    """Standard deviation of the smoothness kernel, in pixels."""
    gaussian_weight: NotNegative = 7.0
    """Weight of the smoothness kernel, in nats."""
    bilateral_sigma_xy: Positive = 50.0
    """Standard deviation of the appearance kernel in space, in pixels."""
    bilateral_sigma_rgb: Positive = 5.0
    """Standard deviation of the appearance kernel in colour, in levels of 0 to 255."""
    bilateral_weight: NotNegative = 10.0
    """Weight of the appearance kernel, in nats."""
    backend: Literal["auto", "numba", "torch", "pydensecrf"] = "auto"
    """Implementation: numba, on the CPU; torch, on the encoder's device; or pydensecrf, the slow reference.
    auto: torch on a GPU, numba elsewhere."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.backend not in (backends := get_args(get_type_hints(CrfConfig)["backend"])):
            raise ConfigurationError(f"backend is one of {', '.join(backends)}, got {self.backend!r}")
