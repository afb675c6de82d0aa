"""The file or S3 object that a job writes its results to, checked before the work begins."""

from __future__ import annotations

import os
from pathlib import Path

from engine.errors import ConfigurationError
from engine.objects.object_store import write_uri


def check_output(flag: str, uri: str | None) -> None:
    """Raise ConfigurationError if the path or S3 URI given with `flag` cannot become a file.

    Missing parent folders are allowed, S3 is not contacted, and None passes.
    """
    if uri is None:
        return
    if "://" in uri:
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        if not uri.startswith("s3://") or not bucket or not key or key.endswith("/"):
            raise ConfigurationError(f"{flag} {uri!r} names no file: write a path or s3://bucket/key")
        return
    path = Path(os.path.abspath(Path(uri).expanduser()))
    # Writing replaces whatever has this name, which would destroy a device.
    if not uri or uri.endswith("/") or (os.path.exists(path) and not os.path.isfile(path)):
        raise ConfigurationError(f"{flag} {uri!r} is a folder or a device: name a file")
    above = next(folder for folder in path.parents if os.path.exists(folder))
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise ConfigurationError(f"{flag} {uri!r} cannot be written: {above} is not a writable folder")


def write_output(uri: str | None, text: str) -> None:
    """Write the text to a file, whose parent folders are made, or to an S3 object; nothing for None.

    Raises TransientError or StoreError.
    """
    if uri is not None:
        write_uri(uri, text.encode())
