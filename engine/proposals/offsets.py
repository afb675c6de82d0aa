"""Offsets between the two patches of an edge."""

from __future__ import annotations

Offset = tuple[int, int]
# Half of the eight directions, as edges are undirected.
_DIRECTIONS: tuple[Offset, ...] = ((0, 1), (1, -1), (1, 0), (1, 1))


def ring_offsets(distance: int) -> tuple[Offset, ...]:
    """Offsets (rows, columns) to the patches `distance` steps away in eight directions, up to their sign.

    >>> ring_offsets(3)
    ((0, 3), (3, -3), (3, 0), (3, 3))
    """
    return tuple((rows * distance, columns * distance) for rows, columns in _DIRECTIONS)
