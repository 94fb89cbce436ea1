"""Decodes one image file that nobody vouches for."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from inversight.core.errors import DataError

SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".pgm", ".ppm"}
)
MAX_PIXELS = 64_000_000
"""Images that declare more pixels than this are refused before they are decoded."""
GREY_MODES = frozenset({"1", "L", "LA", "I;16", "I;16B", "I;16L", "I", "F"})


def open_image(file: Path, role: str) -> Image.Image:
    """Open for reading the header, refusing what is not an image or declares too many pixels."""
    try:
        if file.stat().st_size == 0:
            raise DataError(f"{role} {file}: is empty (0 bytes); replace or remove it")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(file)
    except (UnidentifiedImageError, SyntaxError, ValueError):
        raise DataError(f"{role} {file}: is not a readable image; replace or remove it") from None
    except Image.DecompressionBombError:
        raise DataError(_bomb(role, file)) from None
    except OSError as error:
        raise DataError(
            f"{role} {file}: cannot be read ({error.strerror or error}); replace or remove it"
        ) from None
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise DataError(_bomb(role, file))
    return image


def _bomb(role: str, file: Path) -> str:
    return (
        f"{role} {file}: declares more than {MAX_PIXELS / 1e6:.0f} million pixels, which could "
        "exhaust memory; shrink or remove it"
    )


def decode(file: Path, role: str) -> Image.Image:
    """The whole image, turned upright, as L or RGB."""
    with open_image(file, role) as image:
        try:
            image.load()
            upright: Image.Image = ImageOps.exif_transpose(image)
            return _plain(upright)
        except MemoryError:
            raise
        except Exception as error:  # decoders of damaged files raise whatever they trip over
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DataError(
                f"{role} {file}: is damaged or cut short ({reason}); replace or remove it"
            ) from None


def _plain(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float64)
        scale = 255.0 / 65535.0 if values.max(initial=0.0) > 255.0 else 1.0
        return Image.fromarray(np.clip(np.round(values * scale), 0, 255).astype(np.uint8))
    if image.mode in ("L", "1"):
        return image.convert("L")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layered = image.convert("RGBA")
        paper = Image.new("RGBA", layered.size, (255, 255, 255, 255))
        flat = Image.alpha_composite(paper, layered)
        return flat.convert("L" if image.mode in ("LA", "La") else "RGB")
    return image.convert("RGB")


def to_tensor(image: Image.Image, size: int | None, channels: int) -> Tensor:
    image = image.convert("L" if channels == 1 else "RGB")
    if size is not None and image.size != (size, size):
        shorter = min(image.size)
        wide = max(size, round(image.width * size / shorter))
        high = max(size, round(image.height * size / shorter))
        image = image.resize((wide, high), Image.Resampling.BILINEAR)
        left, top = (wide - size) // 2, (high - size) // 2
        image = image.crop((left, top, left + size, top + size))
    array = np.array(image, dtype=np.uint8)
    return torch.from_numpy(array[None] if channels == 1 else np.moveaxis(array, 2, 0).copy())
