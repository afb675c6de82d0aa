"""The image list of a COCO annotation file, read as a stream: such files have hundreds of megabytes."""

from __future__ import annotations

import codecs
import hashlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ijson
import numpy as np

from engine.errors import CorpusError, ObjectMissing, PlaceError, StoreError
from engine.objects.object_store import ObjectStore

_BLOCK_BYTES = 4 << 20
# No real annotation file is nested deeper or has a longer string; hostile ones would fill the memory.
_MAX_DEPTH = 64
_MAX_TOKEN_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class ListedImage:
    """An entry of the array `images`."""

    coco_id: int
    file_name: str


class ImageList:
    """The array `images` of a COCO annotation file. Its pickle is small."""

    def __init__(self, objects: ObjectStore, key: str, *, max_token_bytes: int = _MAX_TOKEN_BYTES) -> None:
        """`max_token_bytes` is about the longest string that is accepted."""
        self._objects = objects
        self._key = key
        self._max_token_bytes = max_token_bytes

    @property
    def name(self) -> str:
        """The file's path or URI, for error messages."""
        return f"{self._objects.uri}/{self._key}"

    def check(self) -> None:
        """Read the list. Raises CorpusError unless it is complete and its ids and file names are unique.

        Takes 16 bytes of memory per image: an id and a digest.
        """
        ids, digests = array("q"), array("Q")
        for image in self.images():
            ids.append(image.coco_id)
            digest = hashlib.blake2b(image.file_name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
            digests.append(int.from_bytes(digest, "big"))
        for values, noun in ((ids, "id"), (digests, "file_name")):
            repeated = _first_repeated(np.frombuffer(values, values.typecode) if len(values) else np.zeros(0))
            if repeated is not None:
                first, second = repeated
                named = f" {ids[first]}" if noun == "id" else ""
                raise CorpusError(
                    f"{self.name}: images[{first}] and images[{second}] have the same {noun}{named}; "
                    "make it unique"
                )

    def images(self) -> Iterator[ListedImage]:
        """Stream the entries in the file's order. Raises CorpusError if the file is not in COCO's format."""
        section, field, position = None, "", 0
        entry: dict[str, Any] = {}
        for event, value, depth in self._events():
            if depth == 0 and event != "start_map":
                break
            if depth == 1 and event == "map_key":
                section = value
            elif section != "images":
                continue
            elif depth == 1 and event == "end_array":
                return
            elif depth == 1 and event != "start_array":
                break
            elif depth == 2 and event == "start_map":
                entry = {}
            elif depth == 2 and event == "end_map":
                yield self._listed(entry, position)
                position += 1
            elif depth == 2:
                raise CorpusError(f"{self.name}: images[{position}] is not an object with id and file_name")
            elif depth == 3 and event == "map_key":
                field = value
            elif depth == 3 and field in ("id", "file_name"):
                entry[field] = value
        raise CorpusError(f"{self.name} has no list `images`: give an annotation file in COCO's format")

    def _listed(self, entry: dict[str, Any], position: int) -> ListedImage:
        coco_id, file_name = entry.get("id"), entry.get("file_name")
        if type(coco_id) is not int or not -(2**63) <= coco_id < 2**63:
            raise CorpusError(f"{self.name}: images[{position}] has no whole number as its id: {coco_id!r}")
        if not isinstance(file_name, str) or not file_name or "\0" in file_name:
            raise CorpusError(f"{self.name}: images[{position}] (id {coco_id}) has no file_name")
        return ListedImage(coco_id=coco_id, file_name=file_name)

    def _events(self) -> Iterator[tuple[str, Any, int]]:
        """The parser's events, each with its depth: the number of enclosing arrays and objects."""
        depth = 0
        source = _Source(self._objects, self._key, self._max_token_bytes)
        try:
            for event, value in ijson.basic_parse(source, use_float=True):
                source.unparsed = 0
                if event in ("end_map", "end_array"):
                    depth -= 1
                yield event, value, depth
                if event in ("start_map", "start_array"):
                    depth += 1
                    if depth > _MAX_DEPTH:
                        raise CorpusError(
                            f"{self.name} is nested more than {_MAX_DEPTH} deep: not an annotation file"
                        )
        except ijson.JSONError as error:
            message = " ".join(str(error).split())[:100]
            raise CorpusError(f"{self.name} is not JSON, or incomplete: {message}") from error
        except PlaceError:
            raise
        except (ObjectMissing, StoreError) as error:
            raise CorpusError(f"cannot read the annotation file: {error}") from error


class _Source:
    """The file that the parser reads, in blocks; raises CorpusError for a token that is too long.

    `unparsed` counts the bytes read since the parser's last event, which resets it.
    """

    def __init__(self, objects: ObjectStore, key: str, max_token_bytes: int) -> None:
        self._objects = objects
        self._key = key
        self._max_token_bytes = max_token_bytes
        self._block = b""
        self._start, self._next = 0, 0
        self.unparsed = 0

    def read(self, size: int) -> bytes:
        """Read the next bytes, at most `size`; none at the end."""
        if self._start == len(self._block):
            self._block = self._objects.read_range(self._key, self._next, _BLOCK_BYTES)
            # Some programs write a byte order mark, which is not part of the JSON.
            self._start = 3 if self._next == 0 and self._block.startswith(codecs.BOM_UTF8) else 0
            self._next += len(self._block)
        piece = self._block[self._start : self._start + size]
        self._start += len(piece)
        self.unparsed += len(piece)
        if self.unparsed > self._max_token_bytes:
            raise CorpusError(
                f"{self._objects.uri}/{self._key} has a string of more than "
                f"{self._max_token_bytes >> 20} MiB: not an annotation file"
            )
        return piece


def _first_repeated(values: np.ndarray[Any, np.dtype[Any]]) -> tuple[int, int] | None:
    """Positions of the first value that occurs twice, or None.

    >>> _first_repeated(np.array([7, 3, 5, 3, 7]))
    (1, 3)
    """
    order = np.argsort(values, kind="stable")
    same = np.flatnonzero(values[order][1:] == values[order][:-1])
    if len(same) == 0:
        return None
    pairs = order[np.stack([same, same + 1])]
    first = pairs[1].argmin()
    return int(pairs[0, first]), int(pairs[1, first])
