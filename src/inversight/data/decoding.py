"""Decodes one image, a file or its bytes, which may be damaged or hostile."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from inversight.core.errors import DataError, one_line
from inversight.core.imaging import Size, side_of

_NOT_READ = frozenset({"BUFR", "EPS", "FITS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"})
"""Formats that run another program when decoded, or hold no picture that Pillow decodes itself."""
MAX_PIXELS = 64_000_000
"""Images that declare more pixels than this are refused before they are decoded."""
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262
"""Tags of a TIFF file: bits of each value, and 0 where the lowest value is white."""
_ORIENTATION = 274
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip
"""Tag of EXIF that says how an image is to be turned, and what each value says."""


@cache
def formats() -> dict[str, str]:
    """Return the format for each suffix (lower case, with its dot) of files that are read.

    These are all that Pillow decodes by itself; other formats are never tried, whatever the suffix.
    """
    return {
        suffix: "JPEG" if name == "MPO" else name
        for suffix, name in Image.registered_extensions().items()
        if (name in Image.OPEN or name == "MPO") and name not in _NOT_READ
    }


@cache
def _known() -> list[str]:
    """Return the formats that are tried, the usual ones first, since some take long to say no."""
    known = dict.fromkeys(formats().values())
    usual = [name for name in ("JPEG", "PNG", "WEBP", "GIF", "BMP") if name in known]
    return list(dict.fromkeys([*usual, *known]))


def open_image(content: Path | bytes, where: str) -> Image.Image:
    """Open an image, a file or its bytes, and read its header.

    ``where``: how messages name it, such as "--private a/1.png".

    Raises:
        DataError: it cannot be read, is not an image, or declares more than ``MAX_PIXELS``.
    """
    try:
        length = len(content) if isinstance(content, bytes) else content.stat().st_size
        if length == 0:
            raise DataError(f"{where}: is empty (0 bytes); replace or remove it")
        file = io.BytesIO(content) if isinstance(content, bytes) else content
        image = Image.open(file, formats=_known())
        if image.width * image.height > MAX_PIXELS:
            image.close()
            raise Image.DecompressionBombError
    except (UnidentifiedImageError, SyntaxError, ValueError):
        raise DataError(f"{where}: is not a readable image; replace or remove it") from None
    except Image.DecompressionBombError:
        raise DataError(
            f"{where}: declares more than {MAX_PIXELS / 1e6:.0f} million pixels, which could "
            "exhaust memory; shrink or remove it"
        ) from None
    except OSError as error:
        raise DataError(
            f"{where}: cannot be read ({error.strerror or error}); replace or remove it"
        ) from None
    return image


@contextmanager
def quiet_decoding() -> Iterator[None]:
    """Silence what Pillow warns of without naming the file; not to be entered by several threads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", module="PIL")
        yield


def is_grey(image: Image.Image) -> bool:
    """Return whether an opened image has no colour, by its mode."""
    return image.mode in ("1", "L", "LA") or _is_deep(image)


def _is_deep(image: Image.Image) -> bool:
    """Return whether an image has grey values of more than eight bits."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def decode(content: Path | bytes, where: str) -> Image.Image:
    """Return the whole image of a file or its bytes, turned upright, as L or RGB.

    Values of more than eight bits are scaled by the range of the file's type: integers by their
    number of bits, floats from [0, 1].

    Raises:
        DataError: the file is damaged, or its values have no known range.
    """
    with open_image(content, where) as image:
        try:
            image.load()
            upright = _upright(image)
            if _is_deep(image):
                return _eight_bits(upright, image)
            return _on_white(upright)
        except MemoryError:
            raise
        except _UnknownRangeError as error:
            raise DataError(f"{where}: {error}") from None
        except Exception as error:  # decoders of damaged files raise whatever they trip over
            raise DataError(
                f"{where}: is damaged or cut short ({one_line(error)}); replace or remove it"
            ) from None


def _upright(image: Image.Image) -> Image.Image:
    """Turn an image as its EXIF or XMP says; damaged metadata say nothing, and the pixels are whole."""
    try:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except MemoryError:
        raise
    except Exception:
        return image
    return image if turn is None else image.transpose(turn)


class _UnknownRangeError(ValueError):
    """Pixels that cannot be brought to eight bits without a guess."""


def _eight_bits(image: Image.Image, opened: Image.Image) -> Image.Image:
    """Scale grey values of more than eight bits to 0..255; ``opened`` has the file's format and tags."""
    tags = getattr(opened, "tag_v2", {})
    if opened.mode == "F":
        highest = 1
    elif opened.mode.startswith("I;16") or opened.format in ("PNG", "PPM"):
        highest = 2 ** tags.get(_BITS_PER_SAMPLE, (16,))[0] - 1
    else:
        raise _UnknownRangeError(
            "has 32-bit or signed integers, whose black and white are not known; save it with 8 or "
            "16 unsigned bits"
        )
    values = np.asarray(image, dtype=np.float64)
    if not ((values >= 0) & (values <= highest)).all():
        raise _UnknownRangeError(
            f"has values from {values.min():g} to {values.max():g}, expected 0 to {highest}; save it "
            "with 8 or 16 unsigned bits"
        )
    if tags.get(_PHOTOMETRIC) == 0:
        values = highest - values
    if isinstance(transparent := opened.info.get("transparency"), int):
        values = np.where(values == transparent, highest, values)
    return Image.fromarray(np.round(values * (255.0 / highest)).astype(np.uint8))


def _on_white(image: Image.Image) -> Image.Image:
    """Convert an image of eight bits to L or RGB, transparent parts laid on white."""
    mode = "L" if image.mode in ("1", "L", "LA") else "RGB"
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        paper = Image.new("RGBA", layered.size, (255, 255, 255, 255))
        image = Image.alpha_composite(paper, layered)
    elif image.mode == "LAB":
        raise _UnknownRangeError(
            "has the colours of CIE Lab, which are not converted; save it as RGB"
        )
    return image.convert(mode)


def to_tensor(image: Image.Image, size: Size | None, channels: int) -> Tensor:
    """Return uint8 (channels, H, W), see :data:`inversight.core.imaging.Size`; None: as it is."""
    image = image.convert("L" if channels == 1 else "RGB")
    if isinstance(size, tuple):
        height, width = size
        scale = min(image.height / height, image.width / width)
        high, wide = scale * height, scale * width
        left, top = (image.width - wide) / 2, (image.height - high) / 2
        image = image.resize(
            (side_of(size), side_of(size)), Image.Resampling.BILINEAR,
            box=(left, top, left + wide, top + high),
        )  # fmt: skip
    elif size is not None and image.size != (size, size):
        shorter = min(image.size)
        wide = max(size, round(image.width * size / shorter))
        high = max(size, round(image.height * size / shorter))
        image = image.resize((wide, high), Image.Resampling.BILINEAR)
        left, top = (wide - size) // 2, (high - size) // 2
        image = image.crop((left, top, left + size, top + size))
    array = np.array(image, dtype=np.uint8)
    return torch.from_numpy(array[None] if channels == 1 else np.moveaxis(array, 2, 0).copy())
