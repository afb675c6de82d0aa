"""What every encoder is: images in, one L2-normalised feature per patch out (METHODS section 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, Protocol

import numpy as np
import tyro
from numpy.typing import NDArray

from engine.errors import ConfigurationError

if TYPE_CHECKING:
    import torch

# The small ViT that travels with the package, and the encoder that has no weights at all.
EMBEDDED, DESCRIPTOR = "embedded", "descriptor"
DEFAULT_WEIGHTS = "hub"


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Which encoder, with which weights, on images of which size."""

    name: Annotated[str, tyro.conf.arg(aliases=("--encoder",))] = EMBEDDED
    """embedded (a small ViT that comes with maskmill), descriptor (colour and texture, no network), or a
    Vision Transformer of timm, with or without a tag: vit_base_patch8_224.dino."""
    weights: Annotated[str, tyro.conf.arg(aliases=("--weights",))] = DEFAULT_WEIGHTS
    """hub (what timm publishes), random (drawn from the seed), a .safetensors, .pth, .pt or .bin file, or its
    s3://bucket/key."""
    image_size: int = 480
    """Side in pixels of the square that images are brought to; used is the largest multiple of the patch."""
    batch_size: int = 8
    """Images in one forward pass of a network; short batches are filled up to it."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Arithmetic of the network; features leave as float16 whatever it is."""
    seed: int = 0
    """Of random weights."""

    def __post_init__(self) -> None:
        if not self.name:
            raise ConfigurationError("the encoder has no name: give embedded, descriptor or a timm ViT")
        if not self.weights:
            raise ConfigurationError("weights are empty: give hub, random, a file or s3://bucket/key")
        if self.image_size < 1:
            raise ConfigurationError(f"image_size must be at least 1 pixel, got {self.image_size}")
        if self.batch_size < 1:
            raise ConfigurationError(f"batch_size must be at least 1 image, got {self.batch_size}")
        if self.precision not in ("float32", "bfloat16", "float16"):
            raise ConfigurationError(
                f"precision must be float32, bfloat16 or float16, got {self.precision!r}"
            )
        if not 0 <= self.seed < 2**63:
            raise ConfigurationError(f"seed must be in [0, 2^63), got {self.seed}")

    def check_fixed_weights(self) -> None:
        """Raise ConfigurationError where settings contradict that an encoder's weights, if any, are given."""
        if self.name in (EMBEDDED, DESCRIPTOR) and self.weights != DEFAULT_WEIGHTS:
            raise ConfigurationError(
                f"the encoder {self.name!r} takes no weights, here {self.weights!r}: leave weights out, or "
                "name a timm ViT as encoder"
            )
        if self.name == DESCRIPTOR and self.precision != "float32":
            raise ConfigurationError(
                f"the encoder {self.name!r} computes in float32 only: leave precision out, or name another"
            )


class Encoder(Protocol):
    """Images to patch features; the same image gives the same bytes whatever else is in the call."""

    @property
    def name(self) -> str:
        """The name it was asked for by."""

    @property
    def feature_size(self) -> int:
        """C, the numbers per patch."""

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels that images should be brought to."""

    @property
    def grid(self) -> tuple[int, int]:
        """(height, width) in patches of an image of `image_size`."""

    @property
    def weights_digest(self) -> str:
        """SHA-256 in hex of what the encoder computes with, independent of file format and place."""

    def encode(self, images: Sequence[NDArray[np.uint8]]) -> torch.Tensor:
        """Features of B RGB images (H, W, 3), all of one size: float16 (B, h, w, C), on the encoder's device.

        Every feature has length 1 up to rounding, or 0 where it vanishes; non-finite ones are left as they
        are, see `finite_rows`. H and W may differ from `image_size`, but must be multiples of the patch.

        Raises: ValueError for arrays of another type or shape.
        """


def finite_rows(features: torch.Tensor) -> torch.Tensor:
    """Which of B images have finite features only: (B, ...) -> bool (B,)."""
    return features.isfinite().flatten(start_dim=1).all(dim=1)


def check_images(images: Sequence[NDArray[np.uint8]], patch_size: tuple[int, int]) -> None:
    """Raise ValueError unless all images are uint8 (H, W, 3) of one size in whole patches."""
    for index, image in enumerate(images):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(
                f"image {index} must be uint8 (H, W, 3), got {image.dtype} {image.shape}: convert it to RGB"
            )
        if image.shape != images[0].shape:
            raise ValueError(
                f"images of one call must have one size, got {images[0].shape[:2]} and {image.shape[:2]}"
            )
        if 0 in image.shape or image.shape[0] % patch_size[0] or image.shape[1] % patch_size[1]:
            raise ValueError(
                f"image {index} is {image.shape[:2]}, no multiple of the patch size {patch_size}: resize it "
                "to the encoder's image_size"
            )


def patch_grid(image_size: int, patch_size: tuple[int, int], name: str) -> tuple[int, int]:
    """(height, width) in whole patches within a square of `image_size` pixels.

    >>> patch_grid(480, (14, 14), "vit_small_patch14_dinov2")
    (34, 34)

    Raises: ConfigurationError where not one patch fits.
    """
    if image_size < max(patch_size):
        raise ConfigurationError(
            f"image_size {image_size} is smaller than one patch of {name} ({max(patch_size)} pixels): "
            "give a larger image_size"
        )
    return image_size // patch_size[0], image_size // patch_size[1]
