"""A fixture that makes tars."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable

import pytest


@pytest.fixture
def make_tar() -> Callable[..., bytes]:
    """`make_tar({"sa_1.jpg": b"...", "link.jpg": TarInfo})` is a tar with these members, in this order."""

    def make(members: dict[str, bytes | tarfile.TarInfo] | list[tuple[str, bytes]], **options: int) -> bytes:
        sink = io.BytesIO()
        with tarfile.open(fileobj=sink, mode="w", **options) as tar:
            for name, content in members.items() if isinstance(members, dict) else members:
                if isinstance(content, tarfile.TarInfo):
                    tar.addfile(content)
                    continue
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        return sink.getvalue()

    return make
