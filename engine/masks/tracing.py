"""Run lengths traced from masks, in COCO's order (column by column) and compression.

Source of the compression: pycocotools, rleToString.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

# A character holds five bits and a flag that more follow; 48 is added, which makes it printable.
_DIGIT_BITS, _MORE, _FIRST_DIGIT = 5, 32, 48
# Characters that a number of 32 bits takes at most.
_MAX_DIGITS = 7


def trace_runs(
    mask: NDArray[np.bool_],
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    origin: tuple[int, int],
    height: int,
) -> NDArray[np.int64]:
    """Runs of a resized mask within an image of `height`: (R, 2), start and stop in column-major pixels.

    `mask` (h, w) is resized to (len(rows), len(columns)) by taking, for each pixel, the row and column of the
    mask that `rows` and `columns`, both ascending, name. Its first pixel lies at `origin` = (y, x). Runs
    ascend, and two of them never touch.
    """
    filled_rows = np.flatnonzero(mask.any(axis=1))
    if len(filled_rows) == 0:
        return np.zeros((0, 2), np.int64)
    top, bottom = filled_rows[0], filled_rows[-1] + 1
    filled_columns = np.flatnonzero(mask[top:bottom].any(axis=0))
    left, right = filled_columns[0], filled_columns[-1] + 1
    # Columns of the mask become rows in memory, in the order in which they are traced.
    turned = np.ascontiguousarray(mask[top:bottom, left:right].T)
    first_row, stop_row = np.searchsorted(rows, (top, bottom))
    first_column, stop_column = np.searchsorted(columns, (left, right))
    place = (origin[0] + int(first_row), origin[1] + int(first_column))
    runs: NDArray[np.int64] = _trace(
        turned, rows[first_row:stop_row] - top, columns[first_column:stop_column] - left, place, height
    )
    return runs


@njit(cache=True)  # type: ignore[untyped-decorator]
def _trace(
    turned: NDArray[np.bool_],
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    place: tuple[int, int],
    height: int,
) -> NDArray[np.int64]:
    """`trace_runs` of a transposed mask (w, h) whose first traced pixel lies at `place` = (y, x)."""
    runs = np.empty((2 * len(columns) + 2, 2), np.int64)
    count = 0
    for column in range(len(columns)):
        line = turned[columns[column]]
        offset = (place[1] + column) * height + place[0]
        was_inside = False
        for row in range(len(rows)):
            is_inside = line[rows[row]]
            if is_inside == was_inside:
                continue
            if was_inside:
                runs[count, 1] = offset + row
                count += 1
            elif count > 0 and runs[count - 1, 1] == offset + row:
                count -= 1  # the run of the column before continues
            else:
                if count == len(runs):
                    larger = np.empty((2 * count, 2), np.int64)
                    larger[:count] = runs
                    runs = larger
                runs[count, 0] = offset + row
            was_inside = is_inside
        if was_inside:
            runs[count, 1] = offset + len(rows)
            count += 1
    return runs[:count]


@njit(cache=True)  # type: ignore[untyped-decorator]
def counts_of_runs(runs: NDArray[np.int64], num_pixels: int) -> NDArray[np.int64]:
    """Lengths of alternately empty and filled runs, from the first pixel to the last.

    >>> counts_of_runs(np.array([[1, 3]]), 6).tolist(), counts_of_runs(np.array([[0, 6]]), 6).tolist()
    ([1, 2, 3], [0, 6])
    """
    counts = np.empty(2 * len(runs) + 1, np.int64)
    end = 0
    for number in range(len(runs)):
        counts[2 * number] = runs[number, 0] - end
        end = runs[number, 1]
        counts[2 * number + 1] = end - runs[number, 0]
    counts[-1] = num_pixels - end
    return counts if counts[-1] > 0 else counts[:-1]


@njit(cache=True)  # type: ignore[untyped-decorator]
def compress_counts(counts: NDArray[np.int64]) -> NDArray[np.uint8]:
    """COCO's compressed counts, as ASCII codes.

    >>> compress_counts(np.array([5, 2, 2, 2, 5])).tobytes()
    b'52203'
    """
    text = np.empty(_MAX_DIGITS * len(counts), np.uint8)
    length = 0
    for number in range(len(counts)):
        # From the fourth on, numbers are differences from the one two before.
        value = counts[number] - (counts[number - 2] if number > 2 else 0)
        has_more = True
        while has_more:
            digit = value & (_MORE - 1)
            value >>= _DIGIT_BITS
            has_more = value != (-1 if digit & (_MORE // 2) else 0)
            text[length] = (digit | _MORE if has_more else digit) + _FIRST_DIGIT
            length += 1
    return text[:length]
