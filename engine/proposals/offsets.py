"""Offsets between the patches that an edge joins."""

from __future__ import annotations

Offset = tuple[int, int]
# Half of the eight directions: an edge has no direction.
_DIRECTIONS: tuple[Offset, ...] = ((0, 1), (1, -1), (1, 0), (1, 1))


def ring_offsets(distance: int) -> tuple[Offset, ...]:
    """Offsets (rows, columns) to the patches at `distance` steps in eight directions, each pair once.

    >>> ring_offsets(3)
    ((0, 3), (3, -3), (3, 0), (3, 3))
    """
    return tuple((rows * distance, columns * distance) for rows, columns in _DIRECTIONS)
