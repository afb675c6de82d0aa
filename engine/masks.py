"""Masks are bool (N, H, W) arrays; run lengths are COCO's compressed, column-major counts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from scipy import ndimage

# Connectivity inside each mask of a stack, none between masks: 4 neighbours in the plane.
_PLANE_4_NEIGHBOURS = np.zeros((3, 3, 3), bool)
_PLANE_4_NEIGHBOURS[1] = ndimage.generate_binary_structure(2, 1)


def encode_rles(masks: NDArray[np.bool_]) -> tuple[bytes, ...]:
    """COCO's compressed run lengths of masks (N, H, W), one bytes object each."""
    if len(masks) == 0:
        return ()
    column_major = np.asfortranarray(masks.transpose(1, 2, 0), dtype=np.uint8)
    return tuple(rle["counts"] for rle in coco_mask.encode(column_major))


def encode_rle_within(mask: NDArray[np.bool_], x0: int, y0: int, size: tuple[int, int]) -> bytes:
    """`encode_rles` of an image of `size` = (height, width) that is empty but for `mask` (h, w) at (x0, y0).

    Takes time and memory for the mask alone, however large the image is.
    """
    height, width = size
    by_column = np.zeros((mask.shape[1], mask.shape[0] + 2), np.int8)
    by_column[:, 1:-1] = mask.T
    steps = np.diff(by_column, axis=1)
    starts, stops = (
        (x0 + column) * height + y0 + row for column, row in map(np.nonzero, (steps > 0, steps < 0))
    )
    # A run that fills a column of the image goes on in the next.
    goes_on = np.flatnonzero(starts[1:] == stops[:-1])
    edges = np.stack([np.delete(starts, goes_on + 1), np.delete(stops, goes_on)], axis=1).ravel()
    counts = np.diff(edges, prepend=0, append=height * width)
    runs = counts[: -1 if counts[-1] == 0 else None].tolist()
    rle: bytes = coco_mask.frPyObjects({"size": [height, width], "counts": runs}, height, width)["counts"]
    return rle


def overlaps(rles: Sequence[bytes], size: tuple[int, int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """IoU of every pair of run lengths, and IoA, the share of the first in the second; (N, N) each."""
    if len(rles) == 0:
        return np.zeros((0, 0)), np.zeros((0, 0))
    masks = [{"size": list(size), "counts": counts} for counts in rles]
    # For a crowd, pycocotools divides by the first mask's area instead of the union's.
    ious, ioas = (coco_mask.iou(masks, masks, [is_crowd] * len(masks)) for is_crowd in (0, 1))
    return ious, ioas


def cross_ious(first: Sequence[bytes], second: Sequence[bytes], size: tuple[int, int]) -> NDArray[np.float64]:
    """IoU of each of N run lengths with each of M others of images of one `size`: (N, M)."""
    if len(first) == 0 or len(second) == 0:
        return np.zeros((len(first), len(second)))
    one, other = ([{"size": list(size), "counts": counts} for counts in rles] for rles in (first, second))
    ious: NDArray[np.float64] = coco_mask.iou(one, other, [0] * len(other))
    return ious


def decode_rles(rles: Sequence[bytes], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Masks (N, H, W) of compressed run lengths for images of `size` = (height, width)."""
    if len(rles) == 0:
        return np.zeros((0, *size), bool)
    stacked = coco_mask.decode([{"size": list(size), "counts": counts} for counts in rles])
    return np.ascontiguousarray(stacked.transpose(2, 0, 1)).astype(bool)


def label_components(masks: NDArray[np.bool_]) -> tuple[NDArray[np.int32], int]:
    """Number the 4-connected components of every mask of (N, H, W).

    Returns labels, int32 (N, H, W), 0 outside the masks, and their count; components are numbered from 1 in
    the order of their first pixels, those of an earlier mask before those of a later one.

    >>> label_components(np.array([[[1, 0, 1]], [[1, 1, 0]]], dtype=bool))[0].tolist()
    [[[1, 0, 2]], [[3, 3, 0]]]
    """
    labels, count = ndimage.label(masks, structure=_PLANE_4_NEIGHBOURS)
    return labels, int(count)


def keep_large_components(masks: NDArray[np.bool_], min_fraction: float) -> NDArray[np.bool_]:
    """Of every mask (N, H, W) keep the 4-connected components of at least `min_fraction` of its largest.

    >>> keep_large_components(np.array([[[1, 1, 1, 0, 1]]], dtype=bool), 0.5).astype(int).tolist()
    [[[1, 1, 1, 0, 0]]]
    """
    labels, count = label_components(masks)
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    owners = component_owners(labels, count)
    largest = np.zeros(len(masks) + 1, np.int64)
    np.maximum.at(largest, owners[1:], areas[1:])
    is_large: NDArray[np.bool_] = areas >= min_fraction * largest[owners]
    is_large[0] = False
    kept: NDArray[np.bool_] = is_large[labels]
    return kept


def component_owners(labels: NDArray[np.int32], count: int) -> NDArray[np.int64]:
    """Which mask each label of `label_components` is in, int64 (count + 1,); label 0 says nothing.

    >>> component_owners(*label_components(np.array([[[1, 0, 1]], [[1, 1, 0]]], dtype=bool)))[1:].tolist()
    [0, 0, 1]
    """
    # Labels rise from mask to mask, so the highest so far tells whose a label is.
    highest = np.maximum.accumulate(labels.max(axis=(1, 2), initial=0))
    return np.searchsorted(highest, np.arange(count + 1))


def fill_holes(masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Fill every hole of each mask (N, H, W): background that no 4-connected path joins to the border."""
    labels, count = label_components(~masks)
    is_outside = np.zeros(count + 1, bool)
    for side in (labels[:, 0], labels[:, -1], labels[:, :, 0], labels[:, :, -1]):
        is_outside[side] = True
    is_outside[0] = False
    filled: NDArray[np.bool_] = ~is_outside[labels]
    return filled


def paired_ious(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> NDArray[np.float64]:
    """IoU of masks (N, H, W) with those of equal position in `second`; 1 where both are empty."""
    intersection = np.count_nonzero(first & second, axis=(1, 2))
    union = np.count_nonzero(first | second, axis=(1, 2))
    return np.where(union == 0, 1.0, intersection / np.maximum(union, 1))


def resize_masks(masks: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Masks (N, h, w) brought to `size` = (height, width), each pixel taking its nearest neighbour."""
    if len(masks) == 0:
        return np.zeros((0, *size), bool)
    if masks.shape[1:] == size:
        return masks.copy()
    width_height = size[::-1]
    resized = [
        np.asarray(Image.fromarray(mask.view(np.uint8)).resize(width_height, Image.Resampling.NEAREST))
        for mask in np.ascontiguousarray(masks)
    ]
    return np.stack(resized).astype(bool)
