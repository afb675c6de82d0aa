"""Where a job writes its figures: a file or an S3 object, looked at before the work that they cost."""

from __future__ import annotations

import os
from pathlib import Path

from engine.errors import ConfigurationError
from engine.objects.object_store import write_uri


def check_output(flag: str, uri: str | None) -> None:
    """Raises ConfigurationError where what `flag` names cannot become a file.

    Folders above it may be missing. S3 is not asked. None is no output.
    """
    if uri is None:
        return
    if "://" in uri:
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        if not uri.startswith("s3://") or not bucket or not key or key.endswith("/"):
            raise ConfigurationError(f"{flag} {uri!r} names no file: write a path or s3://bucket/key")
        return
    path = Path(os.path.abspath(Path(uri).expanduser()))
    # Writing puts a new file in the place of what has the name: of a device that would be the end.
    if not uri or uri.endswith("/") or (os.path.exists(path) and not os.path.isfile(path)):
        raise ConfigurationError(f"{flag} {uri!r} is a folder or a device: name a file")
    above = next(folder for folder in path.parents if os.path.exists(folder))
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise ConfigurationError(f"{flag} {uri!r} cannot be written: {above} is no folder to write to")


def write_output(uri: str | None, text: str) -> None:
    """Make the file or S3 object hold the text, and make folders above it; None is no output.

    Raises TransientError or StoreError.
    """
    if uri is not None:
        write_uri(uri, text.encode())
