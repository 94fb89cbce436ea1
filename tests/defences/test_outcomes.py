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


def audit(
    distances: Sequence[float],
    *,
    flags: Sequence[bool] = (False,) * 4,
    white: Sequence[float] | None = None,
    black: Sequence[float] | None = None,
    **measures: float,
) -> ModelAudit:
    samples = pd.DataFrame(
        {
            "id": IDS,
            "label": ["a", "a", "b", "b"],
            "nearest_distance": distances,
            "flagged": pd.array(flags, dtype="boolean"),
        }
    )
    by_access = {}
    if white is not None and black is not None:
        by_access = {"white-box": np.array(white), "scores": np.array(black)}
    return ModelAudit(measures, samples, by_access, 1.0)


def outcome(name: str, *audits: ModelAudit, level: str = "model") -> Outcome:
    return Outcome(name, "none" if name == "none" else level, "", dict(enumerate(audits)))


def row_of(found: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return next(r for r in found["defences"] if r["name"] == name)


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=8))
def test_an_interval_is_that_of_scipy(values: list[float]) -> None:
    found = interval(values)
    error = stats.sem(values)
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), error)
    if error > 0:
        assert found["low"] == pytest.approx(low, rel=1e-6, abs=1e-6)
        assert found["high"] == pytest.approx(high, rel=1e-6, abs=1e-6)
    assert found["mean"] == pytest.approx(np.mean(values), abs=1e-9)


def test_one_value_has_no_interval() -> None:
    assert interval([3.0]) == {"mean": 3.0, "low": None, "high": None, "values": [3.0]}


def test_changes_pair_the_seeds() -> None:
    # The seeds differ a lot, the change hardly: paired, it is beyond doubt.
    none = outcome("none", *(audit([1.0] * 4, ddcs_best=b) for b in (1.0, 5.0, 9.0)))
    mid = outcome("mid", *(audit([1.0] * 4, ddcs_best=b) for b in (0.9, 4.89, 8.91)))
    change = row_of(summarise([none, mid]), "mid")["changes"]["ddcs_best"]
    assert change["mean"] == pytest.approx(-0.1)
    assert change["high"] < 0


def test_a_seed_that_one_side_lacks_does_not_count() -> None:
    none = outcome("none", audit([1.0] * 4, ddcs_best=1.0), audit([1.0] * 4, ddcs_best=2.0))
    mid = Outcome("mid", "model", "", {1: audit([1.0] * 4, ddcs_best=2.5)})
    assert row_of(summarise([none, mid]), "mid")["changes"]["ddcs_best"]["values"] == [0.5]


def test_distances_are_geometric_means_and_their_changes_ratios() -> None:
    def made(distances: Sequence[float]) -> ModelAudit:
        return model_audit(
            {"ddcs_best": {"value": 1.0}, "leakage_gap": {"value": None}},
            pd.DataFrame({"id": IDS, "nearest_distance": distances}).iloc[::-1],
            pd.DataFrame(
                {"set": ["w"] * 4 + ["g"] * 4, "id": IDS * 2, "nearest_distance": [*distances] * 2}
            ),
            protected=["a/1.png", "b/2.png"],
            access={"w": "white-box", "g": "scores"},
            accuracies={"holdout_accuracy": 0.5},
            minutes=1.0,
            facts={},
        )

    before, after = made([1.0, 2.0, 4.0, 16.0]), made([2.0, 2.0, 4.0, 8.0])
    assert before.measures["distance_protected"] == pytest.approx(4.0)
    assert before.measures["distance_others"] == pytest.approx(math.sqrt(8.0))
    assert before.measures["distance"] == pytest.approx(128.0**0.25)
    assert "leakage_gap" not in before.measures
    assert before.by_access["scores"].tolist() == [1.0, 2.0, 4.0, 16.0]
    found = summarise([outcome("none", before), outcome("mid", after)])
    changes = row_of(found, "mid")["changes"]
    assert changes["distance_protected"]["mean"] == pytest.approx(1.0)
    assert changes["distance"]["values"] == [pytest.approx(1.0)]
    assert changes["holdout_accuracy"]["mean"] == 0.0


def test_images_that_moved_are_named() -> None:
    none = outcome(
        "none",
        audit([1.0, 1.0, 1.0, 1.0], flags=(True, False, False, False)),
        audit([1.0, 1.0, 1.0, 1.0], flags=(True, False, False, False)),
    )
    removed = outcome(
        "removal",
        audit([2.0, 0.5, 0.5, 1.0], flags=(False, True, False, False)),
        audit([2.0, 0.5, 2.0, 1.0], flags=(False, True, True, False)),
    )
    moved = row_of(summarise([none, removed]), "removal")["images"]
    assert moved == {
        "nearer": 1,
        "farther": 1,
        "newly_flagged": ["a/2.png"],
        "no_longer_flagged": ["a/1.png"],
        "nearer_in_every_seed": ["a/2.png"],
    }
    table = per_image([none, removed], ["a/1.png"]).set_index("id")
    assert table.loc["a/1.png", "ratio"] == pytest.approx(2.0)
    assert bool(table.loc["a/1.png", "protected"])
    assert table.loc["b/1.png", "ratio"] == pytest.approx(1.0)  # 0.5 and 2
    assert table.loc["b/1.png", "flagged_after"] == 0.5


def test_a_defence_that_only_hides_gradients_is_found_and_not_recommended() -> None:
    near, far = [1.0, 1.1, 0.9, 1.0], [2.0, 2.3, 1.9, 2.1]

    def seeds(white: Sequence[float], black: Sequence[float], ddcs: float) -> list[ModelAudit]:
        return [
            audit(near, white=white, black=black, ddcs_best=ddcs + s / 100, holdout_accuracy=0.9)
            for s in (0, 1, 3)
        ]

    none = outcome("none", *seeds(near, far, 1.0))
    hides = outcome("hides", *seeds(far, near, 0.5))
    found = summarise([none, hides])
    assert row_of(found, "none")["masked"] is None
    row = row_of(found, "hides")
    assert "may only hide gradients" in row["masked"]
    assert found["recommendation"]["defence"] is None
    assert "hides" in found["recommendation"]["reason"]
    # A black box that is stronger anyway says nothing about the defence.
    anyway = outcome("none", *seeds(far, near, 1.0))
    found = summarise([anyway, hides])
    assert row_of(found, "hides")["hides"] is False
    assert found["recommendation"]["defence"] == "hides"


def row(
    name: str, *, ddcs: tuple[float, float], loss: float, seeds: int = 3, left: float = 1.0
) -> dict[str, Any]:
    mean, half = ddcs
    change = {"mean": mean, "low": mean - half, "high": mean + half}
    return {
        "name": name,
        "level": "model",
        "failed": None,
        "seeds": seeds,
        "hides": False,
        "measures": {"ddcs_best": {"mean": left}},
        "changes": {
            "ddcs_best": change,
            "holdout_accuracy": {"mean": -loss, "low": None, "high": None},
        },
    }


def test_the_recommendation_weighs_cost_and_chance() -> None:
    cheap = row("cheap", ddcs=(-0.5, 0.2), loss=0.01, left=0.5)
    dear = row("dear", ddcs=(-0.9, 0.2), loss=0.2, left=0.1)
    unsure = row("unsure", ddcs=(-0.8, 0.9), loss=0.0, left=0.2)
    assert recommend([cheap, dear, unsure], tolerance=0.02)["defence"] == "cheap"
    assert recommend([dear, unsure], tolerance=0.02)["defence"] is None
    assert "dear" in recommend([dear, unsure], tolerance=0.02)["reason"]
    assert recommend([cheap, dear, unsure], tolerance=0.3)["defence"] == "dear"
    assert "larger than chance" in recommend([unsure], tolerance=0.02)["reason"]


def test_one_seed_recommends_nothing() -> None:
    found = recommend([row("cheap", ddcs=(-0.5, 0.2), loss=0.0, seeds=1)], tolerance=0.02)
    assert found["defence"] is None
    assert "--seeds" in found["reason"]


def test_a_failed_defence_is_reported_and_nothing_else_of_it() -> None:
    none = outcome("none", audit([1.0] * 4, ddcs_best=1.0))
    broken = Outcome("broken", "model", "", {}, "it broke")
    found = summarise([none, broken])
    assert row_of(found, "broken")["failed"] == "it broke"
    assert row_of(found, "broken")["measures"] == {}
    assert "No defence" in found["recommendation"]["reason"]
    assert len(per_image([none, broken], [])) == 0
