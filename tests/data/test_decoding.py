"""Image files: hostile and damaged ones are refused, and pixels come out as documented."""

from __future__ import annotations

import struct
import subprocess
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter, PngImagePlugin

from inversight.core.errors import DataError
from inversight.data import load_images
from tests.data.files import encode, grey_files, picture, png_header, refusal, save, tiff

Read = Callable[..., np.ndarray]


LEVELS = np.array([0, 1, 50, 51, 128, 200, 254, 255], np.uint8).repeat(8).reshape(8, 8)
FLOATS = (LEVELS / 255).astype("<f4")
EPS = encode(picture(1, mode="RGB"), "EPS")
REPLACE, SAVE = "replace or remove", "save it with 8 or 16 unsigned bits"


@pytest.mark.parametrize("size", [None, 8])
@pytest.mark.parametrize(
    ("name", "content", "expected", "remedy"),
    [
        ("bomb.png", png_header(8_001, 8_001), "64 million pixels", "shrink or remove it"),
        ("bomb.png", png_header(12_000, 12_000), "64 million pixels", "shrink or remove it"),
        ("bomb.png", png_header(100_000, 100_000), "64 million pixels", "shrink or remove it"),
        ("3.png", b"", "0 bytes", REPLACE),
        ("3.png", b"this is not an image", "not a readable image", REPLACE),
        ("3.png", EPS, "not a readable image", REPLACE),
        ("3.tif", EPS, "not a readable image", REPLACE),
        ("3.tif", tiff(LEVELS.astype("<u4"), 32), "32-bit or signed integers", SAVE),
        ("3.tif", tiff(LEVELS.astype("<i4"), 32), "32-bit or signed integers", SAVE),
        ("3.tif", tiff(LEVELS.astype("<i2"), 16), "32-bit or signed integers", SAVE),
        ("3.tif", tiff(FLOATS * 255, 32), "values from 0 to 255, expected 0 to 1", SAVE),
        ("3.tif", tiff(FLOATS - 0.5, 32), "values from -0.5 to 0.5, expected 0 to 1", SAVE),
        ("3.tif", tiff(np.where(FLOATS > 0.9, np.float32("nan"), FLOATS), 32), "nan", SAVE),
        ("3.tif", encode(Image.new("LAB", (8, 8)), "TIFF"), "CIE Lab", "save it as RGB"),
    ],
)
def test_rejects_what_cannot_be_read_without_a_guess_or_a_program(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes, expected: str,
    remedy: str, size: int | None,
) -> None:  # fmt: skip
    monkeypatch.setattr(subprocess, "Popen", None)
    file = save(content, folder / "b" / name)
    refusal(folder, str(file), expected, remedy, size=size)


@pytest.mark.parametrize("size", [None, 8])
@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp", "tif", "gif"])
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
def test_rejects_truncated_files(folder: Path, suffix: str, kept: float, size: int | None) -> None:
    file = save(picture(9, (32, 32), "RGB"), folder / "a" / f"3.{suffix}")
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * kept)])
    for other in folder.rglob("*.png"):
        if other != file:
            save(picture(1, (32, 32)), other)
    refusal(folder, str(file), "replace or remove", size=size)


def test_rejects_damaged_pixels(folder: Path) -> None:
    file = folder / "a" / "1.png"
    content = bytearray(file.read_bytes())
    start = content.index(b"IDAT") + 4
    for i in range(start + 2, start + 30):
        content[i] ^= 0xA5
    file.write_bytes(bytes(content))
    refusal(folder, str(file), "damaged", "replace or remove")


@settings(max_examples=60)
@given(cut=st.integers(0, 200), flip=st.integers(0, 255), at=st.integers(0, 199))
def test_damage_raises_no_other_error(
    tmp_path_factory: pytest.TempPathFactory, cut: int, flip: int, at: int
) -> None:
    root = tmp_path_factory.mktemp("fuzz")
    file = save(picture(3, mode="RGB"), root / "a" / "1.png")
    content = bytearray(file.read_bytes()[: 30 + cut])
    if at < len(content):
        content[at] = flip
    file.write_bytes(bytes(content))
    try:
        found = load_images(root, role="--private")
    except DataError as error:
        assert str(root) in str(error) and "\n" not in str(error)
    else:
        assert len(found) == 1


@pytest.mark.parametrize("turned", [False, True])
def test_size_brings_the_shorter_side_to_it_and_cuts_the_centre(read: Read, turned: bool) -> None:
    # Three bars 8 wide in an image of 24x8: the centre cut is the middle one.
    bars = np.repeat(np.array([[10, 120, 250]], np.uint8), 8, axis=1).repeat(8, axis=0)
    image = Image.fromarray(bars.T.copy() if turned else bars)
    found = read(image, size=8)
    assert found.shape == (1, 8, 8) and (found == 120).all()
    assert (read(image, size=4)[:, 1:3, 1:3] == 120).all()


@pytest.mark.parametrize("size", [(40, 20), (20, 40), (30, 30)])
def test_a_height_and_a_width_cut_that_shape_and_stretch_it(
    read: Read, size: tuple[int, int]
) -> None:
    values = np.random.default_rng(0).integers(0, 256, (60, 100), np.uint8)
    image = Image.fromarray(values)
    box = {(40, 20): (35, 0, 65, 60), (20, 40): (0, 5, 100, 55), (30, 30): (20, 0, 80, 60)}[size]
    side = max(size)
    expected = image.crop(box).resize((side, side), Image.Resampling.BILINEAR)
    found = read(image, size=size)[0]
    assert found.shape == (side, side)
    # At the border Pillow also sees pixels beside the box.
    inside = np.s_[2:-2, 2:-2]
    difference = found[inside].astype(int) - np.asarray(expected)[inside]
    assert np.abs(difference).max() <= 1


def test_transparency_becomes_white(read: Read) -> None:
    values = np.zeros((8, 8, 4), np.uint8)
    values[..., 0] = 200
    values[:4, :, 3] = 255
    values[4:, :, 3] = 51  # a fifth
    found = read(Image.fromarray(values))
    assert found[:, 0, 0].tolist() == [200, 0, 0]
    expected = [round(200 * 0.2 + 255 * 0.8), 204, 204]
    assert np.abs(found[:, 7, 7].astype(int) - expected).max() <= 1


@pytest.mark.parametrize("highest", [255, 2, 0])
@pytest.mark.parametrize("name", grey_files(LEVELS))
def test_values_are_scaled_by_the_files_type_however_dark_the_image(
    read: Read, name: str, highest: int
) -> None:
    levels = np.minimum(LEVELS, highest).astype(np.uint8)
    assert np.array_equal(read(grey_files(levels)[name], name, channels=1)[0], levels)


@pytest.mark.parametrize(
    "name", ["1.jfif", "1.avif", "1.jp2", "1.jpe", "1.mpo", "1.tga", "1.qoi", "1.ico", "1.PNG"]
)
def test_formats_that_pillow_decodes_are_read(read: Read, name: str) -> None:
    image = picture(5, (16, 16), "RGB").filter(ImageFilter.GaussianBlur(3))
    expected = np.moveaxis(np.asarray(image), 2, 0).astype(float)
    assert np.abs(read(image, name) - expected).mean() < 8.0


def test_one_bit_is_black_or_white(read: Read) -> None:
    found = read(Image.fromarray(LEVELS > 127))
    assert np.array_equal(found[0], np.where(LEVELS > 127, 255, 0))


@pytest.mark.parametrize(
    "image", [picture(3), Image.fromarray(np.asarray(picture(3)).astype(np.uint16) * 257)]
)
def test_transparent_grey_level_becomes_white(read: Read, image: Image.Image) -> None:
    grey = np.asarray(picture(3))
    level = int(np.asarray(image)[2, 3])
    expected = np.where(grey == grey[2, 3], 255, grey)
    assert np.array_equal(read(image, transparency=level), expected[None])


@pytest.mark.parametrize(("orientation", "turn"), [(3, 2), (6, -1), (8, 1)])
def test_exif_turns_are_applied(read: Read, orientation: int, turn: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = picture(4)
    assert np.array_equal(read(stored, exif=exif)[0], np.rot90(np.asarray(stored), turn))


def turned_copy(image: Image.Image) -> tuple[Image.Image, dict[str, object]]:
    """Return an image that is stored lying on its side, and the EXIF that says so."""
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    return image.transpose(Image.Transpose.ROTATE_90), {"exif": exif}


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_a_copy_that_exif_turns_has_the_same_hash(folder: Path, mode: str, suffix: str) -> None:
    image = picture(3, mode=mode)
    stored, options = turned_copy(image)
    if suffix == "webp":
        options["lossless"] = True
    save(image, folder / "a" / "upright.png")
    save(stored, folder / "b" / f"turned.{suffix}", **options)
    found = load_images(folder, role="--private")
    digest = dict(zip(found.ids, found.hashes, strict=True))
    assert digest["a/upright.png"] == digest[f"b/turned.{suffix}"]


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF tiff:Orient'
"""Metadata that end in the middle of a tag."""


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0II*\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"nonsense" * 5]
)
def test_broken_metadata_leave_the_pixels_as_they_are(
    tmp_path: Path, suffix: str, exif: bytes
) -> None:
    """The image is read, and no warning without the file's name reaches the user."""
    image = picture(3, (16, 16), "RGB").filter(ImageFilter.GaussianBlur(2))
    options: dict[str, object] = {"lossless": True} if suffix == "webp" else {}
    plain = save(image, tmp_path / "plain" / "a" / f"1.{suffix}", **options)
    expected = load_images(plain.parents[1], role="--private")
    if suffix == "tif":
        options["tiffinfo"] = {700: XMP}
    elif suffix == "png":
        text = PngImagePlugin.PngInfo()
        text.add_itxt("XML:com.adobe.xmp", XMP.decode())
        options |= {"pnginfo": text, "exif": exif}
    else:
        options |= {"xmp": XMP, "exif": exif}
    save(image, tmp_path / "broken" / "a" / f"1.{suffix}", **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = load_images(tmp_path / "broken", role="--private")
    assert found.hashes == expected.hashes


def test_grey_with_alpha_among_colour(folder: Path) -> None:
    grey = picture(3)
    layered = grey.convert("LA")
    layered.putalpha(Image.new("L", (8, 8), 255))
    save(layered, folder / "a" / "3.png")
    save(picture(4, mode="RGB"), folder / "b" / "3.png")
    found = load_images(folder, role="--private")
    row = found.images[found.ids.index("a/3.png")].numpy()
    assert found.channels == 3 and np.array_equal(row, np.asarray(grey)[None].repeat(3, 0))


def test_sixteen_bits_of_colour_are_scaled_to_eight(read: Read) -> None:
    """Written by hand, as Pillow writes no such file: a PNG of 16 bits and three channels."""
    levels = np.asarray(picture(3, mode="RGB"))
    rows = np.concatenate(
        [np.zeros((8, 1), np.uint8), (levels.astype(">u2") * 257).view(np.uint8).reshape(8, -1)],
        axis=1,
    )

    def chunk(name: bytes, content: bytes) -> bytes:
        check = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes())), (b"IEND", b"")
    file = b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)
    assert np.array_equal(read(file), np.moveaxis(levels, 2, 0))


def test_a_cmyk_jpeg_is_read_as_pillow_converts_it(read: Read) -> None:
    smooth = picture(3, (16, 16), "RGB").filter(ImageFilter.GaussianBlur(3))
    file = encode(smooth.convert("CMYK"), "JPEG")
    found = read(file, "1.jpg").astype(int)
    expected = np.moveaxis(np.asarray(smooth).astype(int), 2, 0)
    assert np.abs(found - expected).mean() < 8.0
