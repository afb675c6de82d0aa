"""Multi-crop: several random views of one image, with the region labels of their patches."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, NamedTuple

import torch
from torchvision.transforms import RandomResizedCrop, v2
from torchvision.transforms.v2 import functional

from engine.bounds import Bounded, Bounds, Count, CountOrZero, Positive, Share
from engine.errors import ConfigurationError

_ASPECT_RATIOS = (3 / 4, 4 / 3)
_AreaShare = Annotated[float, Bounds(0, 1, "a share of an area", above=True)]


@dataclass(frozen=True, kw_only=True)
class ViewConfig(Bounded):
    """Crops and augmentations. Views are cut from a window of the image, of which they cover a share."""

    global_size: Count = 224
    """Side of the two global views in pixels."""
    local_size: Count = 96
    """Side of the local views in pixels."""
    num_local: CountOrZero = 6
    """Local views per image; only the image-level loss uses them."""
    window_scale: tuple[_AreaShare, _AreaShare] = (0.3, 1.0)
    """Smallest and largest share of the image that its window covers."""
    region_share: Share = 0.0
    """Share of windows that are placed on a random region, small and large ones being equally likely; the
    others are placed anywhere. This brings small objects of wide scenes, such as ships at sea, into views."""
    global_scale: tuple[_AreaShare, _AreaShare] = (0.4, 1.0)
    """Smallest and largest share of the window that a global view covers."""
    local_scale: tuple[_AreaShare, _AreaShare] = (0.05, 0.4)
    """Smallest and largest share of the window that a local view covers."""
    colour_strength: Annotated[float, Bounds(0, 2, "a factor")] = 1.0
    """Factor on colour, brightness and contrast jitter; 0 turns it off."""
    speckle_looks: tuple[Positive, Positive] = (2.0, 16.0)
    """Fewest and most looks of the speckle noise on grey images (radar); more looks are less noise."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("window_scale", "global_scale", "local_scale", "speckle_looks"):
            low, high = getattr(self, name)
            if low > high:
                raise ConfigurationError(f"{name} are two rising numbers, got {low} and {high}")


class Views(NamedTuple):
    """Global views uint8 (2, 3, G, G), local views uint8 (n, 3, L, L), and the region labels of the global
    views' patches, uint8 (2, g, g), of one image. In a batch each has a leading batch dimension."""

    global_views: torch.Tensor
    local_views: torch.Tensor
    labels: torch.Tensor


class ViewMaker:
    """Cuts views out of an image. All randomness comes from torch's generator, which the caller seeds.

    An image with three equal channels counts as grey, as radar and thermal images are. It gets no colour
    jitter and no solarisation, but speckle, and quarter turns, since such images are often taken from above.
    """

    def __init__(self, config: ViewConfig, patch_size: int) -> None:
        """Raises ConfigurationError if a view's side is no multiple of `patch_size`."""
        for name in ("global_size", "local_size"):
            if getattr(config, name) % patch_size:
                raise ConfigurationError(
                    f"views.{name} {getattr(config, name)} is no multiple of the patch size {patch_size}"
                )
        self._config = config
        self._patch_size = patch_size
        self._colour = [_colour_changes(config, view) for view in range(3)]
        self._grey = [_grey_changes(config, view) for view in range(3)]

    def make(self, image_chw: torch.Tensor, labels_hw: torch.Tensor) -> Views:
        """Cut the views of an image uint8 (3, H, W) with region labels uint8 (H, W)."""
        config = self._config
        is_grey = bool((image_chw == image_chw[:1]).all())
        changes = self._grey if is_grey else self._colour
        top, left, height, width = _choose_crop(image_chw, config.window_scale)
        if config.region_share > 0 and torch.rand(()) < config.region_share:
            top, left = _move_to_region(labels_hw, height, width)
        rows, columns = slice(top, top + height), slice(left, left + width)
        window = torch.cat([image_chw, labels_hw[None]])[:, rows, columns]
        if is_grey:
            window = window.rot90(int(torch.randint(4, ())), (1, 2))
        globals_ = [self._crop(window, config.global_scale, config.global_size) for _ in range(2)]
        locals_ = [self._crop(window, config.local_scale, config.local_size) for _ in range(config.num_local)]
        no_local = torch.empty((0, 3, config.local_size, config.local_size), dtype=torch.uint8)
        return Views(
            global_views=torch.stack([changes[i](image) for i, (image, _) in enumerate(globals_)]),
            local_views=torch.stack([changes[2](image) for image, _ in locals_]) if locals_ else no_local,
            labels=torch.stack([labels for _, labels in globals_]),
        )

    def _crop(
        self, window: torch.Tensor, scale: tuple[float, float], size: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A random, randomly mirrored crop: its image (3, size, size) and its patches' labels."""
        crop = functional.crop(window, *_choose_crop(window, scale))
        if torch.rand(()) < 0.5:
            crop = crop.flip(2)
        image = functional.resize(crop[:3], [size, size], antialias=True)
        # A patch has the label of its centre pixel.
        num_patches = size // self._patch_size
        middles = (torch.arange(num_patches) + 0.5) / num_patches
        rows, columns = ((middles * length).long() for length in crop.shape[1:])
        return image, crop[3][rows[:, None], columns]


def _choose_crop(image: torch.Tensor, scale: tuple[float, float]) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random crop."""
    top, left, height, width = RandomResizedCrop.get_params(image, list(scale), list(_ASPECT_RATIOS))
    return top, left, height, width


def _move_to_region(labels_hw: torch.Tensor, height: int, width: int) -> tuple[int, int]:
    """Top and left of a window of this size that contains a random pixel of a random region."""
    regions = torch.unique(labels_hw)
    rows, columns = torch.nonzero(labels_hw == regions[torch.randint(len(regions), ())], as_tuple=True)
    pixel = int(torch.randint(len(rows), ()))
    top = int(rows[pixel]) - int(torch.randint(height, ()))
    left = int(columns[pixel]) - int(torch.randint(width, ()))
    return (
        min(max(top, 0), labels_hw.shape[0] - height),
        min(max(left, 0), labels_hw.shape[1] - width),
    )


# Probabilities for the first global view, the second one and local views (DINO's appendix).
_BLUR_PROBABILITIES = (1.0, 0.1, 0.5)
_SOLARISE_PROBABILITIES = (0.0, 0.2, 0.0)


def _colour_changes(config: ViewConfig, view: int) -> v2.Transform:
    strength = config.colour_strength
    jitter = v2.ColorJitter(0.4 * strength, 0.4 * strength, 0.2 * strength, min(0.1 * strength, 0.5))
    return v2.Compose(
        [
            v2.RandomApply([jitter], p=0.8),
            v2.RandomGrayscale(0.2 if strength > 0 else 0.0),
            _blur(config, view),
            v2.RandomSolarize(128, p=_SOLARISE_PROBABILITIES[view] if strength > 0 else 0.0),
        ]
    )


def _grey_changes(config: ViewConfig, view: int) -> v2.Transform:
    strength = config.colour_strength
    return v2.Compose(
        [
            v2.RandomApply([v2.ColorJitter(0.4 * strength, 0.4 * strength)], p=0.8),
            _blur(config, view),
            v2.RandomApply([v2.Lambda(partial(_speckle, looks_range=config.speckle_looks))], p=0.5),
        ]
    )


def _blur(config: ViewConfig, view: int) -> v2.Transform:
    """The paper's blur, 0.1 to 2 pixels at a side of 224, scaled to the view's side."""
    size = config.local_size if view == 2 else config.global_size
    largest_sigma = 2.0 * size / 224
    kernel_size = 2 * max(1, round(2.5 * largest_sigma)) + 1
    return v2.RandomApply([v2.GaussianBlur(kernel_size, (0.05 * largest_sigma, largest_sigma))],
                          p=_BLUR_PROBABILITIES[view])  # fmt: skip


def _speckle(image: torch.Tensor, looks_range: tuple[float, float]) -> torch.Tensor:
    """Multiply a grey image's intensity by gamma noise of mean 1 with a random number of looks."""
    low, high = looks_range
    looks = low + (high - low) * torch.rand(())
    noise = torch.distributions.Gamma(looks, looks).sample(image.shape[1:])
    # Pixels are amplitudes, the root of intensity.
    return (image.float() * noise.sqrt()).round().clamp(0, 255).to(torch.uint8)
