"""Risk against queries: lines, points that are missing, and names that are only text."""

from __future__ import annotations

import pandas as pd
import pytest

from inversight.report import render
from inversight.report.budget import budget_figures, curves, missing_points, points_of
from tests.report.examples import HOSTILE, budget, plain_data
from tests.report.parsers import Page, parsed, texts

GMI = budget().query("attack == 'gmi'")


def test_line_has_the_queries_sent_and_the_unlimited_attack_once():
    found = points_of(budget(), "covered", 100.0)
    assert found["cma-es"][["queries", "value", "whole"]].to_numpy().tolist() == [
        [90, 20.0, False], [800, 40.0, False], [5000, 50.0, True],
    ]  # fmt: skip
    assert found["cma-es"][["low", "high"]].iloc[0].tolist() == [10.0, 30.0]
    assert found["gmi"]["queries"].tolist() == [7000] and found["gmi"]["low"].isna().all()


def test_missing_points_have_their_reason():
    line = "gmi within 100 and 1,000 queries: too few for a start"
    assert missing_points(budget()) == [line]
    shown = Page(render(plain_data(budget=budget()))).text()
    assert line in shown and "Points that could not be computed" in shown
    whole = budget()[lambda t: t["reason"].isna()]
    assert "could not be computed" not in render(plain_data(budget=whole))


def test_draws_both_measures_with_every_attack_in_the_legend():
    figures = budget_figures(budget())
    for (figure, _), axis in zip(figures, ("private images covered, %", "DDCS"), strict=True):
        assert all(name in texts(figure) for name in ("cma-es", "gmi", axis))
    assert figures == budget_figures(budget())


@pytest.mark.parametrize(
    ("table", "labels"),
    [(GMI, ["5,000", "10k"]), (GMI.assign(queries=[1, 7e3, 3e6], covered=1), ["1", "100k", "1M"])],
)
def test_labels_of_queries_are_round_numbers(table, labels):
    shown = texts(curves(points_of(table, "covered"), "covered", "a"))
    assert all(label in shown for label in labels)


def test_draws_many_attacks_with_names_full_of_special_characters():
    names = [*HOSTILE, "_hidden", "$x^2$", "a" * 90, *map(str, range(20))]
    rows = budget().query("attack == 'cma-es'")
    table = pd.concat([rows.assign(attack=name) for name in names])
    figure = budget_figures(table)[0][0]
    assert parsed(figure).tag.endswith("svg")
    assert all(name in texts(figure) for name in ("_hidden", "$x^2$", "a" * 23 + "…"))
    page = Page(render(plain_data(budget=table)))
    assert len(page.named("script")) == 1 and not page.named("img") and not page.named("b")


def test_page_without_any_point():
    none = budget()[lambda t: t["reason"].notna()]
    assert budget_figures(none) == []
    assert "No point could be computed." in render(plain_data(budget=none))
    assert 'id="budget"' not in render(plain_data())
