"""Scan of a tar file's headers for images: their names, positions and flaws.

A tar is a chain of 512-byte headers, each with the size of the data before the next. Where the chain is
broken, the scan searches for the next header, so that a damaged spot costs only the members in it.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

from engine.corpora.files import MAX_FILE_BYTES, escapes_root, is_image, key_to_text
from engine.objects.object_store import ObjectStore
from engine.types import Reason

_BLOCK_BYTES = tarfile.BLOCKSIZE
# First bytes of gzip, bzip2, xz and zstd files.
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
_SEARCH_BYTES = 64 << 20
_MAX_EXTENSION_BYTES = 1 << 20
# Tars are padded with zeros, usually to 10 KiB; a longer run of zeros is searched for further members.
_MAX_PADDING_BYTES = 1 << 20
_LONG_NAME_TYPES = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_PAX_TYPES = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE)


@dataclass(frozen=True, kw_only=True)
class TarMember:
    """An image in a tar: `size` bytes from byte `offset`. With a `flaw`, it cannot be read.

    A member without a usable name is named @N after the position of its header.
    """

    name: str
    offset: int
    size: int
    flaw: Reason | None = None
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class _Header:
    name: str
    size: int
    is_file: bool
    offset: int
    next_header: int


class _Damaged(Exception):
    """A header is missing or damaged."""


class TarScan:
    """Walk of a tar's headers; `position`, the byte of the next header, may be set to resume one."""

    def __init__(self, objects: ObjectStore, key: str, size: int, window_bytes: int) -> None:
        """`size` is the tar's, `window_bytes` the number of bytes read per request."""
        self._objects = objects
        self._key = key
        self._size = size
        self._window_bytes = window_bytes
        self._window, self._window_start = b"", 0
        self.position = 0
        self.is_at_end = False

    def members(self, names: set[str]) -> Iterator[TarMember]:
        """Yield the images that follow; `names` are the names already used, to which theirs are added."""
        while not self.is_at_end:
            member = self._step(names)
            if member is not None:
                names.add(member.name)
                yield member

    def _step(self, names: set[str]) -> TarMember | None:
        start = self.position
        try:
            header = self._header(start)
        except _Damaged as error:
            return self._search_on(start, Reason.CORRUPT, str(error))
        if header is None:
            return self._end(start)
        member = _describe(header, start, self._size, names)
        if header.next_header <= self._size:
            self.position = header.next_header
            return member
        # The member ends after the tar: either the tar is cut, or the size is wrong and other headers follow.
        cut = self._search_on(start, Reason.TRUNCATED, "the tar ends before this member does")
        return member or cut

    def _end(self, start: int) -> TarMember | None:
        """What follows without a header: the end mark, a gap, or the end of a tar cut between members."""
        if self._size - start < _BLOCK_BYTES:
            self.is_at_end = True
            detail = "the tar has no end mark: it was cut short, and members may be missing"
            return TarMember(name=f"@{start}", offset=start, size=0, flaw=Reason.TRUNCATED, detail=detail)
        if self._size - start > _MAX_PADDING_BYTES:
            following = self._find_header(start + _BLOCK_BYTES)
            if following is not None:
                self.position = following
                detail = f"there are zeros between here and byte {following} of the tar"
                return TarMember(name=f"@{start}", offset=start, size=0, flaw=Reason.CORRUPT, detail=detail)
        self.is_at_end = True
        return None

    def _search_on(self, start: int, reason: Reason, detail: str) -> TarMember:
        following = self._find_header(start + _BLOCK_BYTES)
        if following is None:
            self.is_at_end = True
        else:
            self.position = following
        return TarMember(name=f"@{start}", offset=start, size=0, flaw=reason, detail=detail)

    def _header(self, start: int) -> _Header | None:
        """Read the header at byte `start`, with name and size from preceding extensions; None at the end."""
        name: str | None = None
        size: int | None = None
        position = start
        while True:
            block = self._read(position, _BLOCK_BYTES)
            if len(block) < _BLOCK_BYTES:
                if position == start:
                    return None
                raise _Damaged("the tar ends within a header")
            if position == start and block.count(0) == _BLOCK_BYTES:
                return None
            info = _parse(block, position)
            data = position + _BLOCK_BYTES
            if info.type not in (*_LONG_NAME_TYPES, *_PAX_TYPES):
                size = info.size if size is None else size
                occupied = size if info.isreg() or info.type not in tarfile.SUPPORTED_TYPES else 0
                return _Header(
                    name=info.name if name is None else name,
                    size=size,
                    is_file=info.type in tarfile.REGULAR_TYPES and info.type != tarfile.GNUTYPE_SPARSE,
                    offset=data,
                    next_header=data + _whole_blocks(occupied),
                )
            if info.size > _MAX_EXTENSION_BYTES:
                raise _Damaged(f"the header at byte {position} claims a name of {info.size} bytes")
            extension = self._read(data, info.size)
            if info.type == tarfile.GNUTYPE_LONGNAME:
                name = extension.rstrip(b"\0").decode("utf-8", "surrogateescape")
            elif info.type in _PAX_TYPES and info.type != tarfile.XGLTYPE:
                settings = _pax_settings(extension)
                name = settings.get("path", name)
                size = int(settings["size"]) if settings.get("size", "").isdecimal() else size
            position = data + _whole_blocks(info.size)

    def _find_header(self, start: int) -> int | None:
        """Position of the first header from `start` on, or None within the searched bytes."""
        for position in range(start, min(start + _SEARCH_BYTES, self._size), _BLOCK_BYTES):
            block = self._read(position, _BLOCK_BYTES)
            if block[257:262] == b"ustar":
                try:
                    _parse(block, position)
                except _Damaged:
                    continue
                return position
        return None

    def _read(self, start: int, size: int) -> bytes:
        begin = start - self._window_start
        if begin < 0 or begin + size > len(self._window):
            wanted = min(max(size, self._window_bytes), self._size - start)
            self._window = self._objects.read_range(self._key, start, wanted) if wanted > 0 else b""
            self._window_start, begin = start, 0
        return self._window[begin : begin + size]


def _parse(block: bytes, position: int) -> tarfile.TarInfo:
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        if position == 0 and block.startswith(_COMPRESSED):
            raise _Damaged("the tar is compressed: uncompress it, so that it can be read in place") from error
        raise _Damaged(f"the header at byte {position} of the tar is damaged") from error
    if info.size < 0:
        raise _Damaged(f"the header at byte {position} of the tar claims {info.size} bytes")
    return info


def _describe(header: _Header, start: int, tar_size: int, names: set[str]) -> TarMember | None:
    """The member as an image with its flaw, if any; None if it is not an image."""
    name = key_to_text(header.name)
    while name.startswith("./"):
        name = name[2:]
    if not is_image(name) and not (escapes_root(name) and is_image(name.rpartition("/")[2])):
        return None
    flaw, detail = None, ""
    if escapes_root(name):
        flaw, detail = Reason.UNREADABLE, f"its name {name!r} leads out of the archive"
    elif not header.is_file:
        flaw, detail = Reason.UNREADABLE, f"{name!r} is a link, a device or a sparse file"
    elif name in names:
        flaw, detail = Reason.DUPLICATE, f"the tar has another {name!r} before it"
    if flaw is not None:
        return TarMember(name=f"@{start}", offset=header.offset, size=0, flaw=flaw, detail=detail)
    if header.size > MAX_FILE_BYTES:
        flaw, detail = Reason.TOO_LARGE, f"the tar says that it has {header.size} bytes"
    elif header.offset + header.size > tar_size:
        flaw, detail = Reason.TRUNCATED, "the tar ends before this member does"
    return TarMember(name=name, offset=header.offset, size=header.size, flaw=flaw, detail=detail)


def _pax_settings(data: bytes) -> dict[str, str]:
    """Parse the records "LENGTH NAME=VALUE" of a pax header, up to the first malformed one.

    >>> _pax_settings(b"15 path=a/b.jpg\\n"[:-1] + b"\\n")
    {}
    >>> _pax_settings(b"16 path=a/b.jpg\\n")
    {'path': 'a/b.jpg'}
    """
    settings = {}
    while data:
        length, _, _ = data.partition(b" ")
        if not length.isdigit() or len(length) > 7 or not len(length) + 2 < int(length) <= len(data):
            break
        record, data = data[: int(length)], data[int(length) :]
        name, found, value = record[len(length) + 1 :].partition(b"=")
        if not found or not value.endswith(b"\n"):
            break
        settings[name.decode("utf-8", "replace")] = value[:-1].decode("utf-8", "surrogateescape")
    return settings


def _whole_blocks(size: int) -> int:
    return -(-size // _BLOCK_BYTES) * _BLOCK_BYTES
