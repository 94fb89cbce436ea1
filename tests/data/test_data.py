"""Image folders: every wrong input is one clear line, and every right one is read as documented."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from inversight.core.errors import DataError
from inversight.core.imaging import fit
from inversight.core.seeding import generator
from inversight.data import (
    SIZES,
    ImageSet,
    check_overlap,
    check_size,
    image_set,
    load_digits,
    load_folder,
    split,
    working_size,
    write_images,
)


def picture(seed: int, size: tuple[int, int] = (8, 8), mode: str = "L") -> Image.Image:
    """Noise of ``size`` (width, height)."""
    depth = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], *depth))
    return Image.fromarray(values.astype(np.uint8))


def save(image: Image.Image, file: Path, **options: object) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file, **options)
    return file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes with two good 8x8 grey images each."""
    for i, name in enumerate(["a/1.png", "a/2.png", "b/1.png", "b/2.png"]):
        save(picture(i), tmp_path / "data" / name)
    return tmp_path / "data"


def refusal(path: Path, *parts: str, size: int | None = None, labelled: bool = True) -> None:
    """Loading is refused with one line that holds all of ``parts``."""
    with pytest.raises(DataError) as caught:
        load_folder(path, role="--private", size=size, labelled=labelled)
    text = str(caught.value)
    assert "\n" not in text
    for part in ("--private", *parts):
        assert part in text


# Wrong folders


def test_a_missing_folder(tmp_path: Path) -> None:
    refusal(tmp_path / "nowhere", str(tmp_path / "nowhere"), "no such folder", "CLASS/IMAGE")


def test_a_file_instead_of_a_folder(tmp_path: Path) -> None:
    file = save(picture(0), tmp_path / "image.png")
    refusal(file, str(file), "is a file", "one subfolder for each class")


def test_an_empty_folder(tmp_path: Path) -> None:
    refusal(tmp_path, str(tmp_path), "is empty")


def test_no_class_subfolders(tmp_path: Path) -> None:
    save(picture(0), tmp_path / "1.png")
    refusal(tmp_path, str(tmp_path), "no class subfolders", "one subfolder for each class")


@pytest.mark.parametrize("labelled", [True, False])
def test_a_class_without_images(folder: Path, labelled: bool) -> None:
    (folder / "empty").mkdir()
    (folder / "empty" / "notes.txt").write_text("nothing")
    refusal(
        folder, str(folder / "empty"), "holds no images", "remove the folder", labelled=labelled
    )


def test_an_unlabelled_folder_without_images(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    refusal(tmp_path, str(tmp_path), "holds no images", labelled=False)


# Wrong files


def png_header(width: int, height: int) -> bytes:
    """A PNG that declares ``width`` x ``height`` grey pixels and holds almost none."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(b"\0" * 10))
    return b"\x89PNG\r\n\x1a\n" + header + data + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [None, 8])
@pytest.mark.parametrize("side", [8_001, 12_000, 100_000])
def test_a_decompression_bomb_is_refused_from_its_header(
    folder: Path, side: int, size: int | None
) -> None:
    bomb = folder / "b" / "bomb.png"
    bomb.write_bytes(png_header(side, side))
    refusal(folder, str(bomb), "64 million pixels", "remove it", size=size)


def test_an_empty_file(folder: Path) -> None:
    (folder / "a" / "3.png").write_bytes(b"")
    refusal(folder, str(folder / "a" / "3.png"), "0 bytes", "replace or remove")


def test_text_renamed_to_an_image(folder: Path) -> None:
    (folder / "a" / "3.png").write_text("this is not an image")
    refusal(folder, str(folder / "a" / "3.png"), "not a readable image", "replace or remove")


@pytest.mark.parametrize("size", [None, 8])
@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp", "tif", "gif"])
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
def test_a_file_cut_short(folder: Path, suffix: str, kept: float, size: int | None) -> None:
    file = save(picture(9, (32, 32), "RGB"), folder / "a" / f"3.{suffix}")
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * kept)])
    for other in folder.rglob("*.png"):
        if other != file:
            save(picture(1, (32, 32)), other)
    refusal(folder, str(file), "replace or remove", size=size)


def test_damaged_pixels(folder: Path) -> None:
    file = folder / "a" / "1.png"
    content = bytearray(file.read_bytes())
    start = content.index(b"IDAT") + 4
    for i in range(start + 2, start + 30):
        content[i] ^= 0xA5
    file.write_bytes(bytes(content))
    refusal(folder, str(file), "damaged", "replace or remove")


@settings(max_examples=60)
@given(cut=st.integers(0, 200), flip=st.integers(0, 255), at=st.integers(0, 199))
def test_no_damage_ends_in_another_error(
    tmp_path_factory: pytest.TempPathFactory, cut: int, flip: int, at: int
) -> None:
    root = tmp_path_factory.mktemp("fuzz")
    file = save(picture(3, mode="RGB"), root / "a" / "1.png")
    content = bytearray(file.read_bytes()[: 30 + cut])
    if at < len(content):
        content[at] = flip
    file.write_bytes(bytes(content))
    try:
        found = load_folder(root, role="--private")
    except DataError as error:
        assert str(root) in str(error) and "\n" not in str(error)
    else:
        assert len(found) == 1


def test_mixed_sizes_name_both_files(folder: Path) -> None:
    save(picture(5, (16, 16)), folder / "b" / "3.png")
    refusal(folder, "a/1.png is 8x8", "b/3.png is 16x16", "--size N")


def test_images_that_are_not_square(folder: Path) -> None:
    save(picture(5, (8, 10)), folder / "b" / "3.png")
    refusal(folder, "b/3.png", "8x10", "--size N")


def test_a_class_that_the_model_lacks(folder: Path) -> None:
    found = load_folder(folder, role="--private")
    with pytest.raises(DataError, match=r"--private: class b .*--classes FILE"):
        found.relabel(["a", "c"], role="--private")


# Right folders


def test_reading_gives_sorted_ids_labels_and_pixels(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    found = load_folder(
        folder, role="--private", progress=lambda done, total, _: seen.append((done, total))
    )
    assert found.ids == ("a/1.png", "a/2.png", "b/1.png", "b/2.png")
    assert found.classes == ("a", "b")
    assert found.labels.tolist() == [0, 0, 1, 1]
    assert (found.size, found.channels, found.images.dtype) == (8, 1, torch.uint8)
    for i, image in enumerate(found.images):
        assert np.array_equal(image[0].numpy(), np.asarray(picture(i)))
    assert seen[-1] == (4, 4)


def test_nested_folders_hidden_files_and_other_suffixes(folder: Path) -> None:
    save(picture(7), folder / "a" / "deep" / "er" / "0.PNG")
    (folder / "a" / ".hidden.png").write_text("not an image")
    (folder / "a" / "readme.txt").write_text("not an image")
    (folder / ".cache").mkdir()
    found = load_folder(folder, role="--private")
    assert found.ids == ("a/1.png", "a/2.png", "a/deep/er/0.PNG", "b/1.png", "b/2.png")
    assert found.labels.tolist() == [0, 0, 0, 1, 1]


def test_limit_keeps_the_first_classes(folder: Path) -> None:
    found = load_folder(folder, role="--private", limit=1)
    assert found.classes == ("a",) and len(found) == 2


def test_unlabelled_images_beside_each_other(tmp_path: Path) -> None:
    save(picture(0), tmp_path / "2.png")
    save(picture(1), tmp_path / "1.png")
    found = load_folder(tmp_path, role="--public", labelled=False)
    assert found.ids == ("1.png", "2.png")
    assert found.labels.tolist() == [-1, -1] and found.classes == ()
    assert found.relabel(["x"], role="--public") == found


def test_grey_stays_one_channel_and_one_colour_image_makes_three(folder: Path) -> None:
    assert load_folder(folder, role="--private").channels == 1
    assert load_folder(folder, role="--private", channels=3).channels == 3
    save(picture(8, mode="RGB"), folder / "a" / "3.png")
    found = load_folder(folder, role="--private")
    assert found.channels == 3
    assert np.array_equal(
        found.images[0].numpy(), np.repeat(np.asarray(picture(0))[None], 3, axis=0)
    )
    assert load_folder(folder, role="--private", channels=1).channels == 1


def test_size_brings_the_shorter_side_to_it_and_cuts_the_centre(tmp_path: Path) -> None:
    # Three vertical bars 8 wide in a 24x8 image: the centre cut is the middle one.
    bars = np.repeat(np.array([[10, 120, 250]], np.uint8), 8, axis=1).repeat(8, axis=0)
    save(Image.fromarray(bars), tmp_path / "w" / "1.png")
    save(Image.fromarray(bars.T.copy()), tmp_path / "w" / "2.png")
    found = load_folder(tmp_path, role="--private", size=8)
    assert found.images.shape == (2, 1, 8, 8)
    assert (found.images == 120).all()
    smaller = load_folder(tmp_path, role="--private", size=4)
    assert (smaller.images[:, :, 1:3, 1:3] == 120).all()


def test_transparency_lies_on_white(tmp_path: Path) -> None:
    values = np.zeros((8, 8, 4), np.uint8)
    values[..., 0] = 200
    values[:4, :, 3] = 255
    values[4:, :, 3] = 51  # a fifth
    save(Image.fromarray(values), tmp_path / "a" / "1.png")
    found = load_folder(tmp_path, role="--private").images[0]
    assert found[:, 0, 0].tolist() == [200, 0, 0]
    expected = [round(200 * 0.2 + 255 * 0.8), 204, 204]
    assert np.abs(found[:, 7, 7].numpy().astype(int) - expected).max() <= 1


def test_sixteen_bits_become_eight(tmp_path: Path) -> None:
    deep = np.linspace(0, 65535, 64).round().astype(np.uint16).reshape(8, 8)
    save(Image.fromarray(deep), tmp_path / "a" / "1.png")
    found = load_folder(tmp_path, role="--private")
    assert found.channels == 1
    expected = np.round(deep.astype(np.float64) / 65535 * 255)
    assert np.array_equal(found.images[0, 0].numpy(), expected.astype(np.uint8))


@pytest.mark.parametrize(("orientation", "turn"), [(3, 2), (6, -1), (8, 1)])
def test_exif_turns_are_applied(tmp_path: Path, orientation: int, turn: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = picture(4)
    save(stored, tmp_path / "a" / "1.png", exif=exif)
    found = load_folder(tmp_path, role="--private").images[0, 0].numpy()
    assert np.array_equal(found, np.rot90(np.asarray(stored), turn))


GREY = picture(1)
"""An image whose pixels each of the modes below can hold."""
GREY_AS = {
    "L.png": GREY,
    "L.bmp": GREY,
    "L.tif": GREY,
    "LA.png": GREY.convert("LA"),
    "P.png": GREY.convert("P"),
    "RGB.png": GREY.convert("RGB"),
    "RGB.webp": GREY.convert("RGB"),
    "RGBA.png": GREY.convert("RGBA"),
    "CMYK.tif": Image.merge("CMYK", [Image.new("L", GREY.size)] * 3 + [ImageOps.invert(GREY)]),
    "I;16.png": Image.fromarray(np.asarray(GREY).astype(np.uint16) * 257),
}


@pytest.mark.parametrize("name", GREY_AS)
def test_the_same_grey_pixels_in_another_mode_or_format_are_found(
    tmp_path: Path, name: str
) -> None:
    save(GREY, tmp_path / "private" / "a" / "1.png")
    save(GREY_AS[name], tmp_path / "public" / "a" / name, lossless=True)
    save(picture(1, mode="RGB"), tmp_path / "public" / "a" / "other.png")
    private, public = (load_folder(tmp_path / r, role=r) for r in ("private", "public"))
    shared = check_overlap(private, public, ("private", "public"), allow=True)
    assert (shared, public.hashes[0]) == (1, private.hashes[0])
    # At another working size the file's own pixels still count.
    assert load_folder(tmp_path / "public", role="public", size=4).hashes == public.hashes
    # In memory an image hashes as it does in a file, grey or repeated in three channels.
    again = image_set(private.resized(size=8, channels=3).images, ["a"], ["1"], ["a"])
    assert again.hashes == private.hashes


def test_the_same_colours_in_another_format_have_the_same_hash(tmp_path: Path) -> None:
    for name in ("1.png", "2.bmp", "3.tif", "4.webp"):
        save(picture(1, mode="RGB"), tmp_path / "a" / name, lossless=True)
    # Its luma is that of the others, and its pixels are not.
    save(picture(1, mode="RGB").convert("L"), tmp_path / "a" / "5.png")
    hashes = load_folder(tmp_path, role="--private").hashes
    assert len(set(hashes[:4])) == 1 and hashes[4] != hashes[0]


def test_fingerprint_forgets_row_order_and_sees_changes(folder: Path) -> None:
    found = load_folder(folder, role="--private")
    turned = found.select(torch.tensor([3, 1, 0, 2]))
    assert turned.ids == ("b/2.png", "a/2.png", "a/1.png", "b/1.png")
    assert turned.fingerprint() == found.fingerprint()
    assert found.relabel(["b", "x", "a"], role="r").fingerprint() == found.fingerprint()
    assert found.select(torch.tensor([0, 1, 2])).fingerprint() != found.fingerprint()
    save(picture(99), folder / "a" / "1.png")
    assert load_folder(folder, role="--private").fingerprint() != found.fingerprint()


def test_relabel_follows_the_given_order(folder: Path) -> None:
    found = load_folder(folder, role="--private").relabel(["z", "b", "a"], role="--private")
    assert found.classes == ("z", "b", "a")
    assert found.labels.tolist() == [2, 2, 1, 1]


def test_written_images_read_back_the_same(folder: Path, tmp_path: Path) -> None:
    found = load_folder(folder, role="--private")
    write_images(tmp_path / "copy", found.images, found.ids)
    again = load_folder(tmp_path / "copy", role="--private")
    assert again.hashes == found.hashes and torch.equal(again.images, found.images)
    assert again.fingerprint() == found.fingerprint()


# Overlap, sizes, splits, digits


def test_overlap_is_refused_unless_allowed(folder: Path, tmp_path: Path) -> None:
    private = load_folder(folder, role="--private")
    save(picture(2), tmp_path / "other" / "x" / "copy.bmp")
    save(picture(50), tmp_path / "other" / "x" / "new.bmp")
    other = load_folder(tmp_path / "other", role="--public")
    with pytest.raises(DataError) as caught:
        check_overlap(private, other, ("--private", "--public"), allow=False)
    for part in ("share 1 image(s)", "b/1.png = x/copy.bmp", "--allow-overlap", "--private"):
        assert part in str(caught.value)
    assert check_overlap(private, other, ("--private", "--public"), allow=True) == 1
    alone = other.select(torch.tensor([1]))
    assert check_overlap(private, alone, ("--private", "--public"), allow=False) == 0


@given(native=st.integers(1, 2000), cap=st.integers(1, 600))
def test_working_size_is_the_largest_that_fits(native: int, cap: int) -> None:
    if min(native, cap) < 8:
        with pytest.raises(DataError, match="--size 8"):
            working_size(native, cap)
    else:
        size = working_size(native, cap)
        assert size in SIZES and size <= min(native, cap)
        assert size == 256 or 2 * size > min(native, cap)


def test_sizes_without_a_match_need_to_be_chosen() -> None:
    for size in SIZES:
        check_size(size, given=False)
    check_size(28, given=True)
    with pytest.raises(DataError, match=r"28x28.*--size 16"):
        check_size(28, given=False)
    with pytest.raises(DataError, match=r"5x5.*--size 8"):
        check_size(5, given=False)


def flat_set(labels: list[int]) -> ImageSet:
    n = len(labels)
    return ImageSet(
        images=torch.zeros(n, 1, 8, 8, dtype=torch.uint8),
        labels=torch.tensor(labels),
        ids=tuple(f"{label}/{i}" for i, label in enumerate(labels)),
        classes=tuple("abcde"),
        hashes=tuple(str(i) for i in range(n)),
    )


@settings(max_examples=60)
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=60),
    fraction=st.floats(0.0, 1.0),
    seed=st.integers(0, 1000),
)
def test_split_parts_each_class_and_never_takes_its_last(
    labels: list[int], fraction: float, seed: int
) -> None:
    images = flat_set(labels)
    rest, held = split(images, fraction, rng=torch.Generator().manual_seed(seed))
    assert sorted(rest.ids + held.ids) == sorted(images.ids)
    for label in set(labels):
        total = labels.count(label)
        left = int((rest.labels == label).sum())
        assert left >= 1
        if fraction == 0.0:
            assert left == total
        elif total > 1:
            assert abs((total - left) - min(max(fraction * total, 1), total - 1)) <= 0.5
    again = split(images, fraction, rng=torch.Generator().manual_seed(seed))
    assert again[1].ids == held.ids


def test_digits_are_disjoint_balanced_and_follow_the_seed() -> None:
    found = load_digits(seed=3, per_class=4, public_images=100)
    parts = (found.private, found.holdout, found.public)
    hashes = [h for part in parts for h in part.hashes]
    assert len(set(hashes)) == len(hashes)
    assert [len(p) for p in parts] == [40, 40, 100]
    for part in parts[:2]:
        assert torch.bincount(part.labels).tolist() == [4] * 10
    for part in parts:
        assert list(part.ids) == sorted(part.ids)
        assert all(
            i.split("/")[0] == part.classes[y] for i, y in zip(part.ids, part.labels, strict=True)
        )
        assert int(part.images.max()) == 255
    again = load_digits(seed=3, per_class=4, public_images=100)
    assert again.private.ids == found.private.ids and again.public.ids == found.public.ids
    assert torch.equal(again.private.images, found.private.images)
    assert load_digits(seed=4, per_class=4).private.ids != found.private.ids


def test_floats_of_many_images_are_those_of_each() -> None:
    images = torch.randint(0, 256, (600, 1, 16, 16), generator=generator(0)).to(torch.uint8)
    many = ImageSet(
        images=images,
        labels=torch.zeros(600, dtype=torch.int64),
        ids=tuple(map(str, range(600))),
        classes=("a",),
        hashes=tuple(map(str, range(600))),
    )
    found = many.floats(size=8, channels=3)
    for i in (0, 255, 256, 599):
        expected = fit(images[i : i + 1].float() / 255, size=8, channels=3)
        torch.testing.assert_close(found[i : i + 1], expected)
