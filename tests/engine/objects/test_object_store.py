import errno
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.stub import Stubber
from hypothesis import given
from hypothesis import strategies as st
from moto.server import ThreadedMotoServer

from engine.errors import ObjectMissing, PlaceError, RunError, StoreError, TransientError
from engine.objects.local import LocalObjects
from engine.objects.memory import MemoryObjects
from engine.objects.object_store import ObjectStore, open_objects, read_uri, write_uri
from engine.objects.s3 import S3Objects
from tests.faulty_proxy import CutBody, Refuse, start_proxy

# The smallest size that S3 accepts for a part that is not the last.
PART_BYTES = 5 << 20


@pytest.fixture(params=["folder", "memory", "s3"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "memory":
        return MemoryObjects()
    if request.param == "s3":
        request.getfixturevalue("s3_server")
        return S3Objects("bucket", "some/prefix", part_bytes=PART_BYTES)
    return open_objects(str(tmp_path / "folder"))


def test_written_objects_are_read_back(objects: ObjectStore) -> None:
    objects.write("a/b", b"one")
    objects.write("a/b", b"two")
    objects.write("empty", b"")
    assert (objects.read("a/b"), objects.read("empty")) == (b"two", b"")
    with pytest.raises(ObjectMissing):
        objects.read("a/c")
    if not isinstance(objects, MemoryObjects):
        write_uri(f"{objects.uri}/c", b"three")
        assert objects.read("c") == read_uri(f"{objects.uri}/c") == b"three"


def test_ranges_end_where_the_object_ends(objects: ObjectStore) -> None:
    objects.write("a", b"0123456789")
    objects.write("empty", b"")
    ranges = [
        objects.read_range("a", start, size) for start, size in [(0, 3), (4, 6), (8, 100), (10, 5), (99, 1)]
    ]
    assert ranges == [b"012", b"456789", b"89", b"", b""]
    assert objects.read_range("empty", 0, 10) == b""
    assert (objects.size("a"), objects.size("empty")) == (10, 0)
    for ask in (lambda: objects.read_range("b", 0, 1), lambda: objects.size("b")):
        with pytest.raises(ObjectMissing):
            ask()


def test_keys_are_listed_in_byte_order(objects: ObjectStore) -> None:
    keys = ["a-b", "a.z", "a/b/c", "a/ä", "a0", "b/1", "b/10", "b/2", "é"]
    for key in reversed(keys):
        objects.write(key, b"x")
    assert list(objects.keys()) == keys
    assert list(objects.keys("b/1")) == ["b/1", "b/10"]
    assert list(objects.keys("a/")) == ["a/b/c", "a/ä"]
    for i, key in enumerate(keys):
        assert list(objects.keys(start_after=key)) == keys[i + 1 :]
    assert list(objects.keys("none/")) == []


def write_and_fail(objects: ObjectStore, key: str, data: bytes) -> None:
    with objects.writer(key) as file:
        file.write(data)
        1 / 0  # noqa: B018


def test_large_objects_are_written_in_parts(objects: ObjectStore) -> None:
    piece = bytes(range(256)) * 4096
    objects.write("long", b"old")
    with objects.writer("long") as file:
        for _ in range(11):
            file.write(piece)
        assert objects.read("long") == b"old"
    assert objects.read("long") == 11 * piece
    with objects.writer("short") as file:
        file.write(b"x")
    assert objects.read("short") == b"x"
    for count in (1, 6):
        with pytest.raises(ZeroDivisionError):
            write_and_fail(objects, "long", count * piece)
    assert objects.read("long") == 11 * piece
    assert list(objects.keys()) == ["long", "short"]


def test_deleted_objects_are_gone(objects: ObjectStore) -> None:
    objects.write("a/b", b"x")
    objects.delete("a/b")
    objects.delete("a/b")
    assert list(objects.keys()) == []


def test_stores_can_be_pickled(objects: ObjectStore) -> None:
    objects.write("a", b"x")
    assert pickle.loads(pickle.dumps(objects)).read("a") == b"x"


def test_creating_never_replaces(tmp_path: Path) -> None:
    for objects in (MemoryObjects(), LocalObjects(tmp_path)):
        assert objects.create("a/b", b"one")
        assert not objects.create("a/b", b"two")
        assert objects.read("a/b") == b"one"


@pytest.fixture
def conditional_s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """A bucket on a server that supports If-None-Match."""
    server = ThreadedMotoServer("127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "3")
    boto3.client("s3").create_bucket(Bucket="bucket")
    yield S3Objects("bucket", "", part_bytes=PART_BYTES)
    server.stop()


def test_creating_never_replaces_on_s3(conditional_s3: ObjectStore) -> None:
    assert conditional_s3.create("a/b", b"one")
    assert not conditional_s3.create("a/b", b"two")
    assert conditional_s3.read("a/b") == b"one"
    for number in range(8):  # more than two pages of this server's listing
        conditional_s3.write(f"many/{number}", b"")
    assert [key[-1] for key in conditional_s3.keys("many/")] == list("01234567")


def test_parts_of_an_aborted_upload_are_deleted(conditional_s3: ObjectStore) -> None:
    with pytest.raises(ZeroDivisionError):
        write_and_fail(conditional_s3, "part/a", bytes(6 << 20))
    uploads = boto3.client("s3").list_multipart_uploads(Bucket="bucket")
    assert uploads.get("Uploads", []) == []
    assert list(conditional_s3.keys("part/")) == []


def test_a_server_without_conditional_writes_is_written_to(conditional_s3: ObjectStore) -> None:
    client = conditional_s3._client
    with Stubber(client) as stub:
        place = {"Bucket": "bucket", "Key": "a", "Body": b"x"}
        stub.add_client_error("put_object", "NotImplemented", expected_params={**place, "IfNoneMatch": "*"})
        stub.add_response("put_object", {}, expected_params=place)
        assert conditional_s3.create("a", b"x")
        stub.assert_no_pending_responses()


@pytest.mark.parametrize("nameless", [True, False])
def test_unfinished_files_are_neither_left_behind_nor_listed(tmp_path: Path, nameless: bool) -> None:
    objects = LocalObjects(tmp_path, nameless=nameless)
    with objects.writer("a"):
        assert len(os.listdir(tmp_path)) == (0 if nameless else 1)
        assert list(objects.keys()) == []
    objects.delete("a")
    assert objects.create("a", b"one")
    assert not objects.create("a", b"two")
    objects.write("a", b"three")
    assert os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o666 & ~_umask()
    (tmp_path / ".partial-0123").write_bytes(b"half")
    assert list(objects.keys()) == ["a"]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_links_to_folders_are_followed_except_in_circles(tmp_path: Path) -> None:
    (tmp_path / "root/inner").mkdir(parents=True)
    (tmp_path / "root/inner/a").touch()
    (tmp_path / "root/inner/up").symlink_to(tmp_path / "root")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/b").touch()
    (tmp_path / "root/link").symlink_to(tmp_path / "other")
    assert list(LocalObjects(tmp_path / "root").keys()) == ["inner/a", "link/b"]


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "loop", "folder"):
        with pytest.raises(StoreError, match=name):
            LocalObjects(tmp_path).read(name)
        with pytest.raises(StoreError, match=name):
            LocalObjects(tmp_path).read_range(name, 0, 1)


@given(st.text(min_size=1))
def test_no_key_leaves_the_folder(name: str) -> None:
    objects = LocalObjects(Path("/nonexistent/root"))
    for key in (f"../{name}", f"/{name}", f"a/../../{name}"):
        with pytest.raises(StoreError):
            objects.read(key)


def test_unusable_places_are_errors(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="cannot write"):
        LocalObjects(tmp_path / "file/below").write("a", b"")
    for uri in ("s3:///prefix", "s3:/bucket/prefix", "gs://bucket"):
        with pytest.raises(StoreError, match="s3://bucket/prefix"):
            open_objects(uri)


def test_a_full_disk_is_a_run_error(tmp_path: Path) -> None:
    objects = LocalObjects(tmp_path)
    with (
        pytest.raises(RunError, match=r"No space left on device; make room and run the same"),
        objects.writer("a"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(objects.keys()) == []


@pytest.mark.parametrize("name", ["run#1/labels", "what?/x", "a b/%20"])
def test_prefixes_are_not_parsed_as_urls(s3_server: Any, name: str) -> None:
    objects = open_objects(f"s3://bucket/{name}/")
    objects.write("key", b"data")
    assert list(open_objects("s3://bucket").keys(name)) == [f"{name}/key"]


def test_s3_errors_say_what_to_do(s3_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match="no such bucket"):
        list(open_objects("s3://nowhere").keys())
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StoreError, match="check the credentials"):
        open_objects("s3://bucket").read("a")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    with pytest.raises(StoreError, match="AWS_ACCESS_KEY_ID"):
        open_objects("s3://bucket").read("a")


def test_an_unreachable_server_is_a_transient_error(s3_server: Any) -> None:
    s3_server.kill()
    with pytest.raises(TransientError, match="no answer"):
        S3Objects("bucket", "", attempts=1).read("a")
    s3_server.start()
    with pytest.raises(ObjectMissing):
        open_objects("s3://bucket").read("a")


def test_one_file_is_read_by_its_uri(s3_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"local")
    (s3_server.root / "bucket/file").write_bytes(b"remote")
    monkeypatch.chdir(tmp_path)
    uris: list[Callable[[], bytes]] = [
        lambda uri=uri: read_uri(uri) for uri in (str(tmp_path / "file"), "file", "s3://bucket/file")
    ]
    assert [read() for read in uris] == [b"local", b"local", b"remote"]


def test_a_body_that_is_cut_short_is_asked_for_again(s3_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (s3_server.root / "bucket/a").write_bytes(b"0123456789")
    with start_proxy(s3_server.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        proxy.fault_of = lambda number, path: CutBody() if number % 3 < 2 else None
        objects = S3Objects("bucket", "", attempts=3)
        assert (objects.read("a"), objects.read_range("a", 2, 6)) == (b"0123456789", b"234567")
        assert len(proxy.paths) == 6
        proxy.fault_of = lambda number, path: CutBody()
        with pytest.raises(TransientError, match="no answer"):
            objects.read("a")
        assert len(proxy.paths) == 9


def test_refusals_of_a_place_and_of_an_object_differ(s3_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with start_proxy(s3_server.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        objects = S3Objects("bucket", "")
        for code in ("ExpiredToken", "AccessDenied", "RequestTimeTooSkewed", "InvalidAccessKeyId"):
            proxy.fault_of = lambda number, path, code=code: Refuse(403, code)
            with pytest.raises(PlaceError, match=code):
                objects.read("a")
        proxy.fault_of = lambda number, path: Refuse(403, "InvalidObjectState")
        with pytest.raises(StoreError, match="InvalidObjectState") as caught:
            objects.read("a")
        assert not isinstance(caught.value, PlaceError)


def test_an_endpoint_that_is_no_url_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "garbage")
    with pytest.raises(PlaceError, match=r"garbage.*AWS_ENDPOINT_URL"):
        S3Objects("bucket", "").read("a")
