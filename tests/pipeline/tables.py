"""What metrics and tables of an audit hold."""

from __future__ import annotations

import pandas as pd
import pytest

from inversight import SAMPLE_COLUMNS

COLUMNS = [
    "id", "label", "ddcs_best", "ddcs_average", "reconstructions", "nearest_distance",
    "nearest_reconstruction", "exact_hit", "psnr", "nearest_set",
]  # fmt: skip
RISK_COLUMNS = ["p_value", "q_value", "flagged"]


def assert_same(
    found: dict[str, dict[str, object]], expected: dict[str, dict[str, object]], rel: float = 1e-6
) -> None:
    """Check that metrics are equal, numbers up to ``rel``."""
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].keys() == value.keys()
        for field, number in value.items():
            if isinstance(number, float):
                number = pytest.approx(number, rel=rel, abs=1e-9)
            assert found[key][field] == number, (key, field)


def assert_described(samples: pd.DataFrame, *conditions: str) -> None:
    """Check that SAMPLE_COLUMNS has the table's columns, under ``conditions`` beside "always", and types."""
    known = {
        name
        for name, column in SAMPLE_COLUMNS.items()
        if any(column.when.startswith(start) for start in ("always", *conditions))
    }
    assert set(samples) - {"psnr"} == known
    assert {name: str(kind) for name, kind in samples.dtypes.items()} == {
        name: SAMPLE_COLUMNS[name].dtype for name in samples
    }
