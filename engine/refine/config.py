"""Settings of the dense CRF."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args, get_type_hints

from engine.errors import ConfigurationError


@dataclass(frozen=True, kw_only=True)
class CrfConfig:
    """The fully connected CRF that fits coarse masks to an image: mean-field inference with two kernels, one
    on positions for smoothness and one on positions and colours for appearance.

    Source: ProMerge (arXiv 2409.18961), section 2.7, for the values; Krähenbühl & Koltun, "Efficient
    Inference in Fully Connected CRFs with Gaussian Edge Potentials" (NeurIPS 2011), eq. 3, for the kernels.
    """

    steps: int = 10
    """Mean-field updates."""
    gaussian_sigma_xy: float = 3.0
    """Standard deviation of the smoothness kernel, in pixels."""
    gaussian_weight: float = 7.0
    """Weight of the smoothness kernel, in nats."""
    bilateral_sigma_xy: float = 50.0
    """Standard deviation of the appearance kernel in space, in pixels."""
    bilateral_sigma_rgb: float = 5.0
    """Standard deviation of the appearance kernel in colour, in grey levels of 0 to 255."""
    bilateral_weight: float = 10.0
    """Weight of the appearance kernel, in nats."""
    backend: Literal["auto", "numba", "torch", "pydensecrf"] = "auto"
    """Who computes it: numba, on the CPU; torch, where the encoder does; or the slow reference, pydensecrf.
    auto: torch on a GPU, numba elsewhere."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigurationError(
                f"steps must be at least 1, got {self.steps}; to skip the CRF do not refine"
            )
        for name in ("gaussian_sigma_xy", "bilateral_sigma_xy", "bilateral_sigma_rgb"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ConfigurationError(f"{name} must be a positive number, got {value}")
        for name in ("gaussian_weight", "bilateral_weight"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigurationError(f"{name} must be 0 or a positive number, got {value}")
        if self.backend not in (backends := get_args(get_type_hints(CrfConfig)["backend"])):
            raise ConfigurationError(f"backend must be one of {', '.join(backends)}, got {self.backend!r}")
