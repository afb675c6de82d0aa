"""The images that a COCO annotation file lists, read as a stream: such files have hundreds of megabytes."""

from __future__ import annotations

import codecs
import hashlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ijson
import numpy as np

from engine.errors import CorpusError, ObjectMissing, StoreError
from engine.objects.object_store import ObjectStore

_BLOCK_BYTES = 4 << 20
# No annotation file nests deeper or has a longer text; what does would only fill the memory.
_MAX_DEPTH = 64
_MAX_TOKEN_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class ListedImage:
    """One entry of `images`."""

    coco_id: int
    file_name: str


class ImageList:
    """The array `images` of a COCO-format JSON file. Pickles small."""

    def __init__(self, objects: ObjectStore, key: str) -> None:
        self._objects = objects
        self._key = key

    @property
    def name(self) -> str:
        """The file, as errors call it."""
        return f"{self._objects.uri}/{self._key}"

    def check(self) -> None:
        """Read the list once. Raises CorpusError unless it is whole, and every id and file is listed once.

        Holds 16 bytes an image: an id and a digest.
        """
        ids, digests = array("q"), array("Q")
        for image in self.images():
            ids.append(image.coco_id)
            digest = hashlib.blake2b(image.file_name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
            digests.append(int.from_bytes(digest, "big"))
        for values, noun in ((ids, "id"), (digests, "file_name")):
            again = _first_repeated(np.frombuffer(values, values.typecode) if len(values) else np.zeros(0))
            if again is not None:
                first, second = again
                named = f" {ids[first]}" if noun == "id" else ""
                raise CorpusError(
                    f"{self.name}: images[{first}] and images[{second}] have the same {noun}{named}; "
                    "give every image its own"
                )

    def images(self) -> Iterator[ListedImage]:
        """The entries in the file's order. Raises CorpusError where the file is no such list."""
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
        """The parser's events, each with the number of arrays and objects around it."""
        depth = 0
        source = _Source(self._objects, self._key)
        try:
            for event, value in ijson.basic_parse(source, use_float=True):
                source.unanswered = 0
                if event in ("end_map", "end_array"):
                    depth -= 1
                yield event, value, depth
                if event in ("start_map", "start_array"):
                    depth += 1
                    if depth > _MAX_DEPTH:
                        raise CorpusError(
                            f"{self.name} is nested more than {_MAX_DEPTH} deep: no annotations"
                        )
        except ijson.JSONError as error:
            message = " ".join(str(error).split())[:100]
            raise CorpusError(f"{self.name} is not JSON, or not whole: {message}") from error
        except (ObjectMissing, StoreError) as error:
            raise CorpusError(f"cannot read the annotation file: {error}") from error


class _Source:
    """The file as the parser reads it; gives up on a token that has no end."""

    def __init__(self, objects: ObjectStore, key: str) -> None:
        self._objects = objects
        self._key = key
        self._block = b""
        self._start, self._next = 0, 0
        self.unanswered = 0

    def read(self, size: int) -> bytes:
        """At most `size` bytes that come next; none at the end."""
        if self._start == len(self._block):
            self._block = self._objects.read_range(self._key, self._next, _BLOCK_BYTES)
            # Some programs begin a file with a mark of its encoding, which is no part of its JSON.
            self._start = 3 if self._next == 0 and self._block.startswith(codecs.BOM_UTF8) else 0
            self._next += len(self._block)
        piece = self._block[self._start : self._start + size]
        self._start += len(piece)
        self.unanswered += len(piece)
        if self.unanswered > _MAX_TOKEN_BYTES:
            raise CorpusError(
                f"{self._objects.uri}/{self._key} has a text of more than {_MAX_TOKEN_BYTES >> 20} MiB: "
                "no annotations"
            )
        return piece


def _first_repeated(values: np.ndarray[Any, np.dtype[Any]]) -> tuple[int, int] | None:
    """Positions of the first value that stands twice, or None.

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
