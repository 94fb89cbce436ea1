"""Tables of images: read as the same files in class folders are, and every wrong table is one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from inversight.core.errors import DataError
from inversight.data import load_images, read_splits
from inversight.data.source import read_column
from tests.data.files import picture, refusal, save
from tests.refusals import refused

ROWS = [
    {"path": f"{label}/{i}.png", "label": label, "group": group, "split": split}
    for label, i, group, split in [
        ("b", 1, "p1", "train"), ("a", 2, "p2", "test"), ("a", 1, "p2", "train"), ("b", 2, "", "test"),
    ]
]  # fmt: skip
Write = Callable[[pd.DataFrame, Path], Path]


def write_csv(table: pd.DataFrame, folder: Path) -> Path:
    table.to_csv(folder / "m.csv", index=False)
    return folder / "m.csv"


def write_parquet(table: pd.DataFrame, folder: Path) -> Path:
    table.to_parquet(folder / "m.parquet", index=False)
    return folder / "m.parquet"


both = pytest.mark.parametrize("write", [write_csv, write_parquet])


@both
def test_a_table_gives_what_the_class_folders_give(folder: Path, write: Write) -> None:
    """The folder is the independent answer: same rows, labels, order of classes, pixels and hashes."""
    expected = load_images(folder, role="--private")
    rows = pd.DataFrame(ROWS).drop(columns="split")
    found = load_images(write(rows, folder), role="--private")
    assert (found.ids, found.classes, found.hashes) == (
        expected.ids,
        expected.classes,
        expected.hashes,
    )
    assert torch.equal(found.images, expected.images) and torch.equal(found.labels, expected.labels)
    assert found.fingerprint() == expected.fingerprint()


@both
def test_splits_and_columns(folder: Path, write: Write) -> None:
    file = write(pd.DataFrame(ROWS), folder)
    assert read_splits(file, "--data") == ("test", "train")
    train = load_images(Path(f"{file}:train"), role="--private")
    assert train.ids == ("a/1.png", "b/1.png")
    assert load_images(Path(f"{file}:train+test"), role="--private").ids == (
        "a/1.png", "a/2.png", "b/1.png", "b/2.png",
    )  # fmt: skip
    assert load_images(Path(f"{file}:test"), role="--private", limit=1).ids == ("a/2.png",)
    assert read_column(Path(f"{file}:test"), "--private", "group") == {"a/2.png": "p2"}
    assert read_column(Path(f"{file}:test"), "--private", "person") is None
    refusal(file, str(file), "test (2 images), train (2 images)", f"{file}:test")
    refusal(Path(f"{file}:val"), "no split val", "test (2 images)")


def test_whole_numbers_are_ordered_by_value(folder: Path) -> None:
    """As in the training script that read the column as numbers; names are ordered as folders are."""
    for names, expected in (
        (range(2, 13), [str(i) for i in range(2, 13)]),
        (("b10", "b9"), ["b10", "b9"]),
    ):
        rows = []
        for i, name in enumerate(names):
            save(picture(i), folder / f"{i}.png")
            rows.append({"path": f"{i}.png", "label": name})
        for write in (write_csv, write_parquet):
            found = load_images(write(pd.DataFrame(rows), folder), role="--private")
            assert list(found.classes) == expected


def test_public_images_need_no_label(folder: Path) -> None:
    found = load_images(
        write_csv(pd.DataFrame(ROWS)[["path"]], folder), role="--public", labelled=False
    )
    assert found.classes == () and found.labels.tolist() == [-1] * 4


@both
@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"path": "a/9.png"}, ("1 of 4 file(s) are missing", "a/9.png")),
        ({"path": "../a/1.png"}, ("'../a/1.png' leaves the folder",)),
        ({"path": "a/../../a/1.png"}, ("leaves the folder",)),
        ({"path": "/etc/passwd"}, ("'/etc/passwd' leaves the folder",)),
        ({"path": "C:\\a\\1.png"}, ("leaves the folder",)),
        ({"path": ""}, ("leaves the folder",)),
        ({"path": "./a//2.png"}, ("1 path(s) come more than once, first a/2.png",)),
        ({"label": ""}, ("1 of 4 image(s) have no label, first b/1.png",)),
        ({"path": "m.txt"}, ("m.txt", "not a readable image")),
    ],
)  # fmt: skip
def test_wrong_rows_are_one_line(
    folder: Path, write: Write, change: dict[str, Any], parts: tuple[str, ...]
) -> None:
    save(b"something", folder / "m.txt")
    rows = pd.DataFrame([ROWS[0] | change, *ROWS[1:]]).drop(columns=["split", "group"])
    file = write(rows, folder)
    refusal(file, str(folder), *parts)


@both
def test_wrong_tables_are_one_line(folder: Path, write: Write) -> None:
    rows = pd.DataFrame(ROWS)
    refusal(write(rows.rename(columns={"path": "x"}), folder), "column", "path")
    refusal(write(rows[:0], folder), "holds no images")
    refusal(write(rows.drop(columns=["label", "split"]), folder), "4 of 4 image(s) have no label")
    refusal(write(rows.assign(split=["train", "", "", ""]), folder), "has no split")


def test_files_of_other_kinds_are_one_line(folder: Path) -> None:
    table = write_csv(pd.DataFrame(ROWS), folder)
    table.write_bytes(b"\xff\xfe\x00path")
    refusal(table, "no table with commas")
    refusal(
        save(b"ustar", folder / "images.tar"), "file of another kind", "CSV, Parquet, npz or IDX"
    )
    refusal(save(b"PAR1 and no more", folder / "m.parquet"), "no readable Parquet file")


def test_a_table_that_unfolds_to_far_more_is_refused(folder: Path) -> None:
    """A name of 1 MB that comes a thousand times takes little room in the file."""
    names = pa.array(["x" * 1_000_000]).take(pa.array([0] * 1000))
    table = pa.table({"path": pa.array([f"{i}.png" for i in range(1000)]), "label": names})
    pq.write_table(table, folder / "m.parquet")
    assert (folder / "m.parquet").stat().st_size < 2_000_000
    refusal(folder / "m.parquet", "could exhaust memory")


def test_nothing_is_decoded_before_all_sizes_fit(folder: Path) -> None:
    save(picture(9, (16, 16)), folder / "b" / "3.png")
    rows = [*ROWS, {"path": "b/3.png", "label": "b"}]
    file = write_csv(pd.DataFrame(rows)[["path", "label"]], folder)
    with refused("mixed sizes", "b/3.png is 16x16", "--size N", error=DataError):
        load_images(file, role="--private")
    assert load_images(file, role="--private", size=8).size == 8
