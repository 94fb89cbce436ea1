"""Risk against queries: what is drawn, what is said to be missing, and names that are only text."""

from __future__ import annotations

import pandas as pd

from inversight.report import load_report_data, render
from inversight.report.budget import budget_figures, curves, missing_points, points_of
from tests.report.examples import HOSTILE, budget, plain_data, write_run
from tests.report.parsers import Page, parsed, texts


def test_a_line_has_what_was_sent_and_the_whole_attack_once():
    found = points_of(budget(), "covered", 100.0)
    assert found["cma-es"][["queries", "value", "whole"]].to_numpy().tolist() == [
        [90, 20.0, False], [800, 40.0, False], [5000, 50.0, True],
    ]  # fmt: skip
    assert found["cma-es"][["low", "high"]].iloc[0].tolist() == [10.0, 30.0]
    assert found["gmi"]["queries"].tolist() == [7000] and found["gmi"]["low"].isna().all()


def test_points_that_could_not_be_had_are_named_with_their_reason():
    assert missing_points(budget()) == ["gmi within 100 and 1,000 queries: too few for a start"]
    shown = Page(render(plain_data(budget=budget()))).text()
    assert "gmi within 100 and 1,000 queries: too few for a start" in shown
    assert "Points that could not be computed" in shown
    whole = budget()[lambda t: t["reason"].isna()]
    assert "could not be computed" not in render(plain_data(budget=whole))


def test_both_measures_are_drawn_with_a_name_for_each_line():
    figures = budget_figures(budget())
    for (figure, _), axis in zip(figures, ("private images covered, %", "DDCS"), strict=True):
        assert all(name in texts(figure) for name in ("cma-es", "gmi", axis))
    assert figures == budget_figures(budget())


def test_numbers_of_queries_are_written_out():
    one = budget()[lambda t: t["attack"] == "gmi"]  # a single point
    few = texts(curves(points_of(one, "covered"), "covered", "a"))
    assert "5,000" in few and "10k" in few
    wide = one.assign(queries=[1, 7000, 3e6], covered=0.5)
    assert all(
        n in texts(curves(points_of(wide, "covered"), "c", "a")) for n in ("1", "100k", "1M")
    )


def test_many_attacks_and_names_full_of_signs_are_drawn():
    names = [*HOSTILE, "_hidden", "$x^2$", "a" * 90, *map(str, range(20))]
    rows = budget()[lambda t: t["attack"] == "cma-es"]
    table = pd.concat([rows.assign(attack=name) for name in names])
    picture = budget_figures(table)[0][0]
    shown = texts(picture)
    assert parsed(picture).tag.endswith("svg")
    assert "_hidden" in shown and "$x^2$" in shown and "a" * 23 + "…" in shown
    page = Page(render(plain_data(budget=table)))
    assert len(page.named("script")) == 1 and not page.named("img") and not page.named("b")


def test_without_any_point_the_page_still_comes_out():
    none = budget()[lambda t: t["reason"].notna()]
    assert budget_figures(none) == []
    assert "No point could be computed." in render(plain_data(budget=none))
    assert 'id="budget"' not in render(plain_data())


def test_a_run_with_budgets_shows_them(tmp_path):
    run = write_run(tmp_path / "run")
    assert load_report_data(run).budget is None
    budget().to_parquet(run / "budget.parquet")
    assert 'id="budget"' in render(load_report_data(run))
