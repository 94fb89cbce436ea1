"""The estimate covers every stage, adds up, and grows with the work.

Time is measured by the work of PyTorch, so that the load of the machine does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import inversight.pipeline.timing
from inversight import audit
from inversight.attacks import run_attack
from inversight.core.config import merge
from inversight.core.console import Quiet
from inversight.core.errors import ConfigError, StageError
from inversight.core.seeding import generator
from inversight.pipeline.estimate import Estimate
from inversight.pipeline.plan import Plan
from inversight.settings import ATTACKS, resolve
from tests.pipeline.tiny import TINY as AUDIT

TINY: dict[str, Any] = {
    "prior": {"steps": 20, "batch_size": 4, "width": 2},
    "adaptation": {"steps": 10},
    "target_training": {"epochs": 2, "width": 2},
    "evaluator_training": {"epochs": 2, "width": 2},
    "public_training": {"epochs": 1, "width": 2},
    "attack": [{"class": "plug-and-play", "pool": 20, "candidates": 4, "keep": 2, "crops": 2}],
}


class Work(TorchDispatchMode):
    """A clock on which an operation takes a microsecond for every value that it gives."""

    seconds = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = func(*args, **(kwargs or {}))
        made = sum(x.numel() for x in tree_leaves(given) if isinstance(x, torch.Tensor))
        self.seconds += 1e-6 * (1 + made)
        return given


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Work]:
    with Work() as work:
        told = SimpleNamespace(perf_counter=lambda: work.seconds)
        monkeypatch.setattr(inversight.pipeline.timing, "time", told)
        yield work


ATTACK_ALONE: dict[str, Any] = {
    "arm": "vanilla", "adaptation": {"steps": 0}, "embedding": "pixel", "features": "pixel"
}  # fmt: skip
"""Without stages that do not affect the attack's time."""


def forecast(**given: Any) -> Estimate:
    return Plan.prepare(resolve({**TINY, **given}), Quiet()).forecast()


def test_every_stage_is_estimated() -> None:
    found = forecast()
    stages = ["target", "evaluator", "public-network", "prior", "adaptation", "plug-and-play"]
    assert list(found.seconds) == [*stages, "scores", "signals"]
    assert all(s is not None and math.isfinite(s) and s > 0 for s in found.seconds.values())
    assert found.total == pytest.approx(sum(s for s in found.seconds.values() if s is not None))
    assert found.memory_bytes > 50e6 and found.disk_bytes > 1e6
    assert "prior" in str(found) and "GiB" in str(found)


def test_more_steps_of_the_prior_take_longer() -> None:
    short, long = forecast(), forecast(prior={"steps": 20000, "batch_size": 4, "width": 2})
    assert short.seconds["prior"] is not None and long.seconds["prior"] is not None
    assert long.seconds["prior"] == pytest.approx(1000 * short.seconds["prior"])


def test_pivots_are_estimated_without_a_game() -> None:
    assert "adaptation" not in forecast(**ATTACK_ALONE).seconds

    def seconds(pivots: int, tuning: int) -> float:
        adaptation = {"steps": 0, "pivots": pivots, "pivots_tuning": tuning}
        found = forecast(**{**ATTACK_ALONE, "adaptation": adaptation}).seconds["adaptation"]
        assert found is not None
        return found

    few, many = seconds(1, 0), seconds(400, 0)
    assert few > 0.0 and many == pytest.approx(400 * few)
    short, long = seconds(1, 10) - few, seconds(400, 400) - many
    assert short > 0.0 and long == pytest.approx(40 * short)


def test_a_custom_attack_is_unknown() -> None:
    found = forecast(attack=["tests.examples:SampleAttack"])
    assert found.seconds["SampleAttack"] is None
    assert "SampleAttack unknown" in str(found)


@pytest.mark.parametrize(
    "given",
    [
        {"adaptation": {"pivots": 801}},
        {"arm": "pseudo-labels", "adaptation": {"pseudo_labels_top": 801}},
    ],
)
def test_too_few_public_images_are_refused(given: dict[str, Any]) -> None:
    (setting,) = given["adaptation"]
    with pytest.raises(
        ConfigError, match=rf"adaptation\.{setting}: .* 800 public images, found 801"
    ):
        Plan.prepare(resolve({**TINY, **given}), Quiet())


@pytest.mark.parametrize("name", ["mirror-black-box", "cma-es"])
def test_black_box_estimates_grow_with_queries(name: str) -> None:
    small = {"class": name, "pool": 100, "keep": 2, "crops": 2}
    small |= {"searches": 2} if name == "cma-es" else {"population": 10, "candidates": 2}
    few, many = (forecast(attack=[{**small, "generations": n}], **ATTACK_ALONE) for n in (2, 20000))
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
def test_estimates_grow_with_the_work(name: str, many: dict[str, Any]) -> None:
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
    few, lots = (forecast(attack=[spec], **ATTACK_ALONE) for spec in (small, merge(small, many)))
    assert few.seconds[name] is not None and lots.seconds[name] is not None
    assert lots.seconds[name] > 20 * few.seconds[name] > 0
    assert few.disk_bytes == lots.disk_bytes


@pytest.mark.parametrize("name", ["ked-mi", "if-gmi", "mi-face", "plg-mi"])
def test_white_box_estimates_grow_with_steps(name: str) -> None:
    small = {"class": name, "candidates": 2, "keep": 2, "crops": 2}
    if name != "mi-face":
        small["pool"] = 20
    others = {"arm": "pseudo-labels"} if name == "plg-mi" else ATTACK_ALONE
    few, many = (forecast(attack=[{**small, "steps": n}], **others) for n in (50, 50000))
    assert few.seconds[name] is not None and many.seconds[name] is not None
    assert many.seconds[name] > 20 * few.seconds[name]


@pytest.mark.parametrize("name", ["plug-and-play", "mi-face", "ked-mi", "lomma", "cma-es", "lokt"])
def test_budgets_are_estimated(name: str) -> None:
    tiny: dict[str, dict[str, Any]] = {
        "cma-es": {"pool": 50, "searches": 2, "generations": 500, "keep": 2, "crops": 2},
        "lokt": {"images": 4000, "surrogates": 1, "training": {"epochs": 2, "width": 2}},
        "mi-face": {"candidates": 4, "keep": 2, "steps": 50, "crops": 2},
        "lomma": {
            "pool": 20, "candidates": 4, "keep": 2, "steps": 50, "crops": 2,
            "images": 500, "surrogates": 1, "training": {"epochs": 2, "width": 2},
        },
    }  # fmt: skip
    usual = {"pool": 20, "candidates": 4, "keep": 2, "steps": 50, "crops": 2}
    attack = [{"class": name, **tiny.get(name, usual)}]
    once, twice, often = (
        forecast(attack=attack, budget=tuple(range(10**7, 10**7 + n)), **ATTACK_ALONE)
        for n in (1, 2, 40)
    )
    whole = once.seconds[name]
    one, two, many = (found.seconds["budget"] for found in (once, twice, often))
    assert whole is not None and one is not None and two is not None and many is not None
    assert one > whole and two - one > whole
    assert many - one == pytest.approx(39 * (two - one))
    assert often.total == pytest.approx(sum(s for s in often.seconds.values() if s is not None))


@pytest.mark.parametrize(
    ("name", "others"),
    [
        *((name, {}) for name in ATTACKS),
        ("plug-and-play", {"candidates": 9, "halvings": 2, "halving_crops": 3, "steps": 8}),
        ("plug-and-play", {"candidates": 9, "halvings": 2, "halving_crops": 3, "steps": 1}),
        ("lomma", {"surrogates": 0}),
    ],
)
def test_the_workload_equals_the_queries_sent(name: str, others: dict[str, Any]) -> None:
    sizes: dict[str, dict[str, Any]] = {
        "mirror-black-box": {"pool": 20, "population": 6, "generations": 3, "candidates": 2},
        "cma-es": {"pool": 20, "searches": 2, "population": 4, "generations": 3},
        "c2f-mi": {"pool": 20, "population": 4, "generations": 3},
        "rlb-mi": {"episodes": 10, "candidates": 2},
        "brep-mi": {"pool": 20, "searches": 2, "points": 3, "iterations": 3},
        "lokt": {"images": 60, "surrogates": 1, "training": {"epochs": 1, "width": 2}},
        "mi-face": {"candidates": 2, "steps": 3},
        "lomma": {
            "pool": 20, "candidates": 2, "steps": 3, "images": 60, "surrogates": 1,
            "training": {"epochs": 1, "width": 2},
        },
    }  # fmt: skip
    usual = {"pool": 20, "candidates": 2, "steps": 3}
    given = {"class": name, "keep": 2, "crops": 2, **sizes.get(name, usual), **others}
    for unknown in {"brep-mi": ("crops",), "lokt": ("crops", "keep")}.get(name, ()):
        del given[unknown]
    if name == "lokt":
        given["white_box"] = {**usual, "keep": 2, "crops": 2}
    arm = "pseudo-labels" if name == "plg-mi" else "vanilla"
    plan = Plan.prepare(resolve({**TINY, "arm": arm, "attack": [given]}), Quiet())
    attack, prior, classes = plan.attacks[name], plan.likely_prior, torch.arange(10)
    try:
        sent = run_attack(attack, plan.likely_target, prior, classes, rng=generator(0)).queries
    except StageError:  # the untrained target puts all samples in one class
        return
    assert sent is not None
    planned = attack.workload(prior).queries(10)
    early = name in ("brep-mi", "cma-es", "mirror-black-box")  # these may end before they must
    assert 0.5 * planned < sent <= planned if early else sent == planned


def test_budgets_that_are_too_small_take_no_time() -> None:
    few, none = (forecast(budget=b).seconds["budget"] for b in ((1, 2, 3), (1,)))
    assert few is not None and few == none


def test_a_custom_attack_makes_budgets_unknown() -> None:
    found = forecast(attack=["tests.examples:SampleAttack"], budget=(10,))
    assert found.seconds["budget"] is None and "budget unknown" in str(found)


def test_a_custom_prior_takes_no_training() -> None:
    found = forecast(prior={"class": "tests.examples:NoisePrior"})
    assert found.seconds["prior"] == 0.0 and "adaptation" not in found.seconds


def test_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    forecast()
    assert not list(tmp_path.iterdir())


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
def test_attacks_that_do_not_fit_the_arm(given: dict[str, Any], message: str) -> None:
    """Said before anything is trained."""
    with pytest.raises(ConfigError, match=message):
        forecast(**given)


def test_the_estimate_is_announced_before_anything_is_written(
    grey: dict[str, Path], tmp_path: Path
) -> None:
    said: list[str] = []

    class Listening(Quiet):
        def say(self, text: str) -> None:
            said.append(text)
            assert not (tmp_path / "run").exists()

    audit(out=tmp_path / "run", reporter=Listening(), **grey, **AUDIT)
    for part in ("12 images in 2 classes", "estimate", "GiB of memory", "natural-gradient"):
        assert part in said[1]
