"""The order of keys, which decides the order of corpora and shards."""

from __future__ import annotations

import os


def byte_order(key: str) -> bytes:
    """What keys are sorted by everywhere: the bytes of their names, which is S3's order."""
    return os.fsencode(key)
