import io
import math
from collections.abc import Callable

import numpy as np
import pytest
import tifffile
from PIL import Image

from engine.errors import ConfigurationError, ImageError
from engine.images.decoding import DecodingConfig, decode_image
from engine.images.resizing import resize_image
from engine.types import Reason

CONFIG = DecodingConfig()
# A scene without symmetry: red top left, blue bottom right, 32 wide and 20 high.
SCENE = np.zeros((20, 32, 3), np.uint8)
SCENE[:10, :16, 0] = 255
SCENE[10:, 16:, 2] = 255
Encode = Callable[..., bytes]


def reason_of(data: bytes, config: DecodingConfig = CONFIG) -> Reason:
    with pytest.raises(ImageError) as caught:
        decode_image(data, config)
    assert caught.value.detail
    return caught.value.reason


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_lossless_formats_are_decoded_exactly(encode_image: Encode, kind: str) -> None:
    assert np.array_equal(decode_image(encode_image(SCENE, kind), CONFIG), SCENE)


@pytest.mark.parametrize(("kind", "options"), [("JPEG", {"quality": 95}), ("WEBP", {"lossless": True})])
def test_other_formats_are_decoded(encode_image: Encode, kind: str, options: dict[str, object]) -> None:
    decoded = decode_image(encode_image(SCENE, kind, **options), CONFIG)
    assert decoded.shape == SCENE.shape
    assert np.abs(decoded.astype(int) - SCENE).mean() < 5


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(encode_image: Encode, orientation: int) -> None:
    # What a camera stores of an upright scene: the inverse of the transform that the tag asks for.
    stored = {
        1: SCENE, 2: SCENE[:, ::-1], 3: SCENE[::-1, ::-1], 4: SCENE[::-1], 5: SCENE.transpose(1, 0, 2),
        6: np.rot90(SCENE, 1), 7: SCENE[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(SCENE, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode_image(encode_image(np.ascontiguousarray(stored), "PNG", exif=exif), CONFIG)
    assert np.array_equal(decoded, SCENE)


def test_grey_is_repeated(encode_image: Encode) -> None:
    grey = SCENE[..., 0]
    decoded = decode_image(encode_image(grey, "PNG"), CONFIG)
    assert np.array_equal(decoded, np.repeat(grey[..., None], 3, axis=2))


def test_palettes_and_their_transparency(encode_image: Encode) -> None:
    palette = Image.fromarray(SCENE).convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
    assert np.array_equal(decode_image(encode_image(palette, "PNG"), CONFIG), SCENE)
    black = palette.getpixel((20, 2))
    transparent = decode_image(encode_image(palette, "PNG", transparency=black), CONFIG)
    assert transparent[2, 20].tolist() == [255, 255, 255]
    assert transparent[2, 2].tolist() == [255, 0, 0]


def test_transparency_is_composited_on_white(encode_image: Encode) -> None:
    alpha = np.zeros((20, 32, 1), np.uint8)
    alpha[:10] = 255
    decoded = decode_image(encode_image(np.concatenate([SCENE, alpha], axis=2), "PNG"), CONFIG)
    assert np.array_equal(decoded[:10], SCENE[:10])
    assert (decoded[10:] == 255).all()


def test_cmyk_is_converted(encode_image: Encode) -> None:
    decoded = decode_image(encode_image(Image.fromarray(SCENE).convert("CMYK"), "JPEG", quality=95), CONFIG)
    assert np.abs(decoded.astype(int) - SCENE).mean() < 8


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("scale", [257, 16])  # a full 16-bit range, and 12 bits in a 16-bit file
def test_16_bit_grey_keeps_the_upper_8_bits_in_use(encode_image: Encode, kind: str, scale: int) -> None:
    grey = np.linspace(0, 255, 640).astype(np.uint16).reshape(20, 32)
    decoded = decode_image(encode_image(grey * np.uint16(scale), kind), CONFIG)
    assert np.array_equal(decoded[..., 0], grey)


def deep_tiff(values: np.ndarray, planes: bool = False) -> bytes:
    sink = io.BytesIO()
    values = np.ascontiguousarray(values.transpose(2, 0, 1)) if planes else values
    tifffile.imwrite(sink, values, photometric="rgb", planarconfig="separate" if planes else "contig")
    return sink.getvalue()


def test_16_bit_colours_are_reduced_if_they_use_the_range() -> None:
    deep = SCENE.astype(np.uint16) * 257
    assert np.array_equal(decode_image(deep_tiff(deep), CONFIG), SCENE)
    # 12 bits would turn black, and PIL takes planes for 8 bits.
    assert reason_of(deep_tiff(deep >> 4)) == Reason.UNREADABLE
    assert reason_of(deep_tiff(deep, planes=True)) == Reason.UNREADABLE
    assert np.array_equal(decode_image(deep_tiff(SCENE, planes=True), CONFIG), SCENE)


def test_an_unreadable_tiff_is_reported_as_a_tiff() -> None:
    with pytest.raises(ImageError, match="a TIFF of a kind that cannot be read"):
        decode_image(deep_tiff(SCENE.astype(np.float32)), CONFIG)


def test_floats_are_stretched_to_the_full_range(encode_image: Encode) -> None:
    ramp = np.linspace(-2.0, 3.0, 640, dtype=np.float32).reshape(20, 32)
    decoded = decode_image(encode_image(ramp, "TIFF"), CONFIG)
    assert (decoded.min(), decoded.max()) == (0, 255)
    assert (decode_image(encode_image(np.full((20, 32), 7, np.float32), "TIFF"), CONFIG) == 0).all()
    ramp[3, 4] = np.nan
    assert reason_of(encode_image(ramp, "TIFF")) == Reason.NON_FINITE


def test_every_kind_of_broken_file_has_its_reason(encode_image: Encode) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 80, 3), np.uint8)
    jpeg, png = encode_image(noise, "JPEG"), encode_image(noise, "PNG")
    assert reason_of(b"") == Reason.EMPTY_FILE
    assert reason_of(b"This is no image, whatever its name says.") == Reason.NOT_AN_IMAGE
    assert reason_of(jpeg[: len(jpeg) // 2]) == Reason.TRUNCATED
    assert reason_of(png[: len(png) // 2]) in (Reason.TRUNCATED, Reason.CORRUPT)
    damaged = bytearray(png)
    damaged[len(png) // 2 : len(png) // 2 + 40] = bytes(40)
    assert reason_of(bytes(damaged)) == Reason.CORRUPT
    assert reason_of(encode_image(np.zeros((1, 1, 3), np.uint8), "PNG")) == Reason.TOO_SMALL
    assert reason_of(encode_image(SCENE, "GIF")) == Reason.NOT_AN_IMAGE


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_an_animation_is_decoded(encode_image: Encode, kind: str) -> None:
    later = [Image.fromarray(np.full_like(SCENE, 90 * i)) for i in (1, 2)]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode_image(SCENE, kind, save_all=True, append_images=later, **options)
    with Image.open(io.BytesIO(data)) as image:
        assert getattr(image, "n_frames", 1) == 3
    assert np.array_equal(decode_image(data, CONFIG), SCENE)


def test_a_decompression_bomb_is_not_decoded(encode_image: Encode) -> None:
    bomb = encode_image(Image.new("1", (30_000, 30_000)), "PNG")
    assert len(bomb) < 1_000_000
    assert reason_of(bomb) == Reason.TOO_LARGE
    assert reason_of(encode_image(SCENE, "PNG"), DecodingConfig(max_megapixels=0.0006)) == Reason.TOO_LARGE


def test_details_are_the_same_in_every_run(encode_image: Encode) -> None:
    data = encode_image(SCENE, "PNG")[:60]
    details = set()
    for _ in range(2):
        with pytest.raises(ImageError) as caught:
            decode_image(data, CONFIG)
        details.add(caught.value.detail)
    assert len(details) == 1
    assert "0x" not in details.pop()


def test_resizing_does_not_keep_the_aspect_ratio() -> None:
    assert resize_image(SCENE, (16, 8)).shape == (16, 8, 3)


def test_settings_out_of_range() -> None:
    with pytest.raises(ConfigurationError, match="max_megapixels"):
        DecodingConfig(max_megapixels=0)
    with pytest.raises(ConfigurationError, match="max_megapixels"):
        DecodingConfig(max_megapixels=math.nan)
    for timeout_s in (0, math.inf, math.nan):
        with pytest.raises(ConfigurationError, match="timeout_s"):
            DecodingConfig(timeout_s=timeout_s)
    with pytest.raises(ConfigurationError, match="min_side"):
        DecodingConfig(min_side=0)
