"""The estimate covers every stage, adds up, and grows with the work.

Time is measured by the work of PyTorch, so that the load of the machine does not matter.
"""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from inversight import audit
from inversight.attacks import run_attack
from inversight.core.config import merge
from inversight.core.console import Quiet
from inversight.core.errors import ConfigError, StageError
from inversight.core.seeding import generator
from inversight.pipeline.estimate import Estimate, estimate
from inversight.pipeline.plan import Plan
from inversight.priors.architecture import Architecture
from inversight.settings import ATTACKS, resolve
from tests.pipeline.conftest import Once
from tests.pipeline.tiny import Stop, image_folders, own_target
from tests.priors.stylegan2_files import random_prior

TINY: dict[str, Any] = {
    "shadows": 0,
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


def prepared(**given: Any) -> Plan:
    return Plan.prepare(resolve({**TINY, **given}), Quiet())


def forecast(**given: Any) -> Estimate:
    """Return the estimate of an audit, by the work of its trials."""
    plan = prepared(**given)
    with Work() as work:
        clock = SimpleNamespace(perf_counter=lambda: work.seconds)
        with mock.patch("inversight.pipeline.timing.time", clock):
            return estimate(plan)


@pytest.fixture(scope="module")
def alone(once: Once) -> dict[str, Any]:
    """Settings of an audit whose attack is all that takes time. The prior has classes in classes."""

    def fill(home: Path) -> None:
        image_folders(home)
        own_target(home)
        for name, classes in (("prior", 0), ("classes", 2)):
            small = Architecture(size=8, channels=1, z_dim=4, w_dim=4, c_dim=classes, channel_max=4)
            random_prior(small).save(home / f"{name}.safetensors")

    home = once("attack-alone", fill)
    network = f"tests.examples:own_network?weights={home / 'own.safetensors'}"
    return {
        "private": home / "private", "public": home / "public", "target": network,
        "evaluator": network, "prior": str(home / "prior.safetensors"), "arm": "vanilla",
        "adaptation": {"steps": 0}, "embedding": "pixel", "features": "pixel",
    }  # fmt: skip


@pytest.fixture(scope="module")
def demonstration() -> Estimate:
    """The estimate of an audit of the digits with eight shadow models in two processes."""
    return forecast(shadows=8, workers=2)


def test_every_stage_is_estimated(demonstration: Estimate) -> None:
    found = demonstration
    stages = ["target", "evaluator", "public-network", "prior", "adaptation", "plug-and-play"]
    assert list(found.seconds) == [*stages, "scores", "shadows", "signals"]
    assert all(s is not None and math.isfinite(s) and s > 0 for s in found.seconds.values())
    assert found.total == pytest.approx(sum(s for s in found.seconds.values() if s is not None))
    assert found.memory_bytes > 50e6 and found.disk_bytes > 1e6
    assert "prior" in str(found) and "GiB" in str(found)


def test_shadow_models_take_time_by_their_number_and_processes(demonstration: Estimate) -> None:
    found = demonstration
    assert found.shadow is not None and found.seconds["shadows"] == pytest.approx(4 * found.shadow)
    assert found.shadow_seconds(16) == pytest.approx(8 * found.shadow)


def test_stages_beside_shadow_models_have_no_choice_of_threads_on_two_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in ("estimate", "plan"):
        monkeypatch.setattr(f"inversight.pipeline.{module}.usable_threads", lambda: 2)
    assert set(forecast(shadows=8).threads) == {"target"}  # which is trained before them


def test_more_steps_of_the_prior_take_longer(alone: dict[str, Any]) -> None:
    short, long = (
        forecast(**{**alone, "prior": {"steps": steps, "batch_size": 4, "width": 2}})
        for steps in (20, 20000)
    )
    assert short.seconds["prior"] is not None and long.seconds["prior"] is not None
    assert long.seconds["prior"] == pytest.approx(1000 * short.seconds["prior"])


def test_pivots_are_estimated_without_a_game(alone: dict[str, Any]) -> None:
    assert "adaptation" not in forecast(**alone).seconds

    def seconds(pivots: int, tuning: int) -> float:
        adaptation = {"steps": 0, "pivots": pivots, "pivots_tuning": tuning}
        found = forecast(**{**alone, "adaptation": adaptation}).seconds["adaptation"]
        assert found is not None
        return found

    few, many = seconds(1, 0), seconds(20, 0)
    assert few > 0.0 and many == pytest.approx(20 * few)
    short, long = seconds(1, 10) - few, seconds(20, 400) - many
    assert short > 0.0 and long == pytest.approx(40 * short)


def test_a_custom_attack_is_unknown(alone: dict[str, Any]) -> None:
    found = forecast(**alone, attack=["tests.examples:SampleAttack"], budget=(10,))
    assert found.seconds["SampleAttack"] is None and "SampleAttack unknown" in str(found)
    assert found.seconds["budget"] is None and "budget unknown" in str(found)


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
        prepared(**given)


SURROGATE = {"images": 60, "surrogates": 1, "training": {"epochs": 1, "width": 2}}
KEPT = {"keep": 2, "crops": 2}
SEARCH = {"pool": 20, "candidates": 2, "steps": 3, **KEPT}
SMALL: dict[str, dict[str, Any]] = {
    **dict.fromkeys(ATTACKS, SEARCH),
    "mirror-black-box": {"pool": 20, "population": 6, "generations": 3, "candidates": 2, **KEPT},
    "cma-es": {"pool": 20, "searches": 2, "population": 4, "generations": 3, **KEPT},
    "c2f-mi": {"pool": 20, "population": 4, "generations": 3, **KEPT},
    "rlb-mi": {"episodes": 10, "candidates": 2, **KEPT},
    "brep-mi": {"pool": 20, "searches": 2, "points": 3, "iterations": 3, "keep": 2},
    "lokt": {**SURROGATE, "white_box": SEARCH},
    "lomma": {**SEARCH, **SURROGATE},
    "mi-face": {"candidates": 2, "steps": 3, **KEPT},
    "ppdg": {
        "around": {"halvings": 1, **SEARCH},
        "images": 2,
        "samples": 10,
        "inversion_steps": 3,
        "tuning_steps": 2,
    },
}
"""Settings of each attack that make it small."""


@pytest.mark.parametrize(
    ("name", "more"),
    [
        *((name, {"generations": 20000}) for name in ("mirror-black-box", "cma-es", "c2f-mi")),
        ("rlb-mi", {"episodes": 200000}),
        ("brep-mi", {"iterations": 20000}),
        *(
            (name, {"images": 1000000, "training": {"epochs": 60, "most_steps": 10**9}})
            for name in ("lokt", "lomma")
        ),
        *((name, {"steps": 50000}) for name in ("ked-mi", "if-gmi", "mi-face", "plg-mi")),
        *(("ppdg", {name: 50000}) for name in ("inversion_steps", "tuning_steps")),
        ("ppdg", {"around": {"steps": 50000}}),
    ],
)
def test_estimates_grow_with_the_work(
    alone: dict[str, Any], name: str, more: dict[str, Any]
) -> None:
    if name == "plg-mi":
        alone = {**alone, "prior": alone["prior"].replace("prior.", "classes.")}
    small = {"class": name, **SMALL[name]}
    few, many = (forecast(**alone, attack=[spec]) for spec in (small, merge(small, more)))
    assert few.seconds[name] is not None and many.seconds[name] is not None
    assert many.seconds[name] > 20 * few.seconds[name] > 0
    assert few.disk_bytes == many.disk_bytes


@pytest.mark.parametrize(
    "name", ["plug-and-play", "mi-face", "ked-mi", "lomma", "cma-es", "lokt", "ppdg"]
)
def test_budgets_are_estimated(alone: dict[str, Any], name: str) -> None:
    longer = {"cma-es": {"generations": 500}, "lokt": {"images": 4000}, "lomma": {"images": 500}}
    longer["ppdg"] = {"tuning_steps": 50}
    attack = [{"class": name, **SMALL[name], **longer.get(name, {"steps": 50})}]
    once, twice, often = (
        forecast(**alone, attack=attack, budget=tuple(range(10**7, 10**7 + n))) for n in (1, 2, 40)
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
        *((name, {}) for name in ATTACKS if name != "weight-reconstruction"),  # it sends none
        ("plug-and-play", {"candidates": 9, "halvings": 2, "halving_crops": 3, "steps": 8}),
        ("plug-and-play", {"candidates": 9, "halvings": 2, "halving_crops": 3, "steps": 1}),
        ("lomma", {"surrogates": 0}),
        ("ppdg", {"tuning_steps": 0}),
        ("ppdg", {"around": {"class": "lomma", **SEARCH, **SURROGATE}}),
    ],
)
def test_the_workload_equals_the_queries_sent(name: str, others: dict[str, Any]) -> None:
    arm = "pseudo-labels" if name == "plg-mi" else "vanilla"
    plan = prepared(arm=arm, attack=[{"class": name, **SMALL[name], **others}])
    attack, prior, classes = plan.attacks[name], plan.likely_prior, torch.arange(10)
    try:
        sent = run_attack(attack, plan.likely_target, prior, classes, rng=generator(0)).queries
    except StageError:  # the untrained target puts all samples in one class
        return
    assert sent is not None
    planned = attack.workload(prior).queries(10)
    early = name in ("brep-mi", "cma-es", "mirror-black-box")  # these may end before they must
    assert 0.5 * planned < sent <= planned if early else sent == planned


def test_budgets_that_are_too_small_take_no_time(alone: dict[str, Any]) -> None:
    few, none = (forecast(**alone, budget=b).seconds["budget"] for b in ((1, 2, 3), (1,)))
    assert few is not None and few == none


def test_a_custom_prior_takes_no_training(
    alone: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = forecast(**{**alone, "prior": {"class": "tests.examples:NoisePrior"}})
    assert found.seconds["prior"] == 0.0 and "adaptation" not in found.seconds
    assert not list(tmp_path.iterdir())  # nothing is written


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
    """Rejected before anything is trained."""
    with pytest.raises(ConfigError, match=message):
        prepared(**given)


def test_the_estimate_is_announced_before_anything_is_written(
    alone: dict[str, Any], tmp_path: Path
) -> None:
    said: list[str] = []

    class Listening(Quiet):
        def say(self, text: str) -> None:
            said.append(text)
            assert not (tmp_path / "run").exists()
            if len(said) == 2:
                raise Stop

    with pytest.raises(Stop):
        audit(out=tmp_path / "run", reporter=Listening(), **alone)
    for part in ("12 images in 2 classes", "estimate", "GiB of memory", "arm vanilla"):
        assert part in said[1]
