"""The interface and the configuration of encoders: images in, one L2-normalised feature per patch out
(METHODS section 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, TypeAlias, get_args

import numpy as np
import tyro
from numpy.typing import NDArray

from engine.bounds import Bounded, Bounds, Count
from engine.encoders.names import SHORT_NAMES
from engine.errors import ConfigurationError

if TYPE_CHECKING:
    import torch

Facet: TypeAlias = Literal["key", "query", "value", "token"]
Centring: TypeAlias = Literal["auto", "none", "image", "corpus"]
EncoderPrecision: TypeAlias = Literal["auto", "float32", "bfloat16", "float16"]

# The small ViT that comes with the package, and the encoder without weights.
EMBEDDED, DESCRIPTOR = "embedded", "descriptor"
DEFAULT_WEIGHTS = "hub"
# Fields newer than the first stores, with the behaviour of that time.
_ADDED_FIELDS = {"facet": "key", "layer": -1, "centring": "none"}


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(Bounded):
    """The encoder, its weights, the features it returns and the image size."""

    name: Annotated[str, tyro.conf.arg(aliases=("--encoder",))] = EMBEDDED
    """embedded (a small ViT that comes with maskmill), descriptor (colour and texture, no network), dino,
    dinov2 or dinov3 (the published ViT-B), or a Vision Transformer of timm, with or without a tag:
    vit_base_patch8_224.dino."""
    weights: Annotated[str, tyro.conf.arg(aliases=("--weights",))] = DEFAULT_WEIGHTS
    """hub (published by timm), random (drawn from the seed), a .safetensors, .pth, .pt, .ckpt or .bin file,
    or its s3://bucket/key."""
    image_size: Count = 480
    """Side in pixels of the square to which images are resized, rounded down to a multiple of the patch."""
    batch_size: Count = 8
    """Images per forward pass; smaller batches are padded to it."""
    precision: EncoderPrecision = "auto"
    """Autocast dtype of the network: auto is bfloat16 on processors with native bfloat16 matrix products,
    otherwise float32. Features are always returned as float16."""
    seed: Annotated[int, Bounds(0, 2**63, "a whole number", below=True)] = 0
    """Seed of random weights."""
    facet: Facet = "key"
    """Feature of a patch: its key, query or value in an attention, or the block's output token."""
    layer: int = -1
    """Index of the transformer block that the facet is taken from; negative indices count from the end."""
    centring: Centring = "auto"
    """Mean feature that is subtracted before features are normalised: of each image, of the corpus, or none.
    auto: of the corpus if its features share a large constant vector, as DINOv2's keys do."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.name:
            raise ConfigurationError("the encoder has no name: give embedded, descriptor or a timm ViT")
        # Stores and caches know an encoder by its full name, however it was asked for.
        object.__setattr__(self, "name", SHORT_NAMES.get(self.name, self.name))
        if not self.weights:
            raise ConfigurationError("weights are empty: give hub, random, a file or s3://bucket/key")
        for field, allowed in (
            ("precision", EncoderPrecision), ("facet", Facet), ("centring", Centring),
        ):  # fmt: skip
            if getattr(self, field) not in get_args(allowed):
                *others, last = get_args(allowed)
                raise ConfigurationError(
                    f"{field} must be {', '.join(others)} or {last}, got {getattr(self, field)!r}"
                )

    def describe(self) -> dict[str, Any]:
        """The fields, to be stored with the features or labels made by them.

        `facet`, `layer` and `centring` are left out if they select raw keys of the last block, as encoders
        did before these fields existed: descriptions of that time stay equal.

        >>> "facet" in EncoderConfig().describe(), EncoderConfig(facet="value").describe()["facet"]
        (False, 'value')
        """
        fields = asdict(self)
        if self.centring == "auto" and is_known_to_fit(self):
            fields["centring"] = "none"
        return {
            name: value
            for name, value in fields.items()
            if name not in _ADDED_FIELDS or value != _ADDED_FIELDS[name]
        }

    def check_fixed_weights(self) -> None:
        """Raise ConfigurationError for settings that the embedded or the descriptor encoder does not take."""
        if self.name in (EMBEDDED, DESCRIPTOR) and self.weights != DEFAULT_WEIGHTS:
            raise ConfigurationError(
                f"the encoder {self.name!r} takes no weights, here {self.weights!r}: leave weights out, or "
                "name a timm ViT as encoder"
            )
        if self.name == DESCRIPTOR and self.precision not in ("auto", "float32"):
            raise ConfigurationError(
                f"the encoder {self.name!r} computes in float32 only: leave precision out, or name another"
            )
        if self.name == DESCRIPTOR and (self.facet, self.layer) != ("key", -1):
            raise ConfigurationError(
                f"the encoder {self.name!r} has no facets and no layers: leave both out, or name a timm ViT"
            )


class Encoder(Protocol):
    """Images to patch features; an image's features do not depend on the other images of the call."""

    @property
    def name(self) -> str:
        """The name given in the configuration."""

    @property
    def feature_size(self) -> int:
        """C, the number of channels."""

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels to which images should be resized."""

    @property
    def grid(self) -> tuple[int, int]:
        """(height, width) in patches of an image of `image_size`."""

    @property
    def weights_digest(self) -> str:
        """SHA-256 in hex of the weights, independent of their file's format and path."""

    @property
    def centring_digest(self) -> str:
        """Digest of the corpus statistics that centre the features; empty if there are none."""

    def encode(self, images: Sequence[NDArray[np.uint8]]) -> torch.Tensor:
        """Features of B RGB images (H, W, 3), all of one size: float16 (B, h, w, C), on the encoder's device.

        Features are centred as configured and L2-normalised: their length is 1 up to rounding, or 0 for a
        zero vector; non-finite features stay non-finite, see `finite_rows`. H and W may differ from
        `image_size`, but must be multiples of the patch size.

        Raises: ValueError for arrays of another type or shape.
        """

    def encode_raw(self, images: Sequence[NDArray[np.uint8]]) -> torch.Tensor:
        """Features before centring and normalisation: float32 (B, h, w, C); otherwise as `encode`."""


def finite_rows(features: torch.Tensor) -> torch.Tensor:
    """True for images whose features are all finite: (B, ...) -> bool (B,)."""
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

    Raises: ConfigurationError if the square is smaller than a patch.
    """
    if image_size < max(patch_size):
        raise ConfigurationError(
            f"image_size {image_size} is smaller than one patch of {name} ({max(patch_size)} pixels): "
            "give a larger image_size"
        )
    return image_size // patch_size[0], image_size // patch_size[1]


def is_known_to_fit(config: EncoderConfig) -> bool:
    """Whether the methods' constants fit the encoder's raw features: DINO's keys, and both built-in encoders.

    >>> is_known_to_fit(EncoderConfig()), is_known_to_fit(EncoderConfig(name="dinov2"))
    (True, False)
    """
    is_raw_key = (config.facet, config.layer) == ("key", -1)
    has_dino_weights = config.name.endswith(".dino") and config.weights == DEFAULT_WEIGHTS
    return config.name == DESCRIPTOR or (is_raw_key and (config.name == EMBEDDED or has_dino_weights))
