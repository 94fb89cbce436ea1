"""Arrays of images: ``.npz`` as MedMNIST writes it, IDX files as MNIST has them."""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision
from PIL import Image

from inversight.data import load_images, pixel_hash, read_splits
from tests.data.files import refusal, save


def pixels(count: int, *shape: int, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).integers(0, 256, (count, *(shape or (8, 8))))
    return values.astype(np.uint8)


def npz(file: Path, **arrays: Any) -> Path:
    np.savez_compressed(file, **arrays)
    return file


def medmnist(folder: Path, labels: tuple[int, ...] = (1,)) -> Path:
    """Write a file with the keys and shapes of MedMNIST's, labels (N, 1)."""
    rng = np.random.default_rng(0)
    return npz(
        folder / "m.npz",
        **{f"{s}_images": pixels(n, 8, 8, 3, seed=n) for s, n in (("train", 7), ("val", 4), ("test", 5))},
        **{
            f"{s}_labels": rng.integers(0, 2, (n, *labels)).astype(np.uint8)
            for s, n in (("train", 7), ("val", 4), ("test", 5))
        },
    )  # fmt: skip


def test_medmnist(tmp_path: Path) -> None:
    file = medmnist(tmp_path)
    assert read_splits(file, "--data") == ("test", "train", "val")
    found = load_images(Path(f"{file}:train"), role="--private")
    with np.load(file, allow_pickle=False) as arrays:
        images, labels = arrays["train_images"], arrays["train_labels"]
    assert found.ids == tuple(f"train/{i:06d}" for i in range(7))
    assert np.array_equal(found.images.numpy(), np.moveaxis(images, 3, 1))
    assert [found.classes[y] for y in found.labels] == [str(y) for y in labels[:, 0]]
    assert found.hashes == tuple(pixel_hash(Image.fromarray(image)) for image in images)
    refusal(file, "has splits test (5 images), train (7 images), val (4 images)")


def test_an_image_in_an_array_has_the_hash_of_its_file(tmp_path: Path) -> None:
    images = pixels(3)
    for i, image in enumerate(images):
        save(Image.fromarray(image), tmp_path / "folder" / str(i % 2) / f"{i}.png")
    files = load_images(tmp_path / "folder", role="--private")
    inside = load_images(npz(tmp_path / "a.npz", images=images, labels=[0, 1, 0]), role="--private")
    assert sorted(files.hashes) == sorted(inside.hashes) and files.classes == inside.classes
    assert inside.ids[0] == "images/000000" and inside.channels == 1


@pytest.mark.parametrize("change", [np.uint8, np.bool_, np.uint16, np.float32, ">f8"])
@pytest.mark.parametrize("layout", ["NHW", "NHW1", "N1HW", "NHW3", "N3HW"])
def test_types_and_layouts(tmp_path: Path, layout: str, change: Any) -> None:
    levels = np.where(pixels(5) > 127, 255, 0) if change is np.bool_ else pixels(5)
    scale = {"b": 1 / 255, "f": 1 / 255, "u": 257 if np.dtype(change).itemsize == 2 else 1}
    values = (levels.astype(np.float64) * scale[np.dtype(change).kind]).round(9).astype(change)
    if layout != "NHW":
        axis = layout.index("HW") + 2 if layout[1] == "H" else 1
        values = np.repeat(
            np.expand_dims(values, axis if axis > 1 else 1), 3 if "3" in layout else 1, axis
        )
    found = load_images(
        npz(tmp_path / "a.npz", images=values, labels=np.arange(5) % 2), role="--private"
    )
    assert found.channels == (3 if "3" in layout else 1)
    assert np.array_equal(found.images.numpy(), np.repeat(levels[:, None], found.channels, 1))


def test_classes_beyond_nine_are_ordered_by_number(tmp_path: Path) -> None:
    found = load_images(
        npz(tmp_path / "a.npz", images=pixels(12), labels=np.arange(12)[::-1]), role="--private"
    )
    assert found.classes == tuple(str(i) for i in range(12))
    assert found.labels.tolist() == list(range(12))[::-1]
    few = load_images(tmp_path / "a.npz", role="--private", limit=3)
    assert few.classes == ("0", "1", "2") and few.ids == tuple(
        f"images/{i:06d}" for i in (9, 10, 11)
    )


@pytest.mark.parametrize(
    ("arrays", "parts"),
    [
        ({"train_images": pixels(4), "train_labels": np.zeros((4, 14), int)}, ("14 labels an image",)),
        ({"images": pixels(4), "labels": np.array([{}] * 4)}, ("labels", "pickled objects")),
        ({"images": np.array([None] * 4), "labels": np.zeros(4)}, ("images", "pickled objects")),
        ({"images": pixels(4), "labels": np.zeros(3, int)}, ("expected shape (4,) or (4, 1)",)),
        ({"images": pixels(4), "labels": np.zeros(4)}, ("whole numbers or names",)),
        ({"images": pixels(4)}, ("4 of 4 image(s) have no label",)),
        ({"images": pixels(4).astype(int), "labels": np.zeros(4, int)}, ("int64", "save uint8")),
        ({"images": pixels(4) * 1.0, "labels": np.zeros(4, int)}, ("expected 0 to 1", "save uint8")),
        ({"images": pixels(4, 8, 9), "labels": np.zeros(4, int)}, ("is 9x8", "--size N")),
        ({"images": pixels(4, 8, 8, 8, 1), "labels": np.zeros(4, int)}, ("expected images (N, H, W)",)),
        ({"images": pixels(0), "labels": np.zeros(0, int)}, ("holds no images",)),
        ({"images": np.asfortranarray(pixels(4)), "labels": np.zeros(4, int)}, ("Fortran order",)),
        ({"pictures": pixels(4)}, ("expected arrays", "found pictures")),
    ],
)  # fmt: skip
def test_wrong_archives_are_one_line(
    tmp_path: Path, arrays: dict[str, Any], parts: tuple[str, ...]
) -> None:
    file = tmp_path / "a.npz"
    np.savez_compressed(file, allow_pickle=True, **arrays)
    refusal(file, str(file), *parts)


def header(*shape: int) -> bytes:
    """The header of a .npy file."""
    buffer = io.BytesIO()
    facts = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, facts)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (header(100, 1000, 1000) + bytes(100_000_000), ("declares 100 MB", "could exhaust memory")),
        (header(1 << 30, 1000, 1000) + bytes(1000), ("declares 1,073,741,824,000,000 bytes",)),
        (header(4, 8, 8) + bytes(1000), ("declares 256 bytes and holds 1,000",)),
        (b"\x93NUMPY\x09\x00", ("damaged or of another kind",)),
        (b"", ("damaged or of another kind",)),
    ],
)
def test_archives_that_declare_other_sizes_than_they_hold(
    tmp_path: Path, content: bytes, parts: tuple[str, ...]
) -> None:
    file = tmp_path / "a.npz"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", content)
    refusal(file, str(file), *parts)


def test_a_damaged_archive_is_one_line(tmp_path: Path) -> None:
    file = medmnist(tmp_path)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    refusal(Path(f"{file}:train"), str(file), "damaged")
    file.write_bytes(whole[:300] + bytes(100) + whole[400:])
    refusal(Path(f"{file}:test"), str(file), "damaged")


def idx(values: np.ndarray) -> bytes:
    """An IDX file of bytes, by the description on MNIST's page."""
    head = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    return head + values.astype(np.uint8).tobytes()


def mnist(folder: Path, compressed: bool) -> Path:
    suffix, pack = (".gz", gzip.compress) if compressed else ("", bytes)
    for name, count in (("train", 7), ("t10k", 5)):
        save(pack(idx(pixels(count, seed=count))), folder / f"{name}-images-idx3-ubyte{suffix}")
        save(pack(idx(np.arange(count) % 3)), folder / f"{name}-labels-idx1-ubyte{suffix}")
    return folder


@pytest.mark.parametrize("compressed", [True, False])
def test_idx_files_are_read_as_torchvision_reads_them(tmp_path: Path, compressed: bool) -> None:
    folder = mnist(tmp_path / "MNIST" / "raw", compressed)
    assert read_splits(folder, "--data") == ("t10k", "train")
    for split, train in (("train", True), ("t10k", False)):
        if compressed:  # torchvision reads the unpacked files
            mnist(folder, False)
        expected = torchvision.datasets.MNIST(str(tmp_path), train=train)
        if compressed:
            for file in folder.glob("*-ubyte"):
                file.unlink()
        found = load_images(Path(f"{folder}:{split}"), role="--private")
        assert np.array_equal(found.images[:, 0].numpy(), expected.data.numpy())
        assert found.labels.tolist() == expected.targets.tolist()
        assert found.ids[1] == f"{split}/000001"
    one = load_images(next(folder.glob("train-images*")), role="--private")
    assert len(one) == 7 and one.classes == ("0", "1", "2")


def test_wrong_idx_files_are_one_line(tmp_path: Path) -> None:
    folder = mnist(tmp_path, True)
    file, labels = (folder / f"train-{n}-ubyte.gz" for n in ("images-idx3", "labels-idx1"))
    split, whole = Path(f"{folder}:train"), idx(pixels(7))
    save(gzip.compress(whole[:-3]), file)
    refusal(split, str(file), "ends too early")
    save(gzip.compress(whole + b"more"), file)
    refusal(split, str(file), "holds more than it declares")
    save(gzip.compress(idx(pixels(6))), file)
    refusal(split, str(labels), "expected shape (6,)")
    save(gzip.compress(struct.pack(">HBBIII", 0, 8, 3, 1 << 31, 1000, 1000)), file)
    refusal(split, str(file), "could exhaust memory")
    save(gzip.compress(b"\0\0\x0d\x03"), file)
    refusal(split, str(file), "unsigned bytes")
    save(gzip.compress(whole), file)
    labels.unlink()
    refusal(split, "7 of 7 image(s) have no label")
