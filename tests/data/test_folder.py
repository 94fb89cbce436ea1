"""Image folders: every wrong input is one clear line, and every right one is read as documented."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from inversight.data import load_images
from tests.data.files import picture, refusal, save

LAYOUT = "one subfolder for each class"


@pytest.mark.parametrize(
    ("files", "where", "parts", "labelled"),
    [
        ([], "nowhere", ("no such folder", "CLASS/IMAGE"), True),
        (["1.png"], "1.png", ("is a file", LAYOUT), True),
        ([], "", ("is empty",), True),
        (["1.png"], "", ("no class subfolders", LAYOUT), True),
        (["1.txt"], "", ("holds no images",), False),
        (["a/1.heic"], "", ("a: holds no images", "1 .heic"), True),
        (["a/1.png", "b/1.txt"], "", ("b: holds no images", "remove the folder"), True),
        (["a/1.png", "b/1.txt"], "", ("b: holds no images", "remove the folder"), False),
    ],
)
def test_rejects_folders_without_images_of_each_class(
    tmp_path: Path, files: list[str], where: str, parts: tuple[str, ...], labelled: bool
) -> None:
    for name in files:
        save(b"anything", tmp_path / "data" / name)
    (tmp_path / "data").mkdir(exist_ok=True)
    refusal(tmp_path / "data" / where, str(tmp_path / "data" / where), *parts, labelled=labelled)


@pytest.mark.parametrize(
    ("name", "size", "parts"),
    [
        ("b/3.png", (16, 16), ("a/1.png is 8x8", "b/3.png is 16x16", "--size N")),
        ("b/3.png", (8, 10), ("b/3.png", "8x10", "--size N")),
        ("stray.png", (8, 8), ("1 image(s) lie beside", "stray.png", "remove it")),
    ],
)
@pytest.mark.parametrize("labelled", [True, False])
def test_rejects_images_that_do_not_fit(
    folder: Path, name: str, size: tuple[int, int], parts: tuple[str, ...], labelled: bool
) -> None:
    """Neither is an image beside class folders dropped, nor are the classes."""
    save(picture(5, size), folder / name)
    refusal(folder, *parts, labelled=labelled)


def test_reading_gives_sorted_ids_labels_and_pixels(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    found = load_images(
        folder, role="--private", progress=lambda done, total, _: seen.append((done, total))
    )
    assert found.ids == ("a/1.png", "a/2.png", "b/1.png", "b/2.png")
    assert found.classes == ("a", "b")
    assert found.labels.tolist() == [0, 0, 1, 1]
    assert (found.size, found.channels, found.images.dtype) == (8, 1, torch.uint8)
    for i, image in enumerate(found.images):
        assert np.array_equal(image[0].numpy(), np.asarray(picture(i)))
    assert seen[-1] == (4, 4)


def test_nested_folders_and_upper_case_suffixes(folder: Path) -> None:
    save(picture(7), folder / "a" / "deep" / "er" / "0.PNG")
    found = load_images(folder, role="--private")
    assert found.ids == ("a/1.png", "a/2.png", "a/deep/er/0.PNG", "b/1.png", "b/2.png")
    assert found.labels.tolist() == [0, 0, 0, 1, 1]


@pytest.mark.parametrize("where", ["", "a", "a/deep"])
@pytest.mark.parametrize(
    "name",
    [
        "__MACOSX/._1.png", ".ipynb_checkpoints/1.png", "@eaDir/1.png", "$RECYCLE.BIN/1.png",
        "System Volume Information/1.png", ".hidden.png", "._1.png", ".DS_Store", "Thumbs.db",
    ],
)  # fmt: skip
@pytest.mark.parametrize("labelled", [True, False])
def test_files_of_operating_systems_are_skipped(
    folder: Path, where: str, name: str, labelled: bool
) -> None:
    save(b"not an image", folder / where / name)
    warnings: list[str] = []
    found = load_images(folder, role="--private", labelled=labelled, warn=warnings.append)
    assert found.ids == ("a/1.png", "a/2.png", "b/1.png", "b/2.png") and not warnings


@pytest.mark.parametrize("where", ["", "a", "a/deep"])
def test_left_out_files_are_counted_and_named(folder: Path, where: str) -> None:
    names = ["1.heic", "2.npy", "3.txt", "4.NPY", "no-suffix"]
    for name in names:
        save(b"something", folder / where / name)
    (folder / where / "link.png").symlink_to(folder / "nowhere.png")
    (folder / "a" / "loop").symlink_to(folder)
    warnings: list[str] = []
    found = load_images(folder, role="--private", warn=warnings.append)
    assert len(found) == 4
    (text,) = warnings
    for part in ("--private", str(folder), "7 file(s)", "2 .npy", "1 .heic", "1 .png", "4 more"):
        assert part in text
    with pytest.warns(UserWarning, match="left out"):
        load_images(folder, role="--private")


def test_images_beside_folders_of_other_files_have_no_classes(tmp_path: Path) -> None:
    save(picture(0), tmp_path / "1.png")
    save(b"something", tmp_path / "notes" / "1.txt")
    warnings: list[str] = []
    found = load_images(tmp_path, role="--public", labelled=False, warn=warnings.append)
    assert (found.ids, found.classes) == (("1.png",), ()) and "notes/1.txt" in warnings[0]


def test_limit_keeps_the_first_classes(folder: Path) -> None:
    found = load_images(folder, role="--private", limit=1)
    assert found.classes == ("a",) and len(found) == 2


def test_unlabelled_images_beside_each_other(tmp_path: Path) -> None:
    save(picture(0), tmp_path / "2.png")
    save(picture(1), tmp_path / "1.png")
    found = load_images(tmp_path, role="--public", labelled=False)
    assert found.ids == ("1.png", "2.png")
    assert found.labels.tolist() == [-1, -1] and found.classes == ()
    assert found.relabel(["x"], role="--public") == found


def test_grey_stays_one_channel_and_one_colour_image_makes_three(folder: Path) -> None:
    assert load_images(folder, role="--private").channels == 1
    assert load_images(folder, role="--private", channels=3).channels == 3
    save(picture(8, mode="RGB"), folder / "a" / "3.png")
    found = load_images(folder, role="--private")
    assert found.channels == 3
    assert (found.images[0].numpy() == np.asarray(picture(0))).all()
    assert load_images(folder, role="--private", channels=1).channels == 1
