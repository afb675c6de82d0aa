import os
import pickle
import resource
import signal
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain

import numpy as np
import psutil
import pytest
from PIL import Image

from engine.errors import ConfigurationError, ImageError
from engine.images.crops import PreparationConfig, cut_crops
from engine.images.decoding import DecodingConfig, decode_image
from engine.images.decoding_process import DecodingProcess
from engine.images.tiling import TilingConfig
from engine.types import Reason

CONFIG = PreparationConfig(
    image_size=(24, 40), decoding=DecodingConfig(timeout_s=20), tiling=TilingConfig(tile=32)
)


@pytest.fixture
def decoder() -> Iterator[DecodingProcess]:
    process = DecodingProcess(CONFIG)
    yield process
    process.close()


def slow_jpeg(num_scans: int) -> bytes:
    """A small file that keeps a decoder busy: each scan holds 250,000 empty blocks."""

    def segment(marker: int, data: bytes) -> bytes:
        return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data

    # One AC code of one bit, for a run of 16,384 empty blocks: 15 zero bits, run lengths included.
    table = segment(0xC4, bytes([0x10, 1, *[0] * 15, 0xE0]))
    frame = segment(0xC2, struct.pack(">BHHBBBB", 8, 4000, 4000, 1, 1, 0x11, 0))
    scan = segment(0xDA, bytes([1, 1, 0, 1, 63, 0])) + bytes(32)
    quantisation = segment(0xDB, bytes([0] + [1] * 64))
    return b"\xff\xd8" + quantisation + frame + table + scan * num_scans + b"\xff\xd9"


def children() -> list[psutil.Process]:
    """Child processes, without the resource tracker that multiprocessing keeps after another test."""
    found = psutil.Process().children()
    return [child for child in found if "resource_tracker" not in " ".join(child.cmdline())]


def reason_of(decoder: DecodingProcess, data: bytes) -> Reason:
    with pytest.raises(ImageError) as caught:
        list(decoder.crops(data))
    assert caught.value.detail
    return caught.value.reason


def test_crops_equal_those_made_in_this_process(
    decoder: DecodingProcess, photograph: Callable[[int], np.ndarray], encode_image: Callable[..., bytes]
) -> None:
    for seed in range(2):
        data = encode_image(photograph(seed), "PNG")
        expected = list(cut_crops(decode_image(data, CONFIG.decoding), CONFIG))
        found = list(decoder.crops(data))
        assert [(crop.box_xyxy, crop.size) for crop in found] == [(c.box_xyxy, c.size) for c in expected]
        assert len(found) == 7
        for one, other in zip(found, expected, strict=True):
            assert np.array_equal(one.resized_hwc, other.resized_hwc)


def test_a_broken_file_has_a_reason_and_leaves_the_process_alive(
    decoder: DecodingProcess, photograph: Callable[[int], np.ndarray], encode_image: Callable[..., bytes]
) -> None:
    data = encode_image(photograph(0), "PNG")
    assert reason_of(decoder, b"") == Reason.EMPTY_FILE
    (child,) = children()
    assert reason_of(decoder, b"no image") == Reason.NOT_AN_IMAGE
    assert reason_of(decoder, data[: len(data) // 2]) in (Reason.TRUNCATED, Reason.CORRUPT)
    assert len(list(decoder.crops(data))) == 7
    assert children() == [child]


def test_an_image_that_takes_too_long_times_out(
    photograph: Callable[[int], np.ndarray], encode_image: Callable[..., bytes]
) -> None:
    data = slow_jpeg(20_000)
    assert len(data) < 1_000_000
    assert decode_image(slow_jpeg(2), CONFIG.decoding).shape == (4000, 4000, 3)
    decoder = DecodingProcess(replace(CONFIG, decoding=DecodingConfig(timeout_s=1)))
    assert reason_of(decoder, data) == Reason.TIMED_OUT
    assert len(list(decoder.crops(encode_image(photograph(0), "PNG")))) == 7
    decoder.close()
    assert children() == []
    with pytest.raises(ConfigurationError, match="timeout_s"):
        DecodingConfig(timeout_s=0)


def test_a_crash_of_the_decoder_costs_one_image(
    decoder: DecodingProcess, photograph: Callable[[int], np.ndarray], encode_image: Callable[..., bytes]
) -> None:
    data = encode_image(photograph(0), "PNG")
    crops = decoder.crops(data)
    next(crops)
    (child,) = children()
    os.kill(child.pid, signal.SIGSEGV)
    # Crops that were sent before the crash may still arrive.
    with pytest.raises(ImageError) as caught:
        list(chain(crops, decoder.crops(data)))
    assert caught.value.reason == Reason.CORRUPT
    assert len(list(decoder.crops(data))) == 7


def test_an_image_is_decoded_again_after_a_kill(
    decoder: DecodingProcess, photograph: Callable[[int], np.ndarray], encode_image: Callable[..., bytes]
) -> None:
    data = encode_image(photograph(0), "PNG")
    expected = list(decoder.crops(data))
    (child,) = children()
    os.kill(child.pid, signal.SIGSTOP)
    crops = decoder.crops(data)
    killer = threading.Timer(0.3, child.kill)
    killer.start()
    found = list(crops)
    killer.join()
    assert [crop.box_xyxy for crop in found] == [crop.box_xyxy for crop in expected]
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(one.resized_hwc, other.resized_hwc)


def test_an_image_whose_decoder_is_killed_twice_is_given_up(
    photograph: Callable[[int], np.ndarray], encode_image: Callable[..., bytes]
) -> None:
    decoder, stop = DecodingProcess(CONFIG), threading.Event()

    def kill_all() -> None:
        while not stop.wait(0.01):
            for child in children():
                child.kill()

    killer = threading.Thread(target=kill_all)
    killer.start()
    try:
        assert reason_of(decoder, encode_image(photograph(0), "PNG")) == Reason.FAILED
    finally:
        stop.set()
        killer.join()
    decoder.close()


def test_a_small_file_of_a_huge_image_does_not_take_the_memory(encode_image: Callable[..., bytes]) -> None:
    huge = encode_image(Image.fromarray(np.zeros((6000, 6000), np.uint16)), "PNG")
    assert len(huge) < 1_000_000
    decoder = DecodingProcess(
        replace(CONFIG, decoding=DecodingConfig(max_megapixels=36), tiling=TilingConfig())
    )
    assert len(list(decoder.crops(huge))) == 1
    (child,) = children()
    with open(f"/proc/{child.pid}/status") as status:
        (peak_kb,) = (int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    assert peak_kb < 600_000
    (limit,) = {resource.prlimit(child.pid, resource.RLIMIT_AS)[0]}
    assert limit < 5 << 30
    decoder.close()


def test_the_decoder_can_be_used_after_a_consumer_stops_in_mid_image(
    decoder: DecodingProcess, photograph: Callable[[int], np.ndarray], encode_image: Callable[..., bytes]
) -> None:
    data = encode_image(photograph(0), "PNG")
    crops = decoder.crops(data)
    next(crops)
    crops.close()
    assert len(list(pickle.loads(pickle.dumps(DecodingProcess(CONFIG))).crops(data))) == 7
    assert len(list(decoder.crops(data))) == 7


def test_time_spent_waiting_does_not_count(
    photograph: Callable[[int], np.ndarray], encode_image: Callable[..., bytes]
) -> None:
    decoder = DecodingProcess(replace(CONFIG, decoding=DecodingConfig(timeout_s=0.5)))
    crops = decoder.crops(encode_image(photograph(0), "PNG"))
    next(crops)
    time.sleep(1)
    assert len(list(crops)) == 6
    decoder.close()
