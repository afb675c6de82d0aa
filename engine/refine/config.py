"""Settings of the dense CRF."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from engine.errors import ConfigurationError


@dataclass(frozen=True, kw_only=True)
class CrfConfig:
    """The fully connected CRF that fits coarse masks to an image.

    `steps` mean-field updates of two Gaussian kernels: a smoothness kernel on positions (`gaussian_*`) and
    an appearance kernel on positions and colours (`bilateral_*`). Standard deviations `*_sigma_xy` are in
    pixels, `bilateral_sigma_rgb` in grey levels of 0..255; weights are in units of energy (nats).
    `backend` says who computes it: "pydensecrf", the C++ reference, one mask at a time; or "numba", all
    masks of an image together.

    Source: ProMerge (arXiv 2409.18961), section 2.7, for the values; Krähenbühl & Koltun, "Efficient
    Inference in Fully Connected CRFs with Gaussian Edge Potentials" (NeurIPS 2011), eq. 3, for the kernels.
    """

    steps: int = 10
    gaussian_sigma_xy: float = 3.0
    gaussian_weight: float = 7.0
    bilateral_sigma_xy: float = 50.0
    bilateral_sigma_rgb: float = 5.0
    bilateral_weight: float = 10.0
    backend: Literal["numba", "pydensecrf"] = "numba"

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
        if self.backend not in ("numba", "pydensecrf"):
            raise ConfigurationError(f"backend must be numba or pydensecrf, got {self.backend!r}")
