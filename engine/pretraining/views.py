"""Multi-crop: several random views of one image, and which region each of their patches lies in."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torchvision.transforms import RandomResizedCrop, v2
from torchvision.transforms.v2 import functional

from engine.errors import ConfigurationError

_ASPECT_RATIOS = (3 / 4, 4 / 3)


@dataclass(frozen=True, kw_only=True)
class ViewConfig:
    """How an image is cut and changed; shares are of the window's area, and the window's of the image."""

    global_size: int = 224
    """Side of the two global views in pixels."""
    local_size: int = 96
    """Side of the local views in pixels."""
    num_local: int = 6
    """Local views of each image; they serve the image-level loss only."""
    window_scale: tuple[float, float] = (0.3, 1.0)
    """Share of the image from which all of its views are taken."""
    region_share: float = 0.0
    """Share of windows that show a certain region, drawn with equal chances for large and small ones; the
    others lie anywhere. It brings small objects of wide scenes, as ships at sea, into views."""
    global_scale: tuple[float, float] = (0.4, 1.0)
    """Share of the window that a global view shows."""
    local_scale: tuple[float, float] = (0.05, 0.4)
    """Share of the window that a local view shows."""
    colour_strength: float = 1.0
    """Factor on the changes of colour, brightness and contrast; 0 leaves them out."""
    speckle_looks: tuple[float, float] = (2.0, 16.0)
    """Grey images: looks of the multiplicative noise, as of radar; more looks, less noise."""

    def __post_init__(self) -> None:
        for name in ("global_size", "local_size"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"views.{name} must be at least 1 pixel, got {getattr(self, name)}")
        if self.num_local < 0:
            raise ConfigurationError(f"views.num_local must not be negative, got {self.num_local}")
        for name in ("window_scale", "global_scale", "local_scale"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 1:
                raise ConfigurationError(
                    f"views.{name} are two rising shares of an area, got {low} and {high}"
                )
        if not 0 <= self.region_share <= 1:
            raise ConfigurationError(f"views.region_share is a share, 0 to 1, got {self.region_share}")
        if not 0 <= self.colour_strength <= 2:
            raise ConfigurationError(f"views.colour_strength is 0 to 2, got {self.colour_strength}")
        if not 0 < self.speckle_looks[0] <= self.speckle_looks[1]:
            raise ConfigurationError(f"views.speckle_looks are two rising numbers, got {self.speckle_looks}")


class Views(NamedTuple):
    """The views of one image: uint8 (2, 3, G, G) and (n, 3, L, L), and uint8 (2, g, g), the regions of the
    global views' patches. A batch has one dimension more in front of each."""

    global_views: torch.Tensor
    local_views: torch.Tensor
    labels: torch.Tensor


class ViewMaker:
    """Cuts views out of an image. Everything random comes from torch's generator, which the caller seeds.

    An image whose three channels are equal is taken for grey, as radar and thermal images are: colour, which
    it has not, stays out, and so does solarisation; instead there are speckle and, since such images look
    straight down as often as not, quarter turns.
    """

    def __init__(self, config: ViewConfig, patch_size: int) -> None:
        """Raises ConfigurationError where a view is not a whole number of patches."""
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
        """Views of an image uint8 (3, H, W) whose pixels lie in regions uint8 (H, W)."""
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
        globals_ = [self._cut(window, config.global_scale, config.global_size) for _ in range(2)]
        locals_ = [self._cut(window, config.local_scale, config.local_size) for _ in range(config.num_local)]
        no_local = torch.empty((0, 3, config.local_size, config.local_size), dtype=torch.uint8)
        return Views(
            global_views=torch.stack([changes[i](image) for i, (image, _) in enumerate(globals_)]),
            local_views=torch.stack([changes[2](image) for image, _ in locals_]) if locals_ else no_local,
            labels=torch.stack([labels for _, labels in globals_]),
        )

    def _cut(
        self, window: torch.Tensor, scale: tuple[float, float], size: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A random crop, perhaps mirrored: the image (3, size, size) and the labels of its patches."""
        crop = functional.crop(window, *_choose_crop(window, scale))
        if torch.rand(()) < 0.5:
            crop = crop.flip(2)
        image = functional.resize(crop[:3], [size, size], antialias=True)
        # Each patch lies in the region of its middle.
        num_patches = size // self._patch_size
        middles = (torch.arange(num_patches) + 0.5) / num_patches
        rows, columns = ((middles * length).long() for length in crop.shape[1:])
        return image, crop[3][rows[:, None], columns]


def _choose_crop(image: torch.Tensor, scale: tuple[float, float]) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random crop."""
    top, left, height, width = RandomResizedCrop.get_params(image, list(scale), list(_ASPECT_RATIOS))
    return top, left, height, width


def _move_to_region(labels_hw: torch.Tensor, height: int, width: int) -> tuple[int, int]:
    """Top and left of a window of this size that shows a random pixel of a random region, wherever in it."""
    regions = torch.unique(labels_hw)
    rows, columns = torch.nonzero(labels_hw == regions[torch.randint(len(regions), ())], as_tuple=True)
    pixel = int(torch.randint(len(rows), ()))
    top = int(rows[pixel]) - int(torch.randint(height, ()))
    left = int(columns[pixel]) - int(torch.randint(width, ()))
    return (
        min(max(top, 0), labels_hw.shape[0] - height),
        min(max(left, 0), labels_hw.shape[1] - width),
    )


# DINO's chances (appendix of the paper): the first global view is always blurred, the second seldom, but it
# may be solarised; local views are between.
_BLUR_CHANCES = (1.0, 0.1, 0.5)
_SOLARISE_CHANCES = (0.0, 0.2, 0.0)


def _colour_changes(config: ViewConfig, view: int) -> v2.Transform:
    strength = config.colour_strength
    jitter = v2.ColorJitter(0.4 * strength, 0.4 * strength, 0.2 * strength, min(0.1 * strength, 0.5))
    return v2.Compose(
        [
            v2.RandomApply([jitter], p=0.8),
            v2.RandomGrayscale(0.2 if strength > 0 else 0.0),
            _blur(config, view),
            v2.RandomSolarize(128, p=_SOLARISE_CHANCES[view] if strength > 0 else 0.0),
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
    """The paper's blur of 0.1 to 2 pixels at a side of 224, in proportion."""
    size = config.local_size if view == 2 else config.global_size
    largest_sigma = 2.0 * size / 224
    kernel_size = 2 * max(1, round(2.5 * largest_sigma)) + 1
    return v2.RandomApply([v2.GaussianBlur(kernel_size, (0.05 * largest_sigma, largest_sigma))],
                          p=_BLUR_CHANCES[view])  # fmt: skip


def _speckle(image: torch.Tensor, looks_range: tuple[float, float]) -> torch.Tensor:
    """A grey image under multiplicative noise of mean 1: intensity follows a gamma law with so many looks."""
    low, high = looks_range
    looks = low + (high - low) * torch.rand(())
    noise = torch.distributions.Gamma(looks, looks).sample(image.shape[1:])
    # The image is amplitude, the root of intensity.
    return (image.float() * noise.sqrt()).round().clamp(0, 255).to(torch.uint8)
