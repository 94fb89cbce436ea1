from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inversight.report.formatting import NONE, duration, number, visible


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, NONE), (float("nan"), NONE), (pd.NA, NONE), (0.0, "0"), (0.12345, "0.123"),
        (-0.5, "-0.5"), (12.0, "12"), (999.7, "1,000"), (1e6, "1,000,000"), (1e-7, "1.00e-07"),
        (1234, "1234"), (True, "True"), (np.float64(0.25), "0.25"), (float("inf"), "∞"),
        ("text", "text"),
    ],
)  # fmt: skip
def test_number(value, text):
    assert number(value) == text


@given(st.floats(1e-12, 1e12))
def test_number_is_exact_to_three_digits(value):
    assert float(number(value).replace(",", "")) == pytest.approx(value, rel=6e-3)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(7.52, "7.5 s"), (99.9, "99.9 s"), (119.7, "2 min 00 s"), (7500.0, "2 h 05 min")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


@given(st.text())
def test_visible_text_is_printable_and_printable_text_unchanged(text):
    assert visible(text).isprintable()
    assert visible(text) == text or not text.isprintable()
