"""Fixtures of many tests: development data, small images, a small store and an S3 server."""

from __future__ import annotations

import io
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.masks.packing import make_instances
from engine.objects.local import LocalObjects
from engine.store.pseudo_labels import PseudoLabelStore
from engine.store.version_info import VersionInfo
from engine.types import ImageRecord, Outcome, Reason, ShardPlan, Status

_DATA = Path(os.environ.get("MASKMILL_DATA", Path(__file__).parents[1] / ".." / "shared")).resolve()


@pytest.fixture
def development_data() -> Callable[[str], Path]:
    """`development_data("reference/promerge")` finds that folder, and skips the test if it is absent."""

    def find(name: str) -> Path:
        if not (_DATA / name).is_dir():
            pytest.skip(f"no {name} below {_DATA}; set MASKMILL_DATA to the folder that holds it")
        return _DATA / name

    return find


@pytest.fixture
def photograph() -> Callable[[int], np.ndarray]:
    """`photograph(seed)` makes uint8 (48, 64, 3): a bright disc on a darker background."""

    def make(seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        rows, columns = np.mgrid[:48, :64]
        inside = (rows - rng.integers(16, 32)) ** 2 + (columns - rng.integers(20, 44)) ** 2 < 12**2
        image = np.where(inside[..., None], rng.integers(150, 250, 3), rng.integers(0, 100, 3))
        return (image + rng.integers(-5, 6, image.shape)).clip(0, 255).astype(np.uint8)

    return make


@pytest.fixture
def labelled_discs(
    tmp_path: Path, photograph: Callable[[int], np.ndarray], encode_image: Callable[..., bytes]
) -> tuple[Path, Path]:
    """A folder of photographs, and a store with the true masks of their discs, scored number / 10.

    Of 9 images, every third is rejected, and the first has no mask.
    """
    images, store = tmp_path / "discs", LocalObjects(tmp_path / "labels")
    images.mkdir()
    outcomes = []
    for number in range(9):
        record = ImageRecord(image_id=f"{number}.png", path=f"{number}.png")
        if number % 3 == 2:
            outcomes.append(Outcome(record=record, status=Status.REJECTED, reason=Reason.TRUNCATED))
            continue
        image = photograph(number)
        (images / record.path).write_bytes(encode_image(image, "PNG"))
        mask = image.mean(axis=2) > (float(image.min()) + float(image.max())) / 2
        instances = make_instances(mask[None], np.float32([number / 10]), (48, 64), "promerge")
        found = number > 0
        outcomes.append(
            Outcome(
                record=record,
                status=Status.LABELLED if found else Status.NO_OBJECT,
                reason=None if found else Reason.NO_FOREGROUND,
                height=48,
                width=64,
                instances=instances if found else None,
            )
        )
    info = VersionInfo(
        round=0, configuration={}, weights_digest="", parent=None, code_version="", device="cpu"
    )
    version = PseudoLabelStore(store).begin(info, "resume")
    version.record_plan(ShardPlan(index=0, records=tuple(o.record for o in outcomes), is_last=True))
    version.commit(0, outcomes)
    version.finish()
    return images, Path(store.uri)


@pytest.fixture
def encode_image() -> Callable[..., bytes]:
    """`encode_image(array, "PNG")` gives the bytes of an image file."""

    def encode(image: np.ndarray | Image.Image, kind: str, **options: object) -> bytes:
        sink = io.BytesIO()
        picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
        picture.save(sink, kind, **options)
        return sink.getvalue()

    return encode


@dataclass
class S3Server:
    """An S3 server on loopback; the buckets are the subfolders of `root`."""

    root: Path
    endpoint: str
    _command: list[str]
    _process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        host, port = self.endpoint.removeprefix("http://").split(":")
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex((host, int(port))) == 0:
                    return
            time.sleep(0.05)
        raise RuntimeError(f"no S3 server came up at {self.endpoint}")

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()


@pytest.fixture
def s3_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """A running S3 server with an empty bucket `bucket`; the AWS variables point to it."""
    program = shutil.which("rclone", path=str(Path(sys.executable).parent)) or shutil.which("rclone")
    assert program is not None, "install the test dependencies: pip install -e '.[test]'"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    root = tmp_path / "s3"
    (root / "bucket").mkdir(parents=True)
    for name, value in {
        "AWS_ACCESS_KEY_ID": "key-id",
        "AWS_SECRET_ACCESS_KEY": "key-secret",
        "AWS_ENDPOINT_URL": f"http://{address}",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
    }.items():
        monkeypatch.setenv(name, value)
    command = [program, "serve", "s3", "--auth-key", "key-id,key-secret", "--addr", address, str(root)]
    server = S3Server(root=root, endpoint=f"http://{address}", _command=command)
    server.start()
    yield server
    server.kill()
