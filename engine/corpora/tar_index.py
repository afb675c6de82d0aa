"""Index of the images in a tar, which grows while the tar's headers are walked and is kept with the labels.

It is kept in segments, so that the first images are known before the whole tar has been walked:

    tar-index/sa_000020.tar/000.parquet     its first members, and the byte at which the next segment begins
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from threading import Lock
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from engine.bounds import Bounded, Count
from engine.corpora.files import key_to_text
from engine.corpora.tar_members import TarMember, TarScan
from engine.errors import CorpusError, ObjectMissing
from engine.objects.object_store import ObjectStore
from engine.types import Reason

# Each segment has twice the members of the one before: the first takes few requests, a tar few segments.
_GROWTH = 2
_FOOTER_KEY = b"maskmill"
_SCHEMA = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("flaw", pa.string()),
        pa.field("detail", pa.string(), nullable=False),
    ]
)


@dataclass(frozen=True, kw_only=True)
class TarIndexConfig(Bounded):
    """How a tar is walked; does not affect which images are found."""

    first_segment: Count = 64
    """Members in the first segment."""
    window_bytes: Count = 64 << 10
    """Bytes read per request: the headers of small members come together, larger members take one each."""


class TarIndex:
    """The images of one tar in order and by name; the tar is walked only as far as needed. Thread-safe."""

    def __init__(
        self, objects: ObjectStore, key: str, kept: ObjectStore | None, config: TarIndexConfig
    ) -> None:
        """Segments are read from and written to `kept`; without it, the index is only in memory.

        Raises ObjectMissing, StoreError or TransientError if the tar cannot be opened.
        """
        self._key = key
        self._kept = kept
        self._config = config
        self._tar_bytes = objects.size(key)
        self._scan = TarScan(objects, key, self._tar_bytes, config.window_bytes)
        self._members: list[TarMember] = []
        self._by_name: dict[str, TarMember] = {}
        self._num_segments = 0
        self._growing = Lock()

    def members(self, after: str | None = None) -> Iterator[TarMember]:
        """List the images lazily in the tar's order, starting behind the member named `after`.

        Raises CorpusError if the tar has no member `after`.
        """
        position = 0
        if after is not None:
            if self.find(after) is None:
                raise CorpusError(
                    f"{self._key} no longer has {after!r}, the last image that was planned; "
                    "restore the tar, or use --overwrite"
                )
            position = 1 + next(i for i, member in enumerate(self._members) if member.name == after)
        while position < len(self._members) or self._grow(position):
            yield from self._members[position : (position := len(self._members))]

    def find(self, name: str) -> TarMember | None:
        """The image of this name, or None if the tar has none."""
        while name not in self._by_name and self._grow(len(self._members)):
            pass
        return self._by_name.get(name)

    def _grow(self, num_known: int) -> bool:
        """Add the next segment unless more than `num_known` members are known; False at the tar's end."""
        with self._growing:
            if len(self._members) > num_known:
                return True
            if self._scan.is_at_end:
                return False
            if not self._load_segment():
                self._scan_segment()
            self._num_segments += 1
            return True

    def _scan_segment(self) -> None:
        names = set(self._by_name)
        found: list[TarMember] = []
        for member in self._scan.members(names):
            found.append(member)
            if len(found) == self._config.first_segment * _GROWTH**self._num_segments:
                break
        self._add(found)
        if self._kept is not None:
            footer = {
                "tar_bytes": self._tar_bytes,
                "next": self._scan.position,
                "is_last": self._scan.is_at_end,
            }
            self._kept.write(self._segment_key(), _encode(found, footer))

    def _load_segment(self) -> bool:
        """Add the next segment if it is kept and was made of this tar; whether it was."""
        if self._kept is None:
            return False
        try:
            members, footer = _decode(self._kept.read(self._segment_key()))
        except (ObjectMissing, pa.ArrowException):
            return False
        if footer["tar_bytes"] != self._tar_bytes:
            return False
        self._add(members)
        self._scan.position, self._scan.is_at_end = footer["next"], footer["is_last"]
        return True

    def _add(self, members: list[TarMember]) -> None:
        self._members.extend(members)
        self._by_name.update((member.name, member) for member in members)

    def _segment_key(self) -> str:
        return f"tar-index/{key_to_text(self._key)}/{self._num_segments:03d}.parquet"


def _encode(members: list[TarMember], footer: dict[str, Any]) -> bytes:
    rows = [
        {
            "name": member.name,
            "offset": member.offset,
            "size": member.size,
            "flaw": member.flaw.value if member.flaw is not None else None,
            "detail": member.detail,
        }
        for member in members
    ]
    schema = _SCHEMA.with_metadata({_FOOTER_KEY: json.dumps(footer, sort_keys=True)})
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema), sink)
    return sink.getvalue()


def _decode(data: bytes) -> tuple[list[TarMember], dict[str, Any]]:
    table = pq.read_table(io.BytesIO(data))
    members = [
        TarMember(**{**row, "flaw": None if row["flaw"] is None else Reason(row["flaw"])})
        for row in table.to_pylist()
    ]
    return members, json.loads(table.schema.metadata[_FOOTER_KEY])
