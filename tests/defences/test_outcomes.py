"""Changes, intervals, images that moved, hidden gradients and the recommendation, from made-up audits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from inversight.defences.outcomes import (
    ModelAudit,
    Outcome,
    interval,
    model_audit,
    per_image,
    recommend,
    summarise,
)

IDS = ("a/1.png", "a/2.png", "b/1.png", "b/2.png")
EQUAL = [1.0] * 4


def audit(
    distances: Sequence[float] = EQUAL, flags: Sequence[int] = (0, 0, 0, 0), *,
    by_access: Mapping[str, Sequence[float]] | None = None, **measures: float,
) -> ModelAudit:  # fmt: skip
    flagged = pd.array([bool(flag) for flag in flags], dtype="boolean")
    columns = {"id": IDS, "label": [*"aabb"], "nearest_distance": distances, "flagged": flagged}
    nearest = {access: np.array(given) for access, given in (by_access or {}).items()}
    return ModelAudit(measures, pd.DataFrame(columns), nearest, 1.0)


def outcome(name: str, *audits: ModelAudit) -> Outcome:
    return Outcome(name, "none" if name == "none" else "model", "", dict(enumerate(audits)))


def compared(*outcomes: Outcome) -> tuple[dict[str, Any], dict[str, Any]]:
    """The row of the last outcome, and the recommendation."""
    found = summarise(outcomes)
    return found["defences"][-1], found["recommendation"]


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=8))
def test_interval_equals_scipy(values: list[float]) -> None:
    found = interval(values)
    error = stats.sem(values)
    bounds = stats.t.interval(0.95, len(values) - 1, np.mean(values), error)
    if error > 0:
        assert [found["low"], found["high"]] == pytest.approx(bounds, rel=1e-6, abs=1e-6)
    assert found["mean"] == pytest.approx(np.mean(values), abs=1e-9)


def test_one_value_has_no_interval() -> None:
    assert interval([3.0]) == {"mean": 3.0, "low": None, "high": None, "values": [3.0]}


def test_changes_are_paired_by_seed() -> None:
    # The seeds differ a lot, the change hardly: paired, it is beyond doubt.
    none = outcome("none", *(audit(ddcs_best=b) for b in (1.0, 5.0, 9.0)))
    mid = outcome("mid", *(audit(ddcs_best=b) for b in (0.9, 4.89, 8.91)))
    change = compared(none, mid)[0]["changes"]["ddcs_best"]
    assert change["mean"] == pytest.approx(-0.1) and change["high"] < 0
    one_seed = Outcome("mid", "model", "", {1: audit(ddcs_best=5.5)})
    assert compared(none, one_seed)[0]["changes"]["ddcs_best"]["values"] == [0.5]


def test_distances_are_geometric_means_and_their_changes_ratios() -> None:
    def made(distances: Sequence[float]) -> ModelAudit:
        sets = {"set": [*"wwwwgggg"], "id": IDS * 2, "nearest_distance": [*distances] * 2}
        return model_audit(
            {"ddcs_best": {"value": 1.0}, "leakage_gap": {"value": None}},
            pd.DataFrame({"id": IDS, "nearest_distance": distances}).iloc[::-1], pd.DataFrame(sets),
            protected=["a/1.png", "b/2.png"], access={"w": "white-box", "g": "scores"},
            accuracies={"holdout_accuracy": 0.5}, minutes=1.0, facts={},
        )  # fmt: skip

    before, after = made([1.0, 2.0, 4.0, 16.0]), made([2.0, 2.0, 4.0, 8.0])
    assert before.measures == pytest.approx({
        "distance_protected": 4.0, "distance_others": math.sqrt(8.0), "distance": 128.0**0.25,
        "holdout_accuracy": 0.5, "ddcs_best": 1.0,
    })  # fmt: skip
    assert before.by_access["scores"].tolist() == [1.0, 2.0, 4.0, 16.0]
    changes = compared(outcome("none", before), outcome("mid", after))[0]["changes"]
    assert changes["distance_protected"]["mean"] == pytest.approx(1.0)
    assert changes["distance"]["values"] == [pytest.approx(1.0)]
    assert changes["holdout_accuracy"]["mean"] == 0.0


def test_names_the_images_that_moved() -> None:
    none = outcome("none", *[audit(flags=(1, 0, 0, 0))] * 2)
    removed = outcome(
        "removal",
        audit([2.0, 0.5, 0.5, 1.0], (0, 1, 0, 0)),
        audit([2.0, 0.5, 2.0, 1.0], (0, 1, 1, 0)),
    )
    assert compared(none, removed)[0]["images"] == {
        "nearer": 1,
        "farther": 1,
        "newly_flagged": ["a/2.png"],
        "no_longer_flagged": ["a/1.png"],
        "nearer_in_every_seed": ["a/2.png"],
    }
    table = per_image([none, removed], ["a/1.png"]).set_index("id")
    assert table["ratio"].tolist() == pytest.approx([2.0, 0.5, 1.0, 1.0])  # b/1.png: 0.5 and 2
    assert table["protected"].tolist() == [True, False, False, False]
    assert table.loc["b/1.png", "flagged_after"] == 0.5


def test_finds_a_defence_that_only_hides_gradients() -> None:
    near, far = [1.0, 1.1, 0.9, 1.0], [2.0, 2.3, 1.9, 2.1]

    def seeds(name: str, white: Sequence[float], black: Sequence[float], ddcs: float) -> Outcome:
        nearest = {"white-box": white, "scores": black}
        changing = (ddcs + s / 100 for s in (0, 1, 3))
        return outcome(
            name,
            *(audit(near, by_access=nearest, ddcs_best=d, holdout_accuracy=0.9) for d in changing),
        )

    none, hides = seeds("none", near, far, 1.0), seeds("hides", far, near, 0.5)
    assert compared(none)[0]["masked"] is None
    row, recommendation = compared(none, hides)
    assert "may only hide gradients" in row["masked"]
    assert recommendation["defence"] is None and "hides" in recommendation["reason"]
    # A black box that is stronger even without a defence says nothing about the defence.
    row, recommendation = compared(seeds("none", far, near, 1.0), hides)
    assert row["hides"] is False and recommendation["defence"] == "hides"


def row(name: str, ddcs: float, half: float, *, loss: float, left: float) -> dict[str, Any]:
    changes = {
        "ddcs_best": {"mean": ddcs, "low": ddcs - half, "high": ddcs + half},
        "holdout_accuracy": {"mean": -loss, "low": None, "high": None},
    }
    measures = {"ddcs_best": {"mean": left}}
    return dict(
        name=name, level="model", failed=None, seeds=3, hides=False, measures=measures,
        changes=changes,
    )  # fmt: skip


CHEAP = row("cheap", -0.5, 0.2, loss=0.01, left=0.5)
EXPENSIVE = row("expensive", -0.9, 0.2, loss=0.2, left=0.1)
UNSURE = row("unsure", -0.8, 0.9, loss=0.0, left=0.2)


@pytest.mark.parametrize(
    ("rows", "tolerance", "defence", "reason"),
    [
        ([CHEAP, EXPENSIVE, UNSURE], 0.02, "cheap", "lowest DDCS"),
        ([CHEAP, EXPENSIVE, UNSURE], 0.3, "expensive", "lowest DDCS"),
        ([EXPENSIVE, UNSURE], 0.02, None, "expensive"),
        ([UNSURE], 0.02, None, "larger than chance"),
        ([{**CHEAP, "seeds": 1}], 0.02, None, "--seeds"),
    ],
)
def test_recommendation_weighs_cost_and_chance(
    rows: list[dict[str, Any]], tolerance: float, defence: str | None, reason: str
) -> None:
    found = recommend(rows, tolerance=tolerance)
    assert found["defence"] == defence and reason in found["reason"]


def test_reports_a_failed_defence_without_measures() -> None:
    none = outcome("none", audit(ddcs_best=1.0))
    broken = Outcome("broken", "model", "", {}, "it broke")
    row, recommendation = compared(none, broken)
    assert row["failed"] == "it broke" and row["measures"] == {}
    assert "No defence" in recommendation["reason"]
    assert len(per_image([none, broken], [])) == 0
