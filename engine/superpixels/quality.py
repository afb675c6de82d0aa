"""Quality of superpixels: the usual measures against human segmentations and object masks.

A contour pixel is one whose right or lower neighbour has another label, so contours are one pixel wide, both
in the superpixels and in the ground truth.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


def contour_pixels(labels: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Pixels of labels (H, W) whose right or lower neighbour differs, as bool (H, W).

    >>> contour_pixels(np.array([[0, 0, 1], [0, 0, 1]])).astype(int).tolist()
    [[0, 1, 0], [0, 1, 0]]
    """
    contours = np.zeros(labels.shape, bool)
    contours[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    contours[:-1] |= labels[:-1] != labels[1:]
    return contours


def contour_density(labels: NDArray[np.integer]) -> float:
    """Share of the pixels that are contour pixels: the cost at which the other measures are achieved.

    Source: Machairas, Faessel, Cardenas-Pena, Chabardes, Walter, Decenciere, "Waterpixels", TIP 2015.

    >>> contour_density(np.array([[0, 0, 1, 1]]))
    0.25
    """
    return float(contour_pixels(labels).mean())


def boundary_recall(
    labels: NDArray[np.integer], truth: NDArray[np.integer], tolerance_px: float = 2.0
) -> float:
    """Share of the truth's contour pixels with a contour pixel of `labels` within `tolerance_px` (Euclidean).

    Both are (H, W). 1 if the truth has no contour.

    Source: Neubert, Protzel, "Superpixel benchmark and comparison", Forum Bildverarbeitung 2012.

    >>> boundary_recall(np.array([[0, 1, 1, 1, 1, 1]]), np.array([[0, 0, 1, 1, 1, 2]]))
    0.5
    """
    wanted = contour_pixels(truth)
    if not wanted.any():
        return 1.0
    found = contour_pixels(labels)
    if not found.any():
        return 0.0
    distance_px = ndimage.distance_transform_edt(~found)
    return float((distance_px[wanted] <= tolerance_px).mean())


def undersegmentation_error(labels: NDArray[np.integer], truth: NDArray[np.integer]) -> float:
    """Share of the pixels that leak across the truth's boundaries; labels and truth are (H, W).

    Each pair of a superpixel S and an overlapping true segment G counts min(|S ∩ G|, |S \\ G|).

    Source: Neubert, Protzel, "Superpixel benchmark and comparison", Forum Bildverarbeitung 2012, eq. 3.

    >>> undersegmentation_error(np.array([[0, 0, 0, 1]]), np.array([[0, 0, 1, 1]]))
    0.5
    """
    overlaps = _overlaps(labels, truth)
    outside = overlaps.sum(axis=1, keepdims=True) - overlaps
    return float(np.minimum(overlaps, outside).sum() / labels.size)


def achievable_segmentation_accuracy(labels: NDArray[np.integer], truth: NDArray[np.integer]) -> float:
    """Share of correct pixels if each superpixel is assigned its most frequent true segment.

    Source: Liu, Tuzel, Ramalingam, Chellappa, "Entropy rate superpixel segmentation", CVPR 2011, eq. 13.

    >>> achievable_segmentation_accuracy(np.array([[0, 0, 0, 1]]), np.array([[0, 0, 1, 1]]))
    0.75
    """
    return float(_overlaps(labels, truth).max(axis=1).sum() / labels.size)


def clear_sides(mask: NDArray[np.bool_], border_px: float) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Pixels inside and outside an object mask (H, W), except those within `border_px` of its boundary.

    Hand-drawn masks are off by a pixel or two, which superpixels are not to blame for. A `border_px` of 0
    gives the mask and its complement.

    >>> [side.astype(int).tolist() for side in clear_sides(np.array([[0, 0, 1, 1, 1]], dtype=bool), 1)]
    [[[0, 0, 0, 1, 1]], [[1, 0, 0, 0, 0]]]
    """
    if border_px <= 0 or mask.all() or not mask.any():
        return mask, ~mask
    inside = ndimage.distance_transform_edt(mask) > border_px
    outside = ndimage.distance_transform_edt(~mask) > border_px
    return inside, outside


def crossing_counts(
    labels: NDArray[np.integer],
    inside: NDArray[np.bool_],
    outside: NDArray[np.bool_],
    tolerance: float = 0.1,
) -> tuple[int, int]:
    """Numbers of superpixels of labels (H, W) that cross an object's boundary and that touch the object.

    `inside` and `outside` (H, W) are the object's sides from `clear_sides`. A superpixel touches the object
    if it has a pixel inside; it crosses if more than `tolerance` of its pixels lie inside and more than
    `tolerance` outside.

    >>> mask = np.array([[1, 1, 1, 0, 0]], dtype=bool)
    >>> crossing_counts(np.array([[0, 0, 1, 1, 2]]), mask, ~mask)
    (1, 2)
    """
    areas = np.bincount(labels.ravel())
    pixels_inside = np.bincount(labels[inside], minlength=len(areas))
    pixels_outside = np.bincount(labels[outside], minlength=len(areas))
    crossing = np.minimum(pixels_inside, pixels_outside) > tolerance * areas
    return int(np.count_nonzero(crossing)), int(np.count_nonzero(pixels_inside))


def _overlaps(labels: NDArray[np.integer], truth: NDArray[np.integer]) -> NDArray[np.int64]:
    """Number of pixels in both superpixel k and true segment g, int64 (K, G)."""
    segments, truth_index = np.unique(truth, return_inverse=True)
    num_labels, num_segments = int(labels.max()) + 1, len(segments)
    pairs = labels.ravel().astype(np.int64) * num_segments + truth_index.ravel()
    return np.bincount(pairs, minlength=num_labels * num_segments).reshape(num_labels, num_segments)
