"""What metrics and tables of an audit hold."""

from __future__ import annotations

import pytest

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
