"""Sortable tables of a page: a data frame in, headings and cells as text out."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from inversight.report.formatting import (
    NONE,
    is_missing,
    number,
    significant,
    visible,
    with_interval,
)
from inversight.report.words import Words

MOST_ROWS = 2000
"""Maximum number of rows on a page; the Parquet file has all."""


@dataclass(frozen=True)
class Column:
    """A column of a ledger.

    first: direction that it is sorted in first. filtered: the filter reads it. main: it is shown at once.
    """

    key: str
    name: str
    numeric: bool
    first: str
    filtered: bool
    main: bool = True

    @property
    def style(self) -> str:
        """Return the classes of its cells."""
        return " ".join([*(["n"] if self.numeric else []), *([] if self.main else ["more"])])


@dataclass(frozen=True)
class Cell:
    """A cell of a ledger. sort: the value to sort by, None for the text."""

    text: str
    sort: str | None


@dataclass(frozen=True)
class Ledger:
    """A table of a page. rows: at most ``MOST_ROWS`` of its ``count``, numbered from 1."""

    name: str
    columns: list[Column]
    rows: list[list[Cell]]
    count: int

    @classmethod
    def of(
        cls,
        name: str,
        table: pd.DataFrame,
        order: Iterable[str],
        words: Words,
        intervals: Mapping[str, tuple[str, str]] | None = None,
        main: Collection[str] | None = None,
    ) -> Ledger:
        """Return the columns of ``table`` named by ``order``, its rows in the order that they have.

        The filter reads columns of text and the label. intervals: the columns with the bounds of a
        column's interval, which are shown beside its value instead of in columns of their own. main: the
        columns that are shown at once; None: all.
        """
        bounds = {k: v for k, v in (intervals or {}).items() if {k, *v} <= {*table.columns}}
        hidden = {one for both in bounds.values() for one in both}
        keys = [key for key in order if key in table.columns and key not in hidden]
        columns = [Column("", "#", True, "ascending", False)]
        for key in keys:
            numeric = bool(pd.api.types.is_numeric_dtype(table[key]))
            first = "descending" if words[key].worse == "higher" else "ascending"
            heading = f"{words[key].name} [95 %]" if key in bounds else words[key].name
            filtered, shown_at_once = key == "label" or not numeric, main is None or key in main
            columns.append(Column(key, heading, numeric, first, filtered, shown_at_once))
        shown = table.head(MOST_ROWS)
        cells = [[_cell(value) for value in shown[key].tolist()] for key in keys]
        for key, both in bounds.items():
            rows = zip(
                cells[keys.index(key)], *(shown[c].tolist() for c in (key, *both)), strict=True
            )
            cells[keys.index(key)] = [_bounded(*row) for row in rows]
        numbers = [Cell(str(i), None) for i in range(1, len(shown) + 1)]
        return cls(name, columns, [list(r) for r in zip(numbers, *cells, strict=True)], len(table))


def _cell(value: Any) -> Cell:
    if is_missing(value):
        return Cell(NONE, "")
    if isinstance(value, bool):
        return Cell("yes" if value else "no", str(int(value)))
    if isinstance(value, float):
        return Cell(number(value), significant(value))
    return Cell(visible(value), None)


def _bounded(cell: Cell, value: Any, low: Any, high: Any) -> Cell:
    if is_missing(value):
        return cell
    return Cell(with_interval({"value": value, "low": low, "high": high}), cell.sort)
