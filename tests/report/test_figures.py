from __future__ import annotations

import matplotlib
import pytest

from inversight.report.figures import distance_histogram, score_histogram
from tests.report.parsers import parsed, texts

VALUES = [0.1, 0.2, 0.3]


def test_is_deterministic_without_date_doctype_or_metadata():
    svg = distance_histogram(VALUES, VALUES)
    assert svg == distance_histogram(VALUES, VALUES)
    for unwanted in ("<!DOCTYPE", "<?xml", "metadata", "<dc:", "matplotlib.org"):
        assert unwanted not in svg


def test_legend_names_the_sets_with_their_medians():
    shown = texts(distance_histogram(VALUES, [0.5, 0.6, 0.9, 1.0]))
    assert "private (3), median 0.2" in shown and "holdout (4), median 0.75" in shown
    assert "holdout" not in distance_histogram(VALUES, None)


@pytest.mark.parametrize(
    "values", [[0.0], [0.0, 0.0], [0.3, 0.3], [0.0, 1e-7, 1.0], [1e-9, 1e6], [float("nan"), 2.0]]
)
def test_draws_constant_extreme_and_missing_values(values):
    assert parsed(distance_histogram(values, values)).tag.endswith("svg")


def test_returns_none_without_values():
    assert score_histogram([0.0, 0.0]) is None
    assert distance_histogram([float("nan")], [1.0]) is None


def test_ignores_the_style_of_the_user():
    plain = score_histogram(VALUES)
    with matplotlib.rc_context({"axes.facecolor": "red", "font.size": 20.0}):
        assert score_histogram(VALUES) == plain
