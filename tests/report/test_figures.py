from __future__ import annotations

import numpy as np
import pytest

from inversight.report.figures import distance_histogram, score_histogram
from tests.report.parsers import parsed, texts


def test_the_same_values_give_the_same_bytes_without_date_doctype_or_metadata():
    values = np.linspace(0.1, 0.9, 50).tolist()
    svg = distance_histogram(values, values)
    assert svg == distance_histogram(values, values)
    for unwanted in ("<!DOCTYPE", "<?xml", "metadata", "<dc:", "matplotlib.org"):
        assert unwanted not in svg


def test_text_stays_text_and_names_both_sets_with_their_medians():
    shown = texts(distance_histogram([0.1, 0.2, 0.3], [0.5, 0.6, 0.9, 1.0]))
    assert "private (3), median 0.2" in shown
    assert "holdout (4), median 0.75" in shown


def test_a_holdout_is_not_named_where_there_is_none():
    assert "holdout" not in distance_histogram([0.1, 0.2, 0.3], None)


@pytest.mark.parametrize(
    "values",
    [[0.0], [0.0, 0.0], [0.3, 0.3], [0.0, 1e-7, 1.0], [1e-9, 1e6], [float("nan"), 2.0]],
)
def test_awkward_values_are_drawn(values):
    assert parsed(distance_histogram(values, values)).tag.endswith("svg")


def test_nothing_to_draw_is_none():
    assert score_histogram([0.0, 0.0]) is None
    assert distance_histogram([float("nan")], [1.0]) is None


def test_a_user_style_does_not_change_the_picture():
    import matplotlib

    plain = score_histogram([1.0, 2.0, 3.0])
    with matplotlib.rc_context({"axes.facecolor": "red", "font.size": 20.0}):
        assert score_histogram([1.0, 2.0, 3.0]) == plain
