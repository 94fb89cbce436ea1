"""Image files that tests write, and how a refusal is checked."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from inversight.core.errors import DataError
from inversight.data import load_images
from tests.refusals import refused


def picture(seed: int, size: tuple[int, int] = (8, 8), mode: str = "L") -> Image.Image:
    """Noise of ``size`` (width, height)."""
    depth = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], *depth))
    return Image.fromarray(values.astype(np.uint8))


def encode(image: Image.Image, kind: str) -> bytes:
    """Return the bytes of an image file of this kind."""
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def save(image: Image.Image | bytes, file: Path, **options: object) -> Path:
    """Write an image, or a file's bytes, making the folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(image, bytes):
        file.write_bytes(image)
    else:
        image.save(file, **options)
    return file


def refusal(path: Path, *parts: str, size: int | None = None, labelled: bool = True) -> None:
    """Loading is refused with one line that holds all of ``parts``."""
    with refused("--private", *parts, error=DataError):
        load_images(path, role="--private", size=size, labelled=labelled)


def png_header(width: int, height: int) -> bytes:
    """A PNG that declares ``width`` x ``height`` grey pixels and holds one."""
    content = bytearray(encode(Image.new("L", (1, 1)), "PNG"))
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


def tiff(values: np.ndarray, bits: int, *, white: int = 1) -> bytes:
    """Return an uncompressed grey TIFF file of ``values`` in their own type and byte order.

    ``bits``: of each value; 12 are packed. ``white`` 0: the lowest value is white.
    """
    order, mark = (">", b"MM") if values.dtype.byteorder == ">" else ("<", b"II")
    data = values.tobytes()
    if bits == 12:
        first, second = values.astype(np.uint16).reshape(-1, 2).T
        packed = [first >> 4, (first & 15) << 4 | second >> 8, second & 255]
        data = np.stack(packed, axis=1).astype(np.uint8).tobytes()
    entries = [
        (256, values.shape[1]), (257, values.shape[0]), (258, bits), (259, 1), (262, white),
        (273, 0), (277, 1), (278, values.shape[0]), (279, len(data)),
        (339, {"u": 1, "i": 2, "f": 3}[values.dtype.kind]),
    ]  # fmt: skip
    start = 8 + 2 + 12 * len(entries) + 4
    tags = b"".join(
        struct.pack(f"{order}HHII", tag, 4, 1, start if tag == 273 else value)
        for tag, value in entries
    )
    head = mark + struct.pack(f"{order}HIH", 42, 8, len(entries))
    return head + tags + bytes(4) + data


def grey_files(levels: np.ndarray) -> dict[str, Image.Image | bytes]:
    """Return files by name that hold the grey ``levels`` (8, 8), uint8, in every type that can."""
    image, deep, floats = Image.fromarray(levels), levels.astype("<u2") * 257, levels / 255
    twelve = np.round(floats * 4095).astype(np.uint16)
    blank = Image.new("L", (8, 8))
    palette = image.copy()
    palette.putpalette([level for level in range(256) for _ in range(3)])
    return {
        "8.png": image,
        "8 white is zero.tif": tiff(255 - levels, 8, white=0),
        "palette.png": palette,
        "grey and alpha.png": image.convert("LA"),
        "colour and alpha.png": image.convert("RGBA"),
        "cmyk.tif": Image.merge("CMYK", (blank, blank, blank, ImageOps.invert(image))),
        "10.pgm": b"P5 8 8 1020\n" + (levels.astype(np.uint16) * 4).astype(">u2").tobytes(),
        "12.tif": tiff(twelve, 12),
        "16.png": Image.fromarray(deep),
        "16.tif": tiff(deep, 16),
        "16.jp2": Image.fromarray(deep),
        "16.pgm": b"P5 8 8 65535\n" + deep.astype(">u2").tobytes(),
        "16 big endian.tif": tiff(deep.astype(">u2"), 16),
        "16 white is zero.tif": tiff(65535 - deep, 16, white=0),
        "float.tif": tiff(floats.astype("<f4"), 32),
        "float.pfm": b"Pf 8 8 -1.0\n" + floats[::-1].astype("<f4").tobytes(),
        "float white is zero.tif": tiff((1 - floats).astype("<f4"), 32, white=0),
    }
