"""Names, meanings and directions of the measures and columns, from ``templates/words.toml``."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from types import MappingProxyType
from typing import Literal

Worse = Literal["higher", "lower", ""]
"""Direction that means more leakage, or for accuracy on holdout less use; "" if neither."""


@dataclass(frozen=True)
class Word:
    """Name of a measure or column in the report, its direction and its meaning."""

    name: str
    worse: Worse = ""
    meaning: str = ""

    @property
    def good(self) -> str:
        """Return 'higher is better', 'lower is better' or ""."""
        return {"higher": "lower is better", "lower": "higher is better"}.get(self.worse, "")


@dataclass(frozen=True)
class SampleColumn(Word):
    """A column of samples.parquet. dtype: of pandas. when: what a table with this column comes from."""

    dtype: str = ""
    when: str = ""


class Words(dict[str, Word]):
    """Words by key, in the order of the page; an unknown key is its own name."""

    def __missing__(self, key: str) -> Word:
        return Word(key.replace("_", " "))


_FILE = files("inversight.report").joinpath("templates/words.toml")
_TABLES = tomllib.loads(_FILE.read_text(encoding="utf-8"))

METRICS = Words({key: Word(**values) for key, values in _TABLES["metrics"].items()})
"""Keys of metrics.json."""

DETAILS: Mapping[str, str] = _TABLES["details"]
"""Names of the values beside a measure in metrics.json."""

SAMPLE_COLUMNS: Mapping[str, SampleColumn] = MappingProxyType(
    {
        key: SampleColumn(**{**values, "when": _TABLES["when"][values["when"]]})
        for key, values in _TABLES["columns"].items()
    }
)
"""Columns of ``samples.parquet`` and of ``AuditResult.samples`` by name: heading in the report (``name``),
pandas type (``dtype``), ``meaning``, ``when`` a table has the column, and the direction that means more
leakage (``worse``: "higher", "lower" or "")."""

COLUMNS = Words(SAMPLE_COLUMNS)
"""The same for the ledger, where a column of another name has that name as its heading."""

MEASURES = Words(
    {key: Word(**found) if found else METRICS[key] for key, found in _TABLES["measures"].items()}
)
"""Measures of defences.json."""

IMAGE_COLUMNS = Words({key: Word(**values) for key, values in _TABLES["image_columns"].items()})
"""Columns of images.parquet."""

EXPOSURES = ("exposed", "exposure_mean", "exposure_auc", "membership_auc")
"""Keys of metrics.json that need shadow models."""

UTILITY = ("holdout_accuracy", "private_accuracy")
"""Measures of the target's use; all others are of leakage."""

RATIOS = ("distance", "distance_protected", "distance_others")
"""Measures whose change is a ratio to the undefended target (1: none), not a difference."""


def in_order(keys: Iterable[str], known: Collection[str] = METRICS) -> list[str]:
    """Return ``keys`` in the order of ``known``, other keys last."""
    given = list(dict.fromkeys(keys))
    return [*(key for key in known if key in given), *(key for key in given if key not in known)]
