"""Draw masks over photographs."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from engine.masks.instances import Instances
from engine.masks.rle import decode_rles, overlaps

# Distinguishable with most kinds of colour vision: Okabe and Ito's palette without black.
_COLOURS = np.array(
    [(230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0),
     (204, 121, 167)],
    np.float32,
)  # fmt: skip
_FILL_OPACITY = 0.45
# A picture with more masks shows colours, not objects.
_MAX_SHOWN = 10
# A mask is left out if it and one that is shown share more than this of the smaller of the two.
_MAX_SHARED = 0.3


def draw_instances(image_hwc: NDArray[np.uint8], instances: Instances | None) -> NDArray[np.uint8]:
    """Tint and outline each mask on a photograph, uint8 RGB (H, W, 3); the first instance is on top.

    Outlines are 1/300 of the longer side wide, at least one pixel.
    """
    drawn = image_hwc.astype(np.float32)
    if instances is None:
        return image_hwc.copy()
    thickness = max(1, max(image_hwc.shape[:2]) // 300)
    for i in reversed(range(len(instances))):
        (mask,) = decode_rles(instances.rles[i : i + 1], instances.size)
        colour = _COLOURS[i % len(_COLOURS)]
        drawn[mask] = (1 - _FILL_OPACITY) * drawn[mask] + _FILL_OPACITY * colour
        inside = ndimage.binary_erosion(mask, iterations=thickness, border_value=0)
        drawn[mask & ~inside] = colour
    return drawn.round().astype(np.uint8)


def select_shown(instances: Instances) -> Instances:
    """The best instances that can be told apart in a picture: at most 10, which hardly overlap.

    Methods that propose regions within regions give many masks that cover each other.
    """
    _, ioas = overlaps(instances.rles, instances.size)
    shared = np.maximum(ioas, ioas.T)
    shown: list[int] = []
    for i in range(len(instances)):
        if len(shown) < _MAX_SHOWN and not (shared[i, shown] > _MAX_SHARED).any():
            shown.append(i)
    is_shown = np.zeros(len(instances), bool)
    is_shown[shown] = True
    return instances.keep(is_shown)


def contact_sheet(
    images_hwc: Sequence[NDArray[np.uint8]], num_columns: int, tile_height: int
) -> NDArray[np.uint8]:
    """Pictures in rows of `num_columns` on white, each scaled to `tile_height` pixels; (H, W, 3)."""
    gap = max(2, tile_height // 40)
    scaled = [_scale_to_height(image, tile_height) for image in images_hwc]
    rows = [scaled[i : i + num_columns] for i in range(0, len(scaled), num_columns)]
    width = max(sum(tile.shape[1] + gap for tile in row) - gap for row in rows)
    sheet = np.full((len(rows) * (tile_height + gap) - gap, width, 3), 255, np.uint8)
    for number, row in enumerate(rows):
        top, left = number * (tile_height + gap), 0
        for tile in row:
            sheet[top : top + tile_height, left : left + tile.shape[1]] = tile
            left += tile.shape[1] + gap
    return sheet


def encode_jpeg(image_hwc: NDArray[np.uint8]) -> bytes:
    """Encode an RGB picture as a JPEG file."""
    sink = io.BytesIO()
    Image.fromarray(image_hwc).save(sink, "JPEG", quality=90)
    return sink.getvalue()


def _scale_to_height(image_hwc: NDArray[np.uint8], height: int) -> NDArray[np.uint8]:
    width = max(1, round(image_hwc.shape[1] * height / image_hwc.shape[0]))
    return np.asarray(Image.fromarray(image_hwc).resize((width, height), Image.Resampling.LANCZOS))
