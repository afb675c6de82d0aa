"""Connected components, holes, IoUs and resizing of masks, bool (N, H, W)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

# 4 neighbours within each mask of a stack, none between masks.
_PLANE_4_NEIGHBOURS = np.zeros((3, 3, 3), bool)
_PLANE_4_NEIGHBOURS[1] = ndimage.generate_binary_structure(2, 1)


def label_components(masks: NDArray[np.bool_]) -> tuple[NDArray[np.int32], int]:
    """Number the 4-connected components of each mask (N, H, W).

    Returns labels, int32 (N, H, W), 0 outside the masks, and the number of components. They are numbered from
    1 mask by mask, in the order of their first pixels.

    >>> label_components(np.array([[[1, 0, 1]], [[1, 1, 0]]], dtype=bool))[0].tolist()
    [[[1, 0, 2]], [[3, 3, 0]]]
    """
    labels, count = ndimage.label(masks, structure=_PLANE_4_NEIGHBOURS)
    return labels, int(count)


def keep_large_components(masks: NDArray[np.bool_], min_fraction: float) -> NDArray[np.bool_]:
    """Keep the 4-connected components of at least `min_fraction` of the largest in each mask (N, H, W).

    >>> keep_large_components(np.array([[[1, 1, 1, 0, 1]]], dtype=bool), 0.5).astype(int).tolist()
    [[[1, 1, 1, 0, 0]]]
    """
    labels, count = label_components(masks)
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    mask_of_label = mask_of_component(labels, count)
    largest = np.zeros(len(masks) + 1, np.int64)
    np.maximum.at(largest, mask_of_label[1:], areas[1:])
    is_large: NDArray[np.bool_] = areas >= min_fraction * largest[mask_of_label]
    is_large[0] = False
    kept: NDArray[np.bool_] = is_large[labels]
    return kept


def mask_of_component(labels: NDArray[np.int32], count: int) -> NDArray[np.int64]:
    """The mask that contains each label of `label_components`, int64 (count + 1,); undefined for label 0.

    >>> mask_of_component(*label_components(np.array([[[1, 0, 1]], [[1, 1, 0]]], dtype=bool)))[1:].tolist()
    [0, 0, 1]
    """
    # Labels rise from mask to mask: a label is in the first mask whose highest label reaches it.
    highest = np.maximum.accumulate(labels.max(axis=(1, 2), initial=0))
    return np.searchsorted(highest, np.arange(count + 1))


def fill_holes(masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Fill the holes of each mask (N, H, W): background without a 4-connected path to the border."""
    labels, count = label_components(~masks)
    is_outside = np.zeros(count + 1, bool)
    for side in (labels[:, 0], labels[:, -1], labels[:, :, 0], labels[:, :, -1]):
        is_outside[side] = True
    is_outside[0] = False
    filled: NDArray[np.bool_] = ~is_outside[labels]
    return filled


def paired_ious(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> NDArray[np.float64]:
    """IoU (N,) of each mask (N, H, W) with the mask at the same position in `second`; 1 if both are empty."""
    intersection = np.count_nonzero(first & second, axis=(1, 2))
    union = np.count_nonzero(first | second, axis=(1, 2))
    return np.where(union == 0, 1.0, intersection / np.maximum(union, 1))


def resize_masks(masks: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Resize masks (N, h, w) to `size` = (height, width) by nearest neighbour."""
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
