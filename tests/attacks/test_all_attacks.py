"""What all attacks have in common: access, queries, and results that depend on the seed alone."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise
from operator import attrgetter
from typing import Any

import pytest
import torch

from inversight.attacks import Attack, QueriesSpentError, Reconstructions
from inversight.attacks.base import ACCESS_ORDER
from inversight.core.errors import InputError
from inversight.core.seeding import generator
from inversight.models.target import Access
from tests.attacks.table import CASES, Case, same
from tests.attacks.toy import CLASSES, LABELS, SIZE, toy_target

PUBLISHED: dict[str, dict[str, Any]] = {
    "plug-and-play": {
        "pool": 5000, "truncation": 0.5, "candidates": 200, "steps": 70, "learning_rate": 5e-3,
        "betas": (0.1, 0.1), "keep": 50, "crops": 100, "crop_scale": (0.5, 0.9),
        "crop_ratio": (0.8, 1.2),
    },
    "gmi": {
        "learning_rate": 2e-2, "momentum": 0.9, "steps": 1500, "identity_weight": 100.0, "bound": 1.0,
        "objective": "cross-entropy",
    },
    "lomma": {
        "objective": "logit", "feature_weight": 1.0, "steps": 1500, "surrogates": 3,
        "temperature": 1.0, "training.epochs": 20,
    },
    "ked-mi": {"learning_rate": 2e-2, "identity_weight": 100.0, "steps": 1500},
    "vmi": {"learning_rate": 1e-4, "momentum": 0.9, "divergence_weight": 1e-3},
    "mirror": {"learning_rate": 0.2, "bound": 1.0, "truncation": 0.7},
    "if-gmi": {
        "layers": 4, "layer_steps": 25, "radius": 1000.0, "steps": 70, "objective": "poincare",
        "betas": (0.1, 0.1),
    },
    "mi-face": {
        "statistics_weight": 10.0, "jitter": 2, "group": 256, "steps": 2000, "learning_rate": 0.05,
        "variation_weight": 2.5e-5,
    },
    "plg-mi": {
        "learning_rate": 0.1, "steps": 600, "transformations": 2, "objective": "max-margin",
        "transform.least_area": 0.8, "transform.degrees": 5,
    },
    "ppdg": {
        "images": 5, "inversion_steps": 300, "tuning_steps": 150, "tuning_learning_rate": 3e-4,
        "inner.pool": 500, "inner.candidates": 100, "inner.steps": 70, "inner.truncation": 0.5,
        "inner.learning_rate": 5e-3, "inner.betas": (0.1, 0.1),
    },
    "mirror-black-box": {
        "population": 100, "generations": 100, "mutation_probability": 0.1, "mutation_scale": 0.1,
        "truncation": 0.7, "bound": 1.0, "slope": 0.2,
    },
    "c2f-mi": {
        "population": 32, "generations": 300, "pairs": 4, "attraction": 0.02, "difference": 0.1,
        "crossover": 0.5,
    },
    "rlb-mi": {
        "episodes": 40_000, "diversity": 0.0, "learning_rate": 5e-4, "state_weight": 2.0,
        "action_weight": 2.0, "margin_weight": 8.0,
    },
    "brep-mi": {
        "points": 32, "radius": 2.0, "growth": 1.3, "inside": 1.0, "longest_step": 3.0,
        "patience": 1000, "bound": 1.5,
    },
    "lokt": {"surrogates": 3},
}  # fmt: skip
EACH = pytest.mark.parametrize("name", CASES)
ASKING = pytest.mark.parametrize(
    "name", [name for name in CASES if name != "weight-reconstruction"]
)
"""Attacks that send images to the target."""


def case_of(name: str) -> Case:
    if name == "vmi-flow":
        pytest.importorskip("zuko")
    return CASES[name]


@cache
def usual(name: str) -> Reconstructions:
    """What the attack finds with the usual seed, computed once. Read only."""
    return case_of(name).run()


def test_the_table_contains_every_attack() -> None:
    assert {type(case.attack) for case in CASES.values()} == set(CLASSES.values())
    assert all(isinstance(CASES[name].attack, kind) for name, kind in CLASSES.items())


@EACH
def test_results_depend_on_the_seed_alone(name: str) -> None:
    case = case_of(name)
    one, again, other = usual(name), case.run(), case.run(seed=1)
    assert torch.equal(one.images, again.images) and same(one, again)
    assert not torch.equal(one.images, other.images) and not same(one, other)


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
@pytest.mark.parametrize("name", [name for name in CASES if name != "lokt"])
def test_results_do_not_depend_on_the_batch_size(name: str, batch_size: int) -> None:
    case = case_of(name)
    one, other = usual(name), case.run(replace(case.attack, batch_size=batch_size))
    for what in ("images", "losses") if case.tolerance else ("images", "latents", "losses"):
        torch.testing.assert_close(
            getattr(one, what), getattr(other, what), **{"rtol": 1e-5, "atol": 1e-6}
            | case.tolerance,
        )  # fmt: skip


@pytest.mark.parametrize("name", [name for name in CASES if name != "mi-face"])
def test_classes_do_not_depend_on_each_other(name: str) -> None:
    case = case_of(name)
    among, alone = usual(name), case.run(labels=torch.tensor([1]))
    mine = among.labels == 1
    torch.testing.assert_close(alone.latents, among.latents[mine], **case.tolerance)
    torch.testing.assert_close(alone.images, among.images[mine], rtol=1e-4, atol=1e-5)


@EACH
def test_reconstructions_are_complete_and_sorted(name: str) -> None:
    case, calls = case_of(name), []
    assert isinstance(case.attack, Attack)
    found = case.run(progress=lambda done, total, note="": calls.append((done, total)))
    assert found.images.shape == (9, 1, SIZE, SIZE) and len(found) == 9
    assert found.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert not found.latents.requires_grad and not found.images.requires_grad
    for label in range(3):
        mine = found.labels == label
        losses = found.losses[mine]
        assert bool((losses[1:] >= losses[:-1]).all())  # best first
        assert case.attack.access is Access.LABEL or bool((losses >= 0).all())
        assert case.tolerance or len(found.latents[mine].unique(dim=0)) == 3
    if name not in ("if-gmi", "mi-face", "ppdg", "weight-reconstruction"):
        torch.testing.assert_close(found.images, case.prior(found.latents))
    done = [one for one, _ in calls]
    assert done == sorted(done) and calls[-1][0] == calls[-1][1]


@ASKING
def test_every_query_is_counted(name: str) -> None:
    case = case_of(name)
    module = case.module()
    found = case.run(module=module)
    assert found.queries == module.images <= case.attack.workload(case.prior).queries(3)
    direct = case.attack.run(toy_target(module), case.prior, LABELS, rng=generator(0))
    assert direct.queries == found.queries


@ASKING
def test_a_limit_below_the_first_step_is_an_error(name: str) -> None:
    case, module = case_of(name), case_of(name).module()
    with pytest.raises(QueriesSpentError, match=r"limit of 5 queries is spent: 0 images were sent"):
        case.run(module=module, limit=5)
    assert module.images == 0


@pytest.mark.parametrize("share", [0.5, 0.9])
@pytest.mark.parametrize(
    "name", [name for name, c in CASES.items() if hasattr(c.attack, "most_queries")]
)
def test_a_limit_ends_the_search(name: str, share: float) -> None:
    """Whether it is the attack's own limit or the caller's, and for any batch size."""
    case, module = CASES[name], CASES[name].module()
    limit = round(share * case.attack.workload(case.prior).queries(3))
    limited = replace(case.attack, most_queries=limit)
    found = case.run(limited, module=module)
    assert found.queries == module.images <= limit and len(found) == 9
    other = case.run(replace(limited, batch_size=7))
    assert other.queries == found.queries
    torch.testing.assert_close(other.latents, found.latents)
    outside = case.run(limit=limit)
    assert outside.queries == found.queries and same(outside, found)


@EACH
def test_less_access_is_refused_and_more_access_changes_nothing(name: str) -> None:
    case, module = case_of(name), case_of(name).module()
    access = case.attack.access
    for less in ACCESS_ORDER[: ACCESS_ORDER.index(access)]:
        with pytest.raises(InputError, match=f"needs {access} access, but .* gives {less}"):
            case.attack.run(
                toy_target(module).restricted(less), case.prior, LABELS, rng=generator(0)
            )
    assert module.images == 0
    for more in ACCESS_ORDER[ACCESS_ORDER.index(access) : -1]:
        target = toy_target(module).restricted(more)
        assert same(usual(name), case.attack.run(target, case.prior, LABELS, rng=generator(0)))


@EACH
def test_contradicting_settings_are_refused_before_a_query(name: str) -> None:
    case, module = case_of(name), case_of(name).module()
    ascending = case.attack.ascending
    for small, large in pairwise(ascending):
        wrong = replace(case.attack, **{large: getattr(case.attack, small) - 1})
        with pytest.raises(InputError, match=f"expected {' <= '.join(ascending)}, found"):
            wrong.run(toy_target(module), case.prior, LABELS, rng=generator(0))
    assert module.images == 0 and (ascending or name in ("lokt", "ppdg", "weight-reconstruction"))


@pytest.mark.parametrize("name", PUBLISHED)
def test_defaults_are_the_published_ones(name: str) -> None:
    attack = CLASSES[name]()
    assert {key: attrgetter(key)(attack) for key in PUBLISHED[name]} == PUBLISHED[name]
