"""Which candidates an attack keeps: the most confident ones, or diverse ones."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from inversight.attacks import BrepMi, Gmi, PlugAndPlay
from inversight.attacks.selection import farthest_points
from inversight.core.seeding import generator
from tests.attacks.toy import CLASSES, LABELS, FlatPrior, Nearest, OpenPrior, problem_of, toy_target

TARGET = toy_target(Nearest())
PROBLEM = problem_of(TARGET, FlatPrior())


def obvious(points: list[list[float]], count: int) -> list[int]:
    """Farthest-point choice by the definition: compare each point with each chosen one, every time."""
    chosen = [0]
    while len(chosen) < count:
        left = [i for i in range(len(points)) if i not in chosen]
        reach = {
            i: min(
                sum((a - b) ** 2 for a, b in zip(points[i], points[j], strict=True)) for j in chosen
            )
            for i in left
        }
        chosen.append(max(left, key=lambda i: (reach[i], -i)))
    return chosen


whole = st.lists(st.integers(-3, 3).map(float), min_size=2, max_size=2)


@given(st.lists(whole, min_size=1, max_size=12), st.data())
def test_farthest_points_equal_the_definition(
    points: list[list[float]], data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, len(points)))
    found = farthest_points(torch.tensor(points), count)
    assert found.tolist() == obvious(points, count)


@pytest.mark.parametrize("seed", range(5))
def test_farthest_points_cover_at_most_twice_the_best_radius(seed: int) -> None:
    """Gonzalez's bound, against the best of all subsets of three."""
    points = torch.randn(12, 3, generator=generator(seed), dtype=torch.float64)
    between = torch.cdist(points, points)

    def radius(rows: Tensor) -> float:
        return float(between[:, rows].min(1).values.max())

    best = min(radius(torch.tensor(rows)) for rows in combinations(range(12), 3))
    assert best <= radius(farthest_points(points, 3)) <= 2 * best


def kept(ranking: list[float], keep: int, selection: str, latents: Tensor) -> list[int]:
    attack = PlugAndPlay(keep=keep, candidates=len(ranking), selection=selection)  # type: ignore[arg-type]
    problem = replace(PROBLEM, labels=LABELS[:1])
    return attack.selected(problem, latents, torch.tensor(ranking)).tolist()


def test_of_near_copies_one_is_kept_and_unsure_candidates_are_not() -> None:
    """Ten candidates: six sure near-copies, two sure others, and two far away that are not sure."""
    x = [0.0, 0.01, 0.02, 0.03, 0.04, 0.05, 1.0, -1.0, 9.0, -9.0]
    latents = torch.tensor(x)[:, None].expand(-1, 2)
    sure = [0.99, 0.98, 0.97, 0.96, 0.95, 0.94, 0.93, 0.92, 0.1, 0.1]
    assert kept(sure, 3, "confident", latents) == [0, 1, 2]
    # Among the five surest, or among twice as many as are kept.
    assert kept(sure, 2, "diverse", latents) == [0, 4]
    assert kept(sure, 4, "diverse", latents) == [0, 5, 6, 7]
    assert kept(sure, 10, "diverse", latents) == list(range(10))


@pytest.mark.parametrize("name", sorted(set(CLASSES) - {"lokt", "ppdg", "weight-reconstruction"}))
def test_every_attack_offers_both(name: str) -> None:
    fields = CLASSES[name].__pydantic_fields__  # type: ignore[attr-defined]
    assert fields["selection"].default == "confident"


@pytest.mark.parametrize(
    "attack",
    [
        PlugAndPlay(pool=300, candidates=40, keep=4, crops=3, steps=5, crop_flip=False),
        PlugAndPlay(pool=300, candidates=40, keep=4, crops=3, steps=8, halvings=2),
        Gmi(pool=300, candidates=40, keep=4, crops=3, steps=5),
        BrepMi(pool=300, searches=16, keep=4, iterations=20, points=8),
    ],
    ids=["plug-and-play", "halvings", "gmi", "brep-mi"],
)
def test_diverse_reconstructions_are_farther_apart_and_the_surest_is_among_them(
    attack: PlugAndPlay | Gmi | BrepMi,
) -> None:
    """Same queries without halvings, losses still in order, and a wider spread in every class."""
    one, other = (
        replace(attack, selection=how).run(TARGET, OpenPrior(), LABELS, rng=generator(0))
        for how in ("confident", "diverse")
    )
    assert getattr(attack, "halvings", 0) or one.queries == other.queries
    for label in LABELS:
        near, far = (found.images[found.labels == label].flatten(1) for found in (one, other))
        losses = other.losses[other.labels == label]
        assert torch.equal(losses, losses.sort().values)
        assert torch.pdist(far).min() >= torch.pdist(near).min()
        assert torch.pdist(far).mean() > torch.pdist(near).mean()
        if not getattr(attack, "halvings", 0):
            assert torch.equal(far[0], near[0])


def test_halvings_leave_a_choice() -> None:
    """(steps, candidates left): twice as many as are kept, so that some can be chosen of them."""
    attack = PlugAndPlay(candidates=40, keep=10, steps=40, halvings=2)
    assert attack.rungs == [(10, 20), (10, 10), (20, 10)]
    diverse = replace(attack, selection="diverse")
    assert diverse.rungs == [(10, 20), (10, 20), (20, 20)]
    assert replace(diverse, keep=30).rungs == [(10, 40), (10, 40), (20, 40)]
