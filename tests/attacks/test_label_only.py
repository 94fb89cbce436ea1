"""The attacks by labels find the middle of a class by its boundary, within their queries."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from inversight.attacks import Attack, BrepMi, Lokt, Reconstructions, run_attack, surrogates
from inversight.attacks.brep_mi import _Spheres
from inversight.attacks.constraints import PoolSpace
from inversight.core.errors import StageError
from inversight.core.imaging import to_float, to_uint8
from inversight.core.seeding import draw_seed, generator
from inversight.models.target import Access, Target
from tests.attacks.table import QUICK_TRANSFERRED, REPELLED, TRANSFERRED, same
from tests.attacks.toy import (
    LABELS,
    Answering,
    Discs,
    LinearPrior,
    Nearest,
    from_middle,
    problem_of,
    toy_target,
)

BOTH = pytest.mark.parametrize("how", [REPELLED, QUICK_TRANSFERRED], ids=["brep", "lokt"])


def target_of(module: nn.Module) -> Target:
    return toy_target(module).restricted(Access.LABEL)


def attack(
    how: Attack, module: nn.Module | None = None, labels: Tensor = LABELS
) -> Reconstructions:
    target = target_of(module or Discs())
    return run_attack(how, target, LinearPrior(), labels, rng=generator(0))


@pytest.mark.parametrize(
    ("how", "near"), [(REPELLED, 0.35), (TRANSFERRED, 0.6)], ids=["brep", "lokt"]
)
def test_reaches_the_middle_of_the_class(how: BrepMi | Lokt, near: float) -> None:
    """Samples that the target puts in a class are two thirds of a radius from its middle."""
    found = attack(how)
    assert float(from_middle(found.latents, found.labels).max()) < near
    predicted = target_of(Discs())(LinearPrior()(found.latents)).argmax(1)
    assert torch.equal(predicted, found.labels)


@BOTH
def test_only_labels_matter(how: Attack) -> None:
    louder = Answering(lambda x: 9.0 * Nearest()(x) + 1.0)
    assert same(attack(how, Nearest()), attack(how, louder))


@BOTH
def test_a_class_without_samples_is_left_out(how: Attack) -> None:
    without = Answering(lambda x: Nearest()(x) - torch.tensor([0.0, 99.0, 0.0, 0.0]))
    found = attack(how, without)
    assert found.labels.tolist() == [0] * 3 + [2] * 3
    # Those that are there are what they would be without the other.
    two = attack(how, without, torch.tensor([0, 2]))
    torch.testing.assert_close(two.latents, found.latents)


@BOTH
def test_raises_if_no_class_has_samples(how: Attack) -> None:
    none = Answering(lambda x: torch.tensor([[0.0, 0.0, 0.0, 1.0]]).expand(len(x), 4))
    with pytest.raises(StageError, match=r"samples of the prior in .*to reconstruct; raise"):
        attack(how, none)


# BREP-MI's parts


def test_more_queries_come_nearer_to_the_middle() -> None:
    few, many = (attack(replace(REPELLED, most_queries=most)) for most in (200, 5000))
    start, end = (from_middle(found.latents, found.labels).mean() for found in (few, many))
    assert len(few) == len(many) == 9 and end < start


def test_one_iteration_follows_equation_5() -> None:
    """Equation 5: minus the mean direction of the points outside, times a third of the radius."""
    how = BrepMi(pool=100, searches=1, points=4, keep=1)
    space = PoolSpace(torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))  # itself
    # A third of the disc's radius inside its border, to the right of the middle.
    start = torch.tensor([[-1.2 + 0.7 * 2 / 3, 0.2]], dtype=torch.float64)
    problem = problem_of(target_of(Discs()), LinearPrior(), torch.tensor([0]))
    search = _Spheres(how, problem, space, start.clone(), torch.tensor([0]))
    unit = (2 / 100) ** 0.5
    assert float(search.radius) == pytest.approx(2.0 * unit)
    across = torch.tensor([[[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]]).double()
    search.iterate(across)
    # The sphere's radius, 0.28, reaches beyond the border on the right alone.
    moved = start + torch.tensor([[-1.0 / 4.0, 0.0]]) * (2.0 * unit / 3.0)
    torch.testing.assert_close(search.points, moved)
    assert float(search.inside) == 0.0 and float(search.radius) == pytest.approx(2.0 * unit)
    search.points[0] = torch.tensor([-1.2, 0.2])
    search.iterate(across)
    assert float(search.inside) == pytest.approx(2.0 * unit)
    assert float(search.radius) == pytest.approx(2.6 * unit)
    torch.testing.assert_close(search.points[0], torch.tensor([-1.2, 0.2]).double())


def test_patience_ends_a_search() -> None:
    soon, late = (
        attack(replace(REPELLED, patience=patience, iterations=3)).queries for patience in (1, 3)
    )
    assert 200 < soon < late  # type: ignore[operator]


def test_more_pools_are_drawn_for_missing_classes() -> None:
    few = replace(REPELLED, pool=10, iterations=1)
    found = attack(replace(few, pools=30))
    assert len(found) == 9 and found.queries > 20  # type: ignore[operator]
    assert len(attack(replace(few, pools=1))) < 9


# LOKT's parts


def test_rare_classes_have_larger_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    train = surrogates.train_classifier

    def watched(images, *, variation, **given):  # type: ignore[no-untyped-def]
        seen.append((images.labels, variation.weights, given["training"].architecture))
        return train(images, variation=variation, **given)

    monkeypatch.setattr(surrogates, "train_classifier", watched)
    attack(replace(QUICK_TRANSFERRED, surrogates=2, balance=1000.0))
    labels, weights, _ = seen[0]
    assert [s[2] for s in seen] == ["resnet", "vgg"]
    sums = torch.stack([weights[labels == label].sum() for label in range(4)])
    torch.testing.assert_close(sums, sums.mean().expand(4))
    assert float(weights.mean()) == pytest.approx(1.0)
    target = target_of(Discs())
    latents = problem_of(target, LinearPrior(), seed=draw_seed(generator(0))).sample(
        300, 1.0, "pool"
    )
    asked = target(to_float(to_uint8(LinearPrior()(latents)))).argmax(1)
    assert len(asked) == len(labels) and torch.equal(asked.bincount(), labels.bincount())
