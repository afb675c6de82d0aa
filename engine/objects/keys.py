"""The order of keys, which determines the order of corpora and shards."""

from __future__ import annotations

import os


def byte_order(key: str) -> bytes:
    """Sort key for keys: the bytes of their names, which gives the order of S3."""
    return os.fsencode(key)
