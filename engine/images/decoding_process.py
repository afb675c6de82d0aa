"""Decoding in a process of its own, which the kernel kills when an image takes too long.

A decoder stuck in a damaged or malicious file runs C code and cannot be interrupted by an exception, and one
that crashes takes its process with it; here either costs one image. Its memory is limited, and an image whose
process is killed, as by a kernel out of memory, is tried again before it is given up. Both ends of the pipe
are in this module:

    to the process      length (8 bytes), the file
    back, one or more   length of a JSON object (8 bytes), the object, and its pixels if it is a crop

The process does not import torch or the libraries of corpora.
"""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import islice
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from engine.errors import ImageError
from engine.images.crops import Crop, PreparationConfig, cut_crops
from engine.images.decoding import DecodingConfig, decode_image
from engine.images.tiling import TilingConfig
from engine.stopwatch import stage
from engine.types import Reason

_LENGTH = struct.Struct("<Q")
_PROGRAM = (
    "import sys; sys.path[:] = sys.argv[2:]; "
    "from engine.images.decoding_process import serve; serve(sys.argv[1])"
)
# Memory beyond what the process has at its start; compositing transparency takes 16 bytes per pixel.
_BYTES_PER_PIXEL, _EXTRA_BYTES = 20, 512 << 20
# Attempts to decode an image at which the process is killed.
_ATTEMPTS = 2
_CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL)


class _KilledError(Exception):
    """The process ended for a reason that may have nothing to do with the image."""


@dataclass(frozen=True, kw_only=True)
class _Running:
    process: subprocess.Popen[bytes]
    requests: IO[bytes]
    answers: IO[bytes]


class DecodingProcess:
    """Decodes files into crops, one file at a time, in a process that is started when needed."""

    def __init__(self, config: PreparationConfig) -> None:
        self._config = config
        self._running: _Running | None = None

    def crops(self, data: bytes) -> Iterator[Crop]:
        """Crops of an image's file; see `cut_crops`. Raises ImageError with the reason.

        The process counts its own CPU time, so that a busy machine does not change which images time out.
        """
        num_received = 0
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                for crop in islice(self._crops_once(data), num_received, None):
                    num_received += 1
                    yield crop
                return
            except _KilledError as error:
                if attempt == _ATTEMPTS:
                    raise ImageError(Reason.FAILED, str(error)) from error

    def _crops_once(self, data: bytes) -> Iterator[Crop]:
        running = self._running = self._running or _start(self._config)
        is_done = False
        try:
            with stage("decode, resize"):
                _send(running.requests, data)
                answer = self._receive_answer(running)
            while answer["kind"] == "crop":
                yield Crop(
                    resized_hwc=self._receive_pixels(running),
                    box_xyxy=tuple(answer["box_xyxy"]),
                    size=tuple(answer["size"]),
                )
                with stage("decode, resize"):
                    answer = self._receive_answer(running)
            is_done = True
        except BrokenPipeError as error:
            raise self._exit_error(running) from error
        finally:
            # The process has died, or the consumer has stopped in mid-image: it cannot be used again.
            if not is_done:
                self.close()
        if answer["kind"] == "error":
            raise ImageError(Reason(answer["reason"]), answer["detail"])

    def close(self) -> None:
        """Kill the process if it is running."""
        running, self._running = self._running, None
        if running is not None:
            running.process.kill()
            running.process.wait()
            running.answers.close()
            with suppress(BrokenPipeError):  # input that the process did not read
                running.requests.close()

    def __del__(self) -> None:
        self.close()

    def _receive_answer(self, running: _Running) -> dict[str, Any]:
        data = _receive(running.answers)
        if data is None:
            raise self._exit_error(running)
        answer: dict[str, Any] = json.loads(data)
        return answer

    def _receive_pixels(self, running: _Running) -> NDArray[np.uint8]:
        shape = (*self._config.image_size, 3)
        pixels = running.answers.read(math.prod(shape))
        if len(pixels) < math.prod(shape):
            raise self._exit_error(running)
        return np.frombuffer(pixels, np.uint8).reshape(shape)

    def _exit_error(self, running: _Running) -> ImageError | _KilledError:
        """The error of the image at which the process ended, from its exit code."""
        code = running.process.wait()
        if code == -signal.SIGPROF:
            limit_s = self._config.decoding.timeout_s
            return ImageError(Reason.TIMED_OUT, f"not decoded in {limit_s:g} s (decoding.timeout-s)")
        if -code in _CRASHES:
            return ImageError(Reason.CORRUPT, f"the decoder crashed: {signal.Signals(-code).name}")
        return _KilledError(f"the decoding process ended with {code}, {_ATTEMPTS} times")


def _start(config: PreparationConfig) -> _Running:
    command = [sys.executable, "-c", _PROGRAM, json.dumps(asdict(config)), *sys.path]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    return _Running(process=process, requests=process.stdin, answers=process.stdout)


def serve(settings: str) -> None:
    """Run in the process: decode files from standard input until it closes; `settings` is JSON."""
    config = _parse_config(json.loads(settings))
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # output of libraries must not mix with the answers
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _limit_memory(config.decoding)
    while (data := _receive(requests)) is not None:
        # When the timer expires, the signal kills the process: it has no handler.
        signal.setitimer(signal.ITIMER_PROF, config.decoding.timeout_s)
        _answer_file(data, config, answers)
        signal.setitimer(signal.ITIMER_PROF, 0)


def _limit_memory(config: DecodingConfig) -> None:
    """Let this process raise MemoryError before a small file of a huge image takes the machine's memory."""
    if not os.path.exists("/proc/self/statm"):
        return
    with open("/proc/self/statm") as status:
        size = int(status.read().split()[0]) * resource.getpagesize()
    limit = size + _EXTRA_BYTES + int(config.max_megapixels * 1e6) * _BYTES_PER_PIXEL
    _, highest = resource.getrlimit(resource.RLIMIT_AS)
    if highest == resource.RLIM_INFINITY or limit < highest:
        resource.setrlimit(resource.RLIMIT_AS, (limit, highest))


def _answer_file(data: bytes, config: PreparationConfig, answers: IO[bytes]) -> None:
    last: dict[str, Any] = {"kind": "end"}
    try:
        for crop in cut_crops(decode_image(data, config.decoding), config):
            head = {"kind": "crop", "box_xyxy": crop.box_xyxy, "size": crop.size}
            _send(answers, json.dumps(head).encode())
            answers.write(crop.resized_hwc.data)
    except ImageError as error:
        last = {"kind": "error", "reason": error.reason.value, "detail": error.detail}
    except MemoryError:
        last = {"kind": "error", "reason": Reason.TOO_LARGE.value, "detail": "not enough memory to decode it"}
    _send(answers, json.dumps(last).encode())


def _parse_config(settings: dict[str, Any]) -> PreparationConfig:
    return PreparationConfig(
        image_size=tuple(settings["image_size"]),
        keeps_aspect=settings["keeps_aspect"],
        decoding=DecodingConfig(**settings["decoding"]),
        tiling=TilingConfig(**settings["tiling"]),
    )


def _send(stream: IO[bytes], data: bytes) -> None:
    stream.write(_LENGTH.pack(len(data)))
    stream.write(data)
    stream.flush()


def _receive(stream: IO[bytes]) -> bytes | None:
    """The bytes given to `_send`, or None at the end of the stream."""
    length = stream.read(_LENGTH.size)
    if len(length) < _LENGTH.size:
        return None
    (size,) = _LENGTH.unpack(length)
    data = stream.read(size)
    return data if len(data) == size else None
