"""The forecast: every stage is in it, its parts add up, larger budgets take longer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from inversight.audit import Plan
from inversight.config import merge
from inversight.console import Quiet
from inversight.errors import ConfigError
from inversight.estimate import Estimate, duration
from inversight.settings import resolve

TINY: dict[str, Any] = {
    "prior": {"steps": 20, "batch_size": 4, "width": 2},
    "adaptation": {"steps": 10},
    "target_training": {"epochs": 2, "width": 2},
    "evaluator_training": {"epochs": 2, "width": 2},
    "public_training": {"epochs": 1, "width": 2},
    "attack": [{"class": "plug-and-play", "pool": 20, "candidates": 4, "keep": 2, "crops": 2}],
}


def forecast(**given: Any) -> Estimate:
    return Plan.prepare(resolve({**TINY, **given}), Quiet()).forecast()


def test_every_stage_is_in_it() -> None:
    found = forecast()
    stages = ["target", "evaluator", "public-network", "prior", "adaptation", "plug-and-play"]
    assert list(found.seconds) == [*stages, "scores", "signals"]
    assert all(s is not None and math.isfinite(s) and s > 0 for s in found.seconds.values())
    assert found.total == pytest.approx(sum(s for s in found.seconds.values() if s is not None))
    assert found.memory_bytes > 50e6 and found.disk_bytes > 1e6
    assert "prior" in str(found) and "GiB" in str(found)


def test_a_longer_prior_takes_longer() -> None:
    short, long = forecast(), forecast(prior={"steps": 20000, "batch_size": 4, "width": 2})
    assert short.seconds["prior"] is not None and long.seconds["prior"] is not None
    # A thousand times the steps; a factor of ten apart even if the machine is busy.
    assert long.seconds["prior"] > 10 * short.seconds["prior"]


def test_ones_own_attack_cannot_be_foreseen() -> None:
    found = forecast(attack=["tests.examples:SampleAttack"])
    assert found.seconds["SampleAttack"] is None
    assert "SampleAttack unknown" in str(found)


@pytest.mark.parametrize("name", ["mirror-black-box", "cma-es"])
def test_black_box_attacks_are_foreseen_by_their_queries(name: str) -> None:
    small = {"class": name, "pool": 100, "keep": 2, "crops": 2}
    small |= {"searches": 2} if name == "cma-es" else {"population": 10, "candidates": 2}
    few, many = (forecast(attack=[{**small, "generations": n}]) for n in (2, 20000))
    assert few.seconds[name] is not None and many.seconds[name] is not None
    assert many.seconds[name] > 100 * few.seconds[name]
    assert few.disk_bytes == many.disk_bytes


@pytest.mark.parametrize(
    ("name", "many"),
    [
        ("c2f-mi", {"generations": 20000}),
        ("rlb-mi", {"episodes": 200000}),
        ("brep-mi", {"iterations": 20000}),
        ("lokt", {"images": 1000000, "training": {"epochs": 60, "most_steps": 10**9}}),
        ("lomma", {"images": 1000000, "training": {"epochs": 60, "most_steps": 10**9}}),
    ],
)
def test_what_the_others_take_is_foreseen(name: str, many: dict[str, Any]) -> None:
    tiny: dict[str, dict[str, Any]] = {
        "c2f-mi": {"pool": 50, "population": 4, "generations": 2, "keep": 2, "crops": 2},
        "rlb-mi": {"episodes": 10, "candidates": 2, "keep": 2, "crops": 2},
        "brep-mi": {"pool": 50, "searches": 2, "iterations": 2, "keep": 2},
        "lokt": {"images": 100, "surrogates": 1, "training": {"epochs": 2, "width": 2}},
        "lomma": {
            "pool": 20, "candidates": 2, "keep": 2, "crops": 2, "steps": 2,
            "images": 100, "surrogates": 1, "training": {"epochs": 2, "width": 2},
        },
    }  # fmt: skip
    small = {"class": name, **tiny[name]}
    few, lots = (forecast(attack=[spec]) for spec in (small, merge(small, many)))
    assert few.seconds[name] is not None and lots.seconds[name] is not None
    assert lots.seconds[name] > 20 * few.seconds[name] > 0
    assert few.disk_bytes == lots.disk_bytes


@pytest.mark.parametrize("name", ["ked-mi", "if-gmi", "mi-face", "plg-mi"])
def test_white_box_attacks_are_foreseen_by_their_steps(name: str) -> None:
    small = {"class": name, "candidates": 2, "keep": 2, "crops": 2}
    if name != "mi-face":
        small["pool"] = 20
    arm = "pseudo-labels" if name == "plg-mi" else "vanilla"
    few, many = (forecast(arm=arm, attack=[{**small, "steps": n}]) for n in (50, 50000))
    assert few.seconds[name] is not None and many.seconds[name] is not None
    assert many.seconds[name] > 20 * few.seconds[name]


def test_ones_own_prior_takes_no_training() -> None:
    found = forecast(prior={"class": "tests.examples:NoisePrior"})
    assert found.seconds["prior"] == 0.0 and "adaptation" not in found.seconds


def test_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    forecast()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.4, "4 s"), (89, "89 s"), (600, "10 min"), (7200, "2.0 h")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"attack": ["plg-mi"]}, "--attack plg-mi: needs a prior that is conditioned"),
        (
            {"attack": ["plg-mi"], "arm": "pseudo-labels", "adaptation": {"steps": 0}},
            "with adaptation.steps above 0",
        ),
        ({"attack": ["gmi"], "arm": "pseudo-labels"}, "--attack gmi: needs a critic that judges"),
        ({"attack": ["lomma"], "arm": "pseudo-labels"}, "another --arm, such as target-aware"),
    ],
)
def test_attacks_that_do_not_go_with_the_arm(given: dict[str, Any], message: str) -> None:
    """Said before anything is trained."""
    with pytest.raises(ConfigError, match=message):
        forecast(**given)
