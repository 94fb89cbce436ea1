"""Sortable tables of a page: a table in, headings and cells in words out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from inversight.report import words


@dataclass(frozen=True)
class Column:
    """A column of the ledger. first: its first direction. filtered: the filter reads it."""

    key: str
    name: str
    numeric: bool
    first: str
    filtered: bool


@dataclass(frozen=True)
class Cell:
    """A cell of the ledger. sort: the value to sort by, where the text is not it."""

    text: str
    sort: str | None


def headings(
    table: pd.DataFrame,
    order: Sequence[str],
    word: Callable[[str], words.Word],
    filtered: Collection[str] = ("label",),
) -> list[Column]:
    """Return a numbering and the columns of ``table`` in ``order``, each with its first direction.

    The filter reads columns of text and those in ``filtered``.
    """
    columns = [Column("", "#", True, "ascending", False)]
    for key in order:
        meant = word(key)
        numeric = bool(pd.api.types.is_numeric_dtype(table[key]))
        first = "descending" if meant.worse == "higher" else "ascending"
        columns.append(Column(key, meant.name, numeric, first, key in filtered or not numeric))
    return columns


def rows(table: pd.DataFrame, order: Sequence[str]) -> list[list[Cell]]:
    """The rows of ``table`` in the order they have, numbered from 1."""
    cells = [[cell(value) for value in table[key].tolist()] for key in order]
    numbers = [Cell(str(i), None) for i in range(1, len(table) + 1)]
    return [list(row) for row in zip(numbers, *cells, strict=True)]


def cell(value: Any) -> Cell:
    """One value in words."""
    if words.is_missing(value):
        return Cell(words.NONE, "")
    if isinstance(value, bool):
        return Cell("yes" if value else "no", str(int(value)))
    if isinstance(value, float):
        return Cell(words.number(value), words.significant(value))
    return Cell(words.visible(str(value)), None)
