"""COCO's run lengths: how many pixels there are, column by column, outside a mask, inside, outside, ...

pycocotools trusts what it is given: on counts that are damaged it loops for ever or reads beyond its memory.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# A digit is five bits, a sixth that says whether more follow, and 48, so that it is printable.
_DIGIT_BITS, _MORE, _FIRST_DIGIT = 5, 32, ord("0")
# More than any number of 32 bits needs.
_MAX_DIGITS = 7


def decode_counts(counts: bytes) -> NDArray[np.int64]:
    """The run lengths in compressed counts, int64 (R,); lengths may be wrong, even negative.

    Numbers are signed, their lowest digits first; from the fourth on they are differences to the length two
    before. Raises ValueError for what is no sequence of such numbers. Source: pycocotools, rleFrString.

    >>> decode_counts(b"52203").tolist()
    [5, 2, 2, 2, 5]
    """
    digits = np.frombuffer(counts, np.uint8).astype(np.int64) - _FIRST_DIGIT
    if digits.size == 0 or digits.min() < 0 or digits.max() >= 2 * _MORE or digits[-1] >= _MORE:
        raise ValueError(f"{_shortened(counts)} are no compressed run lengths")
    ends = np.flatnonzero(digits < _MORE)
    starts = np.append(0, ends[:-1] + 1)
    num_digits = ends - starts + 1
    if num_digits.max() > _MAX_DIGITS:
        raise ValueError(f"{_shortened(counts)} are no compressed run lengths: a number is too long")
    places = np.arange(len(digits)) - np.repeat(starts, num_digits)
    lengths = np.add.reduceat((digits % _MORE) << (_DIGIT_BITS * places), starts)
    is_negative = digits[ends] >= _MORE // 2
    lengths -= is_negative.astype(np.int64) << (_DIGIT_BITS * num_digits)
    for first in (1, 2):
        lengths[first::2] = np.cumsum(lengths[first::2])
    return lengths


def check_lengths(lengths: NDArray[np.int64], size: tuple[int, int]) -> None:
    """Raises ValueError for run lengths that are negative or do not add up to an image of (height, width)."""
    if lengths.size and lengths.min() < 0:
        raise ValueError(f"a run length is negative: {lengths.min()}")
    if lengths.sum() != size[0] * size[1]:
        raise ValueError(f"run lengths add up to {lengths.sum()} pixels, the image has {size[0] * size[1]}")


def _shortened(counts: bytes) -> str:
    return f"counts {counts[:20]!r}" + ("..." if len(counts) > 20 else "")
