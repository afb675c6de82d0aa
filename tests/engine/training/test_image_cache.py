"""A cache that is never needed: damage and full disks cost time only."""

import contextlib
import resource
import signal

import numpy as np
import pytest

from engine.errors import ImageError
from engine.training.image_cache import ImageCache
from engine.types import Reason


class Maker:
    """Makes an entry of one non-square image and counts how often."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return {"image": np.arange(6, dtype=np.uint8).reshape(2, 3), "size": np.array([2, 3])}


def files_in(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def test_an_entry_is_made_once_and_known_by_its_name_and_settings(tmp_path):
    make, cache = Maker(), ImageCache(tmp_path, ("corpus", 64))
    first, again = cache.read("a", make), cache.read("a", make)
    assert make.calls == 1
    assert again.keys() == first.keys()
    assert all(np.array_equal(again[name], first[name]) for name in first)
    assert again["image"].dtype == np.uint8
    ImageCache(tmp_path, ("corpus", 64)).read("a", make)
    assert make.calls == 1
    cache.read("b", make)
    ImageCache(tmp_path, ("corpus", 65)).read("a", make)
    assert make.calls == 3
    assert len(files_in(tmp_path)) == 3


@pytest.mark.parametrize("damage", [b"", b"PK", b"no archive at all"])
def test_a_damaged_entry_is_made_anew(tmp_path, damage):
    make, cache = Maker(), ImageCache(tmp_path, ())
    whole = cache.read("a", make)
    (path,) = files_in(tmp_path)
    content = path.read_bytes()
    for broken in (damage, content[:-30], content.replace(bytes(range(6)), bytes(6))):
        path.write_bytes(broken)
        calls = make.calls
        assert np.array_equal(cache.read("a", make)["image"], whole["image"])
        assert make.calls == calls + 1
        assert path.read_bytes() == content


def test_a_folder_that_cannot_be_made_leaves_samples_uncached(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    make, cache = Maker(), ImageCache(tmp_path / "file", ())
    for calls in (1, 2):
        assert cache.read("a", make)["image"].shape == (2, 3)
        assert make.calls == calls


@contextlib.contextmanager
def file_size_limit(num_bytes):
    """Writes beyond `num_bytes` of a file fail, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def test_a_write_that_fails_leaves_no_part_behind(tmp_path):
    make, cache = Maker(), ImageCache(tmp_path, ())
    with file_size_limit(100):
        assert cache.read("a", make)["image"].shape == (2, 3)
    assert files_in(tmp_path) == []
    cache.read("a", make)
    assert len(files_in(tmp_path)) == 1


def test_an_error_of_the_image_is_not_cached(tmp_path):
    def fail():
        raise ImageError(Reason.CORRUPT, "not an image")

    cache = ImageCache(tmp_path, ())
    with pytest.raises(ImageError, match="not an image"):
        cache.read("a", fail)
    assert files_in(tmp_path) == []
