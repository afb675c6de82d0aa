"""COCO's run lengths: numbers of pixels outside a mask, inside, outside, ..., column by column.

pycocotools does not check its input: on damaged counts it loops forever or reads out of bounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

# A digit has five bits and a sixth that is set if more digits follow; 48 is added to make it printable.
_DIGIT_BITS, _MORE, _FIRST_DIGIT = 5, 32, ord("0")
# Enough for any 32-bit number.
_MAX_DIGITS = 7
# In pixels; pycocotools walks along a polygon's edges and allocates memory for each step.
_MAX_COORDINATE = 1e6


def compress_segmentation(segmentation: list[list[float]] | dict[str, Any], size: tuple[int, int]) -> bytes:
    """Convert a COCO segmentation, polygons or run lengths, to compressed run lengths for (height, width).

    Raises ValueError for run lengths of another size and polygons of fewer than three points, ValueError or
    TypeError for anything else that is no segmentation.
    """
    if isinstance(segmentation, list):
        return _compress_polygons(segmentation, size)
    if tuple(segmentation["size"]) != size:
        raise ValueError(f"run lengths of size {segmentation['size']} in an image of {list(size)}")
    counts = segmentation["counts"]
    if isinstance(counts, list):
        return _compress_lengths(counts, size)
    if not isinstance(counts, str | bytes):
        raise ValueError(f"counts are a list or a string, got {counts!r}")
    compressed = counts.encode("ascii") if isinstance(counts, str) else counts
    check_lengths(decode_counts(compressed), size)
    return compressed


def decode_counts(counts: bytes) -> NDArray[np.int64]:
    """Decode compressed counts to run lengths, int64 (R,), which are not checked and may be negative.

    Numbers are signed, lowest digits first; from the fourth on they are differences to the length two before.
    Raises ValueError for anything but a sequence of such numbers. Source: pycocotools, rleFrString.

    >>> decode_counts(b"52203").tolist()
    [5, 2, 2, 2, 5]
    """
    try:
        lengths, _ = _parse_numbers(np.frombuffer(counts, np.uint8))
    except ValueError as error:
        raise ValueError(f"{_shortened(counts)} are no compressed run lengths: {error}") from error
    for first in (1, 2):
        lengths[first::2] = np.cumsum(lengths[first::2])
    return lengths


def check_counts(counts: NDArray[np.uint8], offsets: NDArray[np.int64], pixels: NDArray[np.int64]) -> None:
    """Raise ValueError unless the compressed counts of M >= 1 masks decode to masks of `pixels` (M,) pixels.

    Mask i has the characters offsets[i] to offsets[i + 1] of `counts`. All masks are checked together: one by
    one, a million of them would take a minute.
    """
    if np.diff(offsets).min() < 1 or (counts[offsets[1:] - 1] >= _FIRST_DIGIT + _MORE).any():
        raise ValueError("run lengths end within a number")
    lengths, ends = _parse_numbers(counts)
    firsts = np.searchsorted(ends, offsets[:-1])
    masks = np.repeat(np.arange(len(firsts)), np.diff(np.append(firsts, len(ends))))
    positions = np.arange(len(ends)) - firsts[masks]
    # Differences add up along three chains per mask: the first number, the odd ones, the other even ones.
    chains = 3 * masks + np.where(positions == 0, 0, 2 - positions % 2)
    order = np.argsort(chains, kind="stable")
    sums = np.cumsum(lengths[order])
    starts = np.flatnonzero(np.diff(chains[order], prepend=-1))
    before = np.repeat((sums - lengths[order])[starts], np.diff(np.append(starts, len(order))))
    lengths[order] = sums - before
    if lengths.min() < 0:
        raise ValueError(f"a run length is negative: {lengths.min()}")
    if (np.add.reduceat(lengths, firsts) != pixels).any():
        raise ValueError("run lengths do not add up to the pixels of their image")


def _parse_numbers(counts: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The numbers in compressed counts, and the position of each one's last character. Raises ValueError."""
    digits = counts.astype(np.int64) - _FIRST_DIGIT
    if digits.size == 0 or digits.min() < 0 or digits.max() >= 2 * _MORE or digits[-1] >= _MORE:
        raise ValueError("a character is not a digit, or the last number has no end")
    ends = np.flatnonzero(digits < _MORE)
    starts = np.append(0, ends[:-1] + 1)
    num_digits = ends - starts + 1
    if num_digits.max() > _MAX_DIGITS:
        raise ValueError("a number is too long")
    places = np.arange(len(digits)) - np.repeat(starts, num_digits)
    numbers = np.add.reduceat((digits % _MORE) << (_DIGIT_BITS * places), starts)
    is_negative = digits[ends] >= _MORE // 2
    return numbers - (is_negative.astype(np.int64) << (_DIGIT_BITS * num_digits)), ends


def check_lengths(lengths: NDArray[np.int64], size: tuple[int, int]) -> None:
    """Raise ValueError if run lengths are negative or do not add up to an image of (height, width)."""
    if lengths.size and lengths.min() < 0:
        raise ValueError(f"a run length is negative: {lengths.min()}")
    if lengths.sum() != size[0] * size[1]:
        raise ValueError(f"run lengths add up to {lengths.sum()} pixels, the image has {size[0] * size[1]}")


def _compress_polygons(polygons: list[list[float]], size: tuple[int, int]) -> bytes:
    if not polygons or min(map(len, polygons)) < 6:
        raise ValueError("polygons need at least three points")
    for polygon in polygons:
        if not all(abs(coordinate) < _MAX_COORDINATE for coordinate in polygon):
            raise ValueError(f"coordinates of polygons are numbers of pixels below {_MAX_COORDINATE:.0f}")
    return bytes(coco_mask.merge(coco_mask.frPyObjects(polygons, *size))["counts"])


def _compress_lengths(lengths: list[int], size: tuple[int, int]) -> bytes:
    if not all(length >= 0 and length % 1 == 0 for length in lengths):
        raise ValueError("run lengths are whole numbers, 0 or more")
    whole = [int(length) for length in lengths]
    check_lengths(np.array(whole, np.int64), size)
    return bytes(coco_mask.frPyObjects({"size": list(size), "counts": whole}, *size)["counts"])


def _shortened(counts: bytes) -> str:
    return f"counts {counts[:20]!r}" + ("..." if len(counts) > 20 else "")


def encode_rles(masks: NDArray[np.bool_]) -> tuple[bytes, ...]:
    """Encode masks (N, H, W) as COCO's compressed run lengths, one bytes object each."""
    if len(masks) == 0:
        return ()
    column_major = np.asfortranarray(masks.transpose(1, 2, 0), dtype=np.uint8)
    return tuple(rle["counts"] for rle in coco_mask.encode(column_major))


def overlaps(rles: Sequence[bytes], size: tuple[int, int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """IoU and IoA of every pair of masks, (N, N) each; IoA is the share of the first in the second."""
    if len(rles) == 0:
        return np.zeros((0, 0)), np.zeros((0, 0))
    masks = [{"size": list(size), "counts": counts} for counts in rles]
    # For a crowd, pycocotools divides by the area of the first mask, not of the union.
    ious, ioas = (coco_mask.iou(masks, masks, [is_crowd] * len(masks)) for is_crowd in (0, 1))
    return ious, ioas


def cross_ious(first: Sequence[bytes], second: Sequence[bytes], size: tuple[int, int]) -> NDArray[np.float64]:
    """IoU (N, M) of each of N masks with each of M others, in images of the same `size`."""
    if len(first) == 0 or len(second) == 0:
        return np.zeros((len(first), len(second)))
    one, other = ([{"size": list(size), "counts": counts} for counts in rles] for rles in (first, second))
    ious: NDArray[np.float64] = coco_mask.iou(one, other, [0] * len(other))
    return ious


def decode_rles(rles: Sequence[bytes], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Decode compressed run lengths to masks (N, H, W) of `size` = (height, width)."""
    if len(rles) == 0:
        return np.zeros((0, *size), bool)
    stacked = coco_mask.decode([{"size": list(size), "counts": counts} for counts in rles])
    return np.ascontiguousarray(stacked.transpose(2, 0, 1)).astype(bool)
