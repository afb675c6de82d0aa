"""Image files of a corpus: recognizing them by name, writing their names as text, reading them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from engine.errors import CorpusError, ImageError, ObjectMissing, PlaceError, StoreError
from engine.images.decoding import IMAGE_SUFFIXES
from engine.objects.local import LocalObjects
from engine.objects.object_store import ObjectStore, open_objects
from engine.types import Reason

# Larger than any image that can be decoded; larger files are rejected.
MAX_FILE_BYTES = 1 << 30


def open_corpus_objects(uri: str, accepted: str = "a folder or s3://bucket/prefix") -> ObjectStore:
    """Open the objects below a corpus's URI. Raises CorpusError, whose message names what is `accepted`."""
    try:
        objects = open_objects(uri)
    except StoreError as error:
        raise CorpusError(str(error)) from error
    if isinstance(objects, LocalObjects) and not os.path.isdir(objects.uri):
        raise CorpusError(f"no folder {uri!r}: --corpus takes {accepted}")
    return objects


def is_image(key: str) -> bool:
    """Whether a key has an image suffix and is not hidden."""
    return key.lower().endswith(IMAGE_SUFFIXES) and not is_hidden(key)


def is_hidden(key: str) -> bool:
    """Whether the name of a key or of a folder above it begins with a dot."""
    return any(part.startswith(".") for part in key.split("/"))


def key_to_text(key: str) -> str:
    """Convert a key to valid UTF-8 text: bytes that are not UTF-8 become \\xNN.

    >>> key_to_text("caf\\udce9.jpg"), key_to_text(r"caf\\xe9.jpg")
    ('caf\\\\xe9.jpg', 'caf\\\\x5cxe9.jpg')
    """
    return os.fsencode(escape_name(key)).decode("utf-8", "backslashreplace")


def escape_name(name: str) -> str:
    """Escape backslashes that look like an escape written by `key_to_text`."""
    return re.sub(r"\\(?=x(5c|[89a-f][0-9a-f]))", r"\\x5c", name)


def text_to_key(text: str) -> str:
    """Convert text written by `key_to_text` back to the key."""
    data = re.sub(rb"\\x(5c|[89a-f][0-9a-f])", lambda match: bytes.fromhex(match[1].decode()), text.encode())
    return os.fsdecode(data)


def escapes_root(path: str) -> bool:
    """Whether a path leads out of the corpus.

    >>> [escapes_root(path) for path in ("a/b.jpg", "../b.jpg", "/b.jpg", "a/../../b.jpg", "a..b.jpg")]
    [False, True, True, True, False]
    """
    return path.startswith("/") or ".." in path.split("/")


def list_keys(objects: ObjectStore, start_after: str = "") -> Iterator[str]:
    """List the keys of a corpus; see `ObjectStore.keys`.

    Raises PlaceError if the corpus vanished meanwhile, which looks like its end.
    """
    is_empty = True
    for key in objects.keys(start_after=start_after):
        is_empty = False
        yield key
    if start_after or not is_empty:
        check_reachable(objects)


def check_reachable(objects: ObjectStore) -> None:
    """Raise PlaceError if the folder of a corpus is gone or empty; S3 itself reports such errors."""
    if isinstance(objects, LocalObjects):
        objects.check_not_empty()


def read_file(objects: ObjectStore, key: str, start: int = 0, size: int | None = None) -> bytes:
    """Read an object from byte `start`, all of it or `size` bytes.

    Raises ImageError, TransientError, or PlaceError if the whole corpus is out of reach.
    """
    if escapes_root(key):
        raise ImageError(Reason.UNREADABLE, "its path leads out of the corpus")
    try:
        data = objects.read_range(key, start, MAX_FILE_BYTES + 1 if size is None else size)
    except PlaceError:
        raise
    except ObjectMissing as error:
        check_reachable(objects)
        raise ImageError(Reason.MISSING, "the file is not there") from error
    except StoreError as error:
        check_reachable(objects)
        # Rows must not depend on where the corpus is.
        raise ImageError(Reason.UNREADABLE, str(error).replace(f"{objects.uri}/", "")) from error
    if len(data) > MAX_FILE_BYTES:
        raise ImageError(Reason.TOO_LARGE, f"the file has more than {MAX_FILE_BYTES >> 30} GiB")
    return data
