"""Decoding of an image file into upright RGB, or the reason why it cannot be decoded."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from engine.bounds import Bounded, Bounds, Count
from engine.errors import ImageError
from engine.types import Reason

# Images that are too large are rejected by `_check_size`, before a pixel is decoded.
Image.MAX_IMAGE_PIXELS = None

_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_BITS_PER_SAMPLE, _PLANAR_CONFIGURATION = 258, 284
# A day.
_MAX_TIMEOUT_S = 86_400.0
# Rows whose grey values are converted at a time: wider types of a whole large image would take gigabytes.
_ROWS_AT_A_TIME = 256
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")


@dataclass(frozen=True, kw_only=True)
class DecodingConfig(Bounded):
    """Limits on image files."""

    max_megapixels: Annotated[float, Bounds(0, what="a number of million pixels", above=True)] = 180.0
    """Reject images of more million pixels than this, before they are decoded."""
    min_side: Count = 16
    """Reject images with fewer pixels than this on either side."""
    timeout_s: Annotated[float, Bounds(0, _MAX_TIMEOUT_S, "a number of seconds", above=True)] = 60.0
    """Reject images that take more CPU seconds than this to decode."""


def decode_image(data: bytes, config: DecodingConfig) -> NDArray[np.uint8]:
    """Decode a JPEG, PNG, WebP, TIFF or BMP file to upright RGB, uint8 (H, W, 3).

    Of several frames the first is decoded. EXIF orientation is applied; grey is repeated, palettes and CMYK
    are converted, transparency is composited on white. More than 8 bits are reduced to 8 by `_to_8_bit`.
    Raises ImageError with the reason.
    """
    if not data:
        raise ImageError(Reason.EMPTY_FILE, "the file has 0 bytes")
    with warnings.catch_warnings():
        # Damaged metadata is no reason to reject an image whose pixels can be read.
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                _check_size(image, config)
                is_deep = _has_deep_colours(image)
                image.load()
                if is_deep:
                    _check_uses_depth(image)
                return np.asarray(_to_rgb(_upright(image)))
        except ImageError:
            raise
        except UnidentifiedImageError as error:
            detail = f"not a {', '.join(_FORMATS)} file"
            if data.startswith(_TIFF_STARTS):
                detail = "a TIFF of a kind that cannot be read: save it with 8 or 16 bits and 1 or 3 channels"
            raise ImageError(Reason.NOT_AN_IMAGE, detail) from error
        except MemoryError as error:
            raise ImageError(Reason.TOO_LARGE, "not enough memory to decode it") from error
        # PIL's decoders raise nearly any exception on damaged input.
        except Exception as error:
            truncated = "truncated" in str(error).lower()
            reason = Reason.TRUNCATED if truncated else Reason.CORRUPT
            # An object's address differs from run to run.
            message = re.sub(r"<[^>]* at 0x[0-9a-f]+>", "the file", str(error))
            raise ImageError(reason, f"{type(error).__name__}: {message}") from error


def _check_size(image: Image.Image, config: DecodingConfig) -> None:
    width, height = image.size
    if width * height > config.max_megapixels * 1e6:
        raise ImageError(
            Reason.TOO_LARGE,
            f"{width} x {height} pixels; decoding.max-megapixels is {config.max_megapixels:g}",
        )
    if min(width, height) < config.min_side:
        raise ImageError(
            Reason.TOO_SMALL, f"{width} x {height} pixels; decoding.min-side is {config.min_side}"
        )


def _has_deep_colours(image: ImageFile.ImageFile) -> bool:
    """Whether colours have 16 bits, of which PIL keeps the upper 8.

    Raises ImageError for separate planes of 16 bits, which PIL misreads.
    """
    if image.mode.startswith(("I", "F")):
        return False
    if isinstance(image, TiffImageFile) and 16 in (image.tag_v2.get(_BITS_PER_SAMPLE) or ()):
        if image.tag_v2.get(_PLANAR_CONFIGURATION) == 2:
            raise ImageError(Reason.UNREADABLE, "a TIFF of separate 16-bit planes: save it interleaved")
        return True
    return any(";16" in str(tile) for tile in image.tile)


def _check_uses_depth(image: Image.Image) -> None:
    """Raise ImageError for 16-bit colours that use 12 bits or fewer: their upper 8 bits are nearly empty."""
    colours = [np.asarray(image.getchannel(band)) for band in image.getbands() if band != "A"]
    if max(int(colour.max()) for colour in colours) < 16:
        raise ImageError(
            Reason.UNREADABLE, "16-bit colours that use 12 bits or fewer: scale them to the full range"
        )


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation; ignore unreadable EXIF."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # PIL's EXIF reader raises nearly any exception on damaged tags
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        image = Image.fromarray(_to_8_bit(np.asarray(image)))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB")


def _to_8_bit(grey: NDArray[np.number]) -> NDArray[np.uint8]:
    """Reduce grey values of any depth to uint8, (H, W).

    Integers are shifted so that the brightest pixel fits into 8 bits: 12-bit data in a 16-bit file does not
    turn black, and a full 16-bit range is divided by 256. Floats are stretched from their smallest to their
    largest value. Raises ImageError if values are not finite.
    """
    if grey.dtype.kind == "f":
        if not np.isfinite(grey).all():
            raise ImageError(Reason.NON_FINITE, "the image has pixels that are not finite numbers")
        low, high = float(grey.min()), float(grey.max())
        factor = 255.0 / (high - low) if high > low else 0.0
        return _by_rows(grey, lambda rows: np.round((rows - low) * factor))
    offset = min(int(grey.min()), 0)
    bits = max((int(grey.max()) - offset).bit_length(), 8)
    return _by_rows(grey, lambda rows: (rows.astype(np.int64) - offset) >> (bits - 8))


def _by_rows(
    grey: NDArray[np.number], convert: Callable[[NDArray[np.number]], NDArray[np.number]]
) -> NDArray[np.uint8]:
    """Apply an elementwise function to (H, W), a few rows at a time, and convert the result to uint8."""
    result = np.empty(grey.shape, np.uint8)
    for start in range(0, len(grey), _ROWS_AT_A_TIME):
        block = slice(start, start + _ROWS_AT_A_TIME)
        result[block] = convert(grey[block]).astype(np.uint8)
    return result
