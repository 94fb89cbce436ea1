"""Lists the images inside Parquet files, as Hugging Face's datasets keep them."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from inversight.core.errors import DataError, one_line
from inversight.data.listing import (
    Item,
    Listing,
    Source,
    check_declared,
    class_order,
    numbered,
)

_SHARD = re.compile(r"(?P<split>.+?)(-\d+-of-\d+(-[0-9a-f]+)?)?\.parquet", re.IGNORECASE)
"""A file's name; Hugging Face writes ``train-00000-of-00002.parquet``."""
_AT_ONCE = 64
"""Images that are in memory at once as bytes."""
_MOST_BYTES = 2 << 30
"""Bytes that so many images may have."""


def parquet_batches(
    file: Path, where: str, columns: Sequence[str] | None, rows: int = 1 << 16
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a file, so many at once, of the named columns or of all.

    Raises:
        DataError: the file is damaged, or declares far more than it could hold.
    """
    try:
        with pyarrow.parquet.ParquetFile(file) as opened:
            facts = opened.metadata
            groups = [facts.row_group(i) for i in range(facts.num_row_groups)]
            declared = sum(
                g.column(k).total_uncompressed_size for g in groups for k in range(g.num_columns)
            )
            check_declared(where, max(declared, facts.num_rows), file.stat().st_size)
            for group in range(facts.num_row_groups):  # all at once would keep what was read
                yield from opened.iter_batches(batch_size=rows, row_groups=[group], columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{where}: is no readable Parquet file ({one_line(error)})") from None


def parquet_schema(file: Path, where: str) -> pa.Schema:
    """Return the names and types of a file's columns.

    Raises:
        DataError: the file is damaged.
    """
    try:
        return pyarrow.parquet.read_schema(file)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{where}: is no readable Parquet file ({one_line(error)})") from None


def image_column(schema: pa.Schema) -> str | None:
    """Return the name of the column with images as bytes, None without one."""
    for field in schema:
        kind = field.type
        if pa.types.is_struct(kind) and {"bytes", "path"} >= {f.name for f in kind} >= {"bytes"}:
            return str(field.name)
    names = [
        f.name for f in schema if pa.types.is_binary(f.type) or pa.types.is_large_binary(f.type)
    ]
    return str(names[0]) if len(names) == 1 else None


@dataclass(frozen=True)
class _Tables:
    """The Parquet files of a data set, which have one schema, and the split of each file's name."""

    path: Path
    role: str
    files: Sequence[tuple[str, Path]]
    schema: pa.Schema
    image: str

    @property
    def where(self) -> str:
        return f"{self.role} {self.path}"

    @property
    def features(self) -> dict[str, Any]:
        """Return the types that Hugging Face's datasets keep beside Arrow's."""
        text = (self.schema.metadata or {}).get(b"huggingface", b"{}")
        try:
            found = json.loads(text)["info"]["features"]
        except (ValueError, KeyError, TypeError):
            return {}
        return found if isinstance(found, dict) else {}

    @cached_property
    def label(self) -> str | None:
        """The name of the column with labels, None without one.

        Raises:
            DataError: several could be meant, or an image can have several labels.
        """
        known = [
            k for k, f in self.features.items() if _is_class_label(f) and k in self.schema.names
        ]
        name = next((n for n in ("label", "labels") if n in self.schema.names), None)
        if name is None and len(known) > 1:
            raise DataError(
                f"{self.where}: {' and '.join(known)} are labels; name the column that counts label"
            )
        name = name or next(iter(known), None)
        if name is not None:
            kind = self.schema.field(name).type
            if not (pa.types.is_integer(kind) or pa.types.is_string(kind) or _is_names(kind)):
                raise DataError(
                    f"{self.where}: column {name} holds {kind}, expected one label an image, a whole "
                    "number or a name"
                )
        return name

    @property
    def class_names(self) -> list[str] | None:
        """Return the names of ClassLabel, None without them."""
        feature: Any = self.features.get(self.label or "")
        return [str(name) for name in feature["names"]] if _is_class_label(feature) else None

    def column(self, name: str) -> Iterator[list[Any]]:
        """Yield the values of a column for each file."""
        for _, file in self.files:
            where = f"{self.role} {file}"
            found: list[Any] = []
            for batch in parquet_batches(file, where, [name]):
                found += batch.column(0).to_pylist()
            yield found

    @cached_property
    def split_of(self) -> list[str]:
        """The split of each row of all files."""
        if "split" in self.schema.names:
            return [str(value) for values in self.column("split") for value in values]
        counts = []
        for split, file in self.files:
            try:
                counts.append((split, pyarrow.parquet.read_metadata(file).num_rows))
            except (pa.ArrowException, OSError) as error:
                where = f"{self.role} {file}"
                raise DataError(f"{where}: is no readable file ({one_line(error)})") from None
            check_declared(f"{self.role} {file}", counts[-1][1], file.stat().st_size)
        return [split for split, rows in counts for _ in range(rows)]

    @cached_property
    def ids(self) -> list[str]:
        """The id of each row of all files."""
        names = {split: iter(numbered(split, n)) for split, n in Counter(self.split_of).items()}
        return [next(names[split]) for split in self.split_of]

    def chosen(self, splits: Sequence[str]) -> list[int]:
        """Return the rows of the given splits."""
        return [i for i, s in enumerate(self.split_of) if not splits or s in splits]

    def groups(self, column: str, splits: Sequence[str]) -> dict[str, str] | None:
        if column not in self.schema.names:
            return None
        values = [value for part in self.column(column) for value in part]
        return {
            self.ids[row]: str(values[row])
            for row in self.chosen(splits)
            if values[row] is not None and values[row] != ""
        }

    def listing(self, splits: Sequence[str]) -> Listing:
        every = self.chosen(splits)
        labels: list[str | None] = [None] * len(self.split_of)
        remarks: tuple[str, ...] = ()
        names = self.class_names
        if self.label is not None:
            values = [value for part in self.column(self.label) for value in part]
            labels = [self._name(value, names, row) for row, value in enumerate(values)]
        found = {labels[row] for row in every} - {None}
        classes = class_order(name for name in found if name is not None)
        if names is not None:
            classes = [name for name in names if name in found]
            unused = [name for name in names if name not in found]
            if unused:
                more = f" and {len(unused) - 3} more" if len(unused) > 3 else ""
                remarks = (
                    f"{self.where}: {len(unused)} of {len(names)} classes have no image: "
                    f"{', '.join(unused[:3])}{more}",
                )
        return Listing(
            self.path, [self.ids[row] for row in every], [labels[row] for row in every], classes,
            lambda rows: self._items([every[row] for row in rows]), [file for _, file in self.files],
            remarks=remarks,
        )  # fmt: skip

    def _name(self, value: Any, names: list[str] | None, row: int) -> str | None:
        if value is None or value == "":
            return None
        if names is None or not isinstance(value, int):
            return str(value)
        if value == -1:  # datasets' mark of no label
            return None
        if not 0 <= value < len(names):
            raise DataError(
                f"{self.where}: label {value} of {self.ids[row]} is unknown; the file names "
                f"{len(names)} classes"
            )
        return names[value]

    def _items(self, rows: Sequence[int]) -> Iterator[Item]:
        wanted, row = set(rows), 0
        for _, file in self.files:
            where = f"{self.role} {file}"
            for batch in parquet_batches(file, where, [self.image], _AT_ONCE):
                if batch.nbytes > _MOST_BYTES:
                    raise DataError(
                        f"{where}: {len(batch)} images have {batch.nbytes / 1e9:.1f} GB, which could "
                        "exhaust memory; shrink or remove them"
                    )
                inside = [i for i in range(len(batch)) if row + i in wanted]
                for i in inside:
                    yield self._bytes(batch.column(0)[i].as_py(), row + i)
                row += len(batch)

    def _bytes(self, value: Any, row: int) -> bytes:
        content = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(content, bytes):
            raise DataError(
                f"{self.where}: {self.ids[row]} has no bytes, its image is a file elsewhere; embed the "
                "images, as datasets' push_to_hub does, or use a table of paths"
            )
        return content


def open_parquet(path: Path, files: Sequence[Path], role: str, image: str) -> Source:
    """Open the Parquet files of a data set whose column ``image`` holds images.

    Raises:
        DataError: a file is damaged or has other columns than the first.
    """
    schema = parquet_schema(files[0], f"{role} {files[0]}")
    for file in files[1:]:
        if not parquet_schema(file, f"{role} {file}").equals(schema):
            raise DataError(f"{role} {file}: has other columns than {files[0].name}")
    tables = _Tables(path, role, [(_split_of(file), file) for file in files], schema, image)
    splits = dict(sorted(Counter(tables.split_of).items()))
    if not splits:
        raise DataError(f"{role} {path}: holds no images")
    return Source(path, splits, tables.listing, tables.groups)


def _split_of(file: Path) -> str:
    """Return the split that a file's name tells; that of its folder for a number, as in train/0000."""
    found = _SHARD.fullmatch(file.name)
    name = found["split"] if found else file.stem
    return file.absolute().parent.name if name.isdigit() else name


def _is_class_label(feature: Any) -> bool:
    return (
        isinstance(feature, dict)
        and feature.get("_type") == "ClassLabel"
        and isinstance(feature.get("names"), list)
    )


def _is_names(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_large_string(kind)
        or (pa.types.is_dictionary(kind) and pa.types.is_string(kind.value_type))
    )
