"""Lists the images that a table names: a CSV or Parquet file ``path,label[,group][,split]``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

import pandas as pd

from inversight.core.errors import DataError, one_line
from inversight.data.listing import Item, Listing, Source, check_declared, class_order
from inversight.data.parquet import parquet_batches

COLUMNS = ("path", "label", "group", "split")


@dataclass(frozen=True)
class _Manifest:
    """The rows of a table. An empty value is None."""

    file: Path
    role: str
    table: pd.DataFrame

    @property
    def where(self) -> str:
        return f"{self.role} {self.file}"

    def values(self, column: str, splits: Sequence[str]) -> list[str | None] | None:
        """Return a column of the rows of the given splits, None without it."""
        if column not in self.table:
            return None
        return [value or None for value in self.rows(splits)[column]]

    def rows(self, splits: Sequence[str]) -> pd.DataFrame:
        return self.table[self.table["split"].isin(splits)] if splits else self.table

    def listing(self, splits: Sequence[str]) -> Listing:
        paths = [str(path) for path in self.rows(splits)["path"]]
        files = [self.file.parent / path for path in paths]
        missing = [file for file in files if not file.is_file()]
        if missing:
            raise DataError(
                f"{self.where}: {len(missing)} of {len(files)} file(s) are missing, first {missing[0]}; "
                "paths begin at the folder of the table"
            )
        labels = self.values("label", splits) or [None] * len(paths)

        def items(rows: Sequence[int]) -> Iterator[Item]:
            return (files[row] for row in rows)

        return Listing(
            self.file, paths, labels, class_order(y for y in labels if y is not None), items, files
        )

    def groups(self, column: str, splits: Sequence[str]) -> dict[str, str] | None:
        values = self.values(column, splits)
        if values is None:
            return None
        paths = self.rows(splits)["path"]
        return {
            str(path): value for path, value in zip(paths, values, strict=True) if value is not None
        }


def open_csv(file: Path, role: str) -> Source:
    """Open a table with commas.

    Raises:
        DataError: it is no such table, or a path in it leaves its folder or comes twice.
    """
    where = f"{role} {file}"
    try:
        table = pd.read_csv(
            file, dtype=str, keep_default_na=False, encoding="utf-8-sig", compression=None
        )
    except OSError as error:
        raise DataError(f"{where}: cannot be read ({error.strerror or one_line(error)})") from None
    except ValueError as error:
        raise DataError(f"{where}: is no table with commas ({one_line(error)})") from None
    return _source(file, role, table)


def open_parquet_manifest(file: Path, role: str) -> Source:
    """Open a Parquet file with the same columns.

    Raises:
        DataError: it is damaged, or a path in it leaves its folder or comes twice.
    """
    where = f"{role} {file}"
    batches, decoded = [], 0
    for batch in parquet_batches(file, where, None):
        # A column of few distinct values takes little room in the file and much outside it.
        decoded += batch.nbytes
        check_declared(where, decoded, file.stat().st_size)
        batches.append(batch.to_pandas())
    if not batches:
        raise DataError(f"{where}: holds no images")
    table = pd.concat(batches, ignore_index=True)
    text = {name: ["" if pd.isna(v) else _plain(v) for v in table[name]] for name in table}
    return _source(file, role, pd.DataFrame(text, dtype=str))


def _plain(value: object) -> str:
    """Return a value as a table of text has it; a whole number that became a float has no point."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _source(file: Path, role: str, table: pd.DataFrame) -> Source:
    where = f"{role} {file}"
    if "path" not in table:
        raise DataError(
            f"{where}: has no column path; expected columns path, label and, if you like, group and "
            f"split, found {', '.join(map(str, table.columns))}"
        )
    if table.empty:
        raise DataError(f"{where}: holds no images")
    table = table.assign(path=[_inside(str(path), where) for path in table["path"]])
    twice = [path for path, count in Counter(table["path"]).items() if count > 1]
    if twice:
        raise DataError(
            f"{where}: {len(twice)} path(s) come more than once, first {twice[0]}; leave one row of each"
        )
    manifest = _Manifest(file, role, table)
    splits: dict[str, int] = {}
    if "split" in table:
        if "" in table["split"].array:
            path = table["path"][table["split"] == ""].iloc[0]
            raise DataError(f"{where}: {path} has no split; fill in the column, or remove it")
        splits = dict(sorted(Counter(table["split"]).items()))
    return Source(file, splits, manifest.listing, manifest.groups)


def _inside(path: str, where: str) -> str:
    """Return a path below the table's folder in its plain form.

    Raises:
        DataError: it is absolute or goes up.
    """
    pure = PurePosixPath(path.replace("\\", "/") if PureWindowsPath(path).drive else path)
    if pure.is_absolute() or PureWindowsPath(path).drive or ".." in pure.parts or not pure.parts:
        raise DataError(
            f"{where}: path {path!r} leaves the folder of the table; give paths below it, without '..'"
        )
    return str(pure)
