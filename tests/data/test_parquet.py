"""Parquet files with images inside, with the schema and the metadata of Hugging Face's datasets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from inversight.data import load_images, read_splits
from inversight.data.source import read_column
from tests.data.files import encode, picture, png_header, refusal, save

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def hugging_face(
    file: Path, labels: list[Any], *, names: list[str] | None = None, contents: list[Any] | None = None,
    seed: int = 0, **columns: list[Any],
) -> Path:  # fmt: skip
    """Write what ``datasets.Dataset.to_parquet`` writes of a column image and a column label."""
    if contents is None:
        contents = [encode(picture(seed + i), "PNG") for i in range(len(labels))]
    rows = [{"bytes": content, "path": None} for content in contents]
    table = pa.table({"image": pa.array(rows, IMAGE), "label": labels, **columns})
    features: dict[str, Any] = {"image": {"_type": "Image"}}
    features["label"] = {"names": names, "_type": "ClassLabel"} if names else {"_type": "Value"}
    info = json.dumps({"info": {"features": features}})
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata({"huggingface": info}), file, row_group_size=2)
    return file


def test_shards_splits_and_class_names(tmp_path: Path) -> None:
    """Classes come in ClassLabel's order, which is that of the outputs of a model trained on it."""
    names = ["zebra", "ant", "bee"]
    data = tmp_path / "set" / "data"
    hugging_face(data / "train-00000-of-00002.parquet", [0, 1, 1], names=names)
    hugging_face(data / "train-00001-of-00002.parquet", [0, 0], names=names, seed=3)
    hugging_face(data / "test-00000-of-00001.parquet", [1, 0], names=names, seed=5)
    for path in (tmp_path / "set", data):
        assert read_splits(path, "--data") == ("test", "train")
        warnings: list[str] = []
        found = load_images(Path(f"{path}:train"), role="--private", warn=warnings.append)
        assert found.ids == tuple(f"train/{i:06d}" for i in range(5))
        assert found.classes == ("zebra", "ant") and found.labels.tolist() == [0, 1, 1, 0, 0]
        assert len(warnings) == 1 and "1 of 3 classes have no image: bee" in warnings[0]
    for i in range(5):
        save(picture(i), tmp_path / "folder" / "a" / f"{i}.png")
    assert load_images(tmp_path / "folder", role="--private").hashes == found.hashes
    assert len(load_images(Path(f"{data}:test+train"), role="--private", warn=lambda _: None)) == 7


def test_other_labels_and_a_split_column(tmp_path: Path) -> None:
    file = hugging_face(
        tmp_path / "x.parquet", ["b", "a", "a"], split=["train", "test", "train"],
        person=["ann", "ann", None],
    )  # fmt: skip
    found = load_images(Path(f"{file}:train"), role="--private")
    assert found.ids == ("train/000000", "train/000001") and found.classes == ("a", "b")
    assert read_column(Path(f"{file}:train"), "--private", "person") == {"train/000000": "ann"}
    numbers = hugging_face(tmp_path / "y.parquet", [10, 9, 2])
    found = load_images(numbers, role="--private")
    assert found.classes == ("2", "9", "10") and found.ids[0] == "y/000000"


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ({"labels": [0, 3], "names": ["a", "b"]}, ("label 3 of x/000001 is unknown", "2 classes")),
        ({"labels": [0, -1], "names": ["a", "b"]}, ("1 of 2 image(s) have no label, first x/000001",)),
        ({"labels": [[0], [0, 1]]}, ("column label holds list", "one label an image")),
        ({"labels": [0, 1], "contents": [None, b"x"]}, ("x/000000 has no bytes", "embed the images")),
        ({"labels": [0], "contents": [b"something"]}, ("x/000000: is not a readable image",)),
        ({"labels": [0], "contents": [b""]}, ("x/000000: is empty",)),
        ({"labels": [0], "contents": [png_header(9000, 9000)]}, ("64 million pixels",)),
        ({"labels": []}, ("holds no images",)),
    ],
)  # fmt: skip
def test_wrong_files_are_one_line(
    tmp_path: Path, given: dict[str, Any], parts: tuple[str, ...]
) -> None:
    file = hugging_face(tmp_path / "x.parquet", **given)
    refusal(file, str(file), *parts)


def test_wrong_columns_are_one_line(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "x.parquet")
    refusal(tmp_path / "x.parquet", "no column of images", "text")
    hugging_face(tmp_path / "two" / "a.parquet", [0])
    hugging_face(tmp_path / "two" / "b.parquet", ["x"])
    refusal(tmp_path / "two", "b.parquet: has other columns than a.parquet")


def test_images_that_unfold_to_far_more_are_refused(tmp_path: Path) -> None:
    """Zeros that deflate to a thousandth, as one value of 200 MB."""
    rows = pa.array([{"bytes": bytes(200_000_000), "path": None}], IMAGE)
    file = tmp_path / "x.parquet"
    pq.write_table(
        pa.table({"image": rows, "label": [0]}), file, compression="zstd", use_dictionary=False
    )
    assert file.stat().st_size < 1_000_000
    refusal(file, "declares 200 MB", "could exhaust memory")


def test_a_folder_of_images_beside_a_parquet_file_stays_a_folder(folder: Path) -> None:
    hugging_face(folder / "extra.parquet", [0])
    warnings: list[str] = []
    found = load_images(folder, role="--private", warn=warnings.append)
    assert len(found) == 4 and "extra.parquet" in warnings[0]
