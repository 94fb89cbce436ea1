"""The searches by scores: their steps, and what limits them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from inversight.attacks import Attack, CmaEs, MirrorGenetic, Reconstructions, run_attack
from inversight.attacks.constraints import PoolSpace, PSpace
from inversight.attacks.mirror_genetic import Individuals
from inversight.core.errors import InputError
from inversight.core.seeding import generator
from inversight.models.target import Target
from inversight.priors import Prior
from tests.attacks.table import AGENT, COARSE, EVOLVED, GENETIC
from tests.attacks.toy import (
    CENTRES,
    LABELS,
    Answering,
    FlatPrior,
    GreyPrior,
    Nearest,
    WithoutGradients,
    shortfall,
    toy_target,
)
from tests.examples import NoisePrior

TARGET = toy_target(WithoutGradients())


def attack(how: Attack, target: Target = TARGET, prior: Prior | None = None) -> Reconstructions:
    return run_attack(how, target, prior or FlatPrior(), LABELS, rng=generator(0))


@pytest.mark.parametrize("how", [GENETIC, EVOLVED], ids=["mirror", "cma"])
def test_the_search_improves_on_the_pool(how: CmaEs | MirrorGenetic) -> None:
    """The best of the attack's own pool, which is all that no generation leaves, is less sure."""

    def missing(generations: int) -> Tensor:
        one = replace(how, pool=60, truncation=1.0, generations=generations)
        if isinstance(one, MirrorGenetic):
            one = replace(one, bound=30.0, mutation_scale=1.0)
        found = attack(one)
        return shortfall(found.images, found.labels).view(3, 3).amax(1)

    assert bool((missing(40) < 0.2 * missing(1)).all())


def test_wide_latents_use_a_diagonal_covariance() -> None:
    """Sixty-four coordinates, a diagonal covariance: most of the way to the template of the class."""
    templates = torch.rand(3, 64, generator=generator(0))

    def answer(x: Tensor) -> Tensor:
        gaps = (x.flatten(1)[:, None] - templates[None]).square().sum(2)
        # A constant class above all others, so that being nearer is all that is rewarded.
        return torch.cat([-gaps, torch.full((len(x), 1), 9.0)], dim=1)

    target = toy_target(Answering(answer))
    prior = NoisePrior()
    how = replace(EVOLVED, searches=3, population=None, generations=100)
    assert how.population_size(64) == 16
    assert how.workload(prior).queries(3) == 300 + 9 * (100 * 16 + 4)
    pool = prior(prior.sample(300, rng=generator(1))).flatten(1)
    start = (pool[:, None] - templates[None]).square().sum(2).amin(0)
    found = attack(how, target, prior)
    gaps = (found.images.flatten(1) - templates[found.labels]).square().sum(1)
    assert bool((gaps.view(3, 3).amax(1) < 0.2 * start).all())


def test_late_episodes_are_better_than_early_ones() -> None:
    """The last episodes are surer than the first, in which the agent knows nothing yet."""
    asked: list[Tensor] = []

    def answer(x: Tensor) -> Tensor:
        scores = WithoutGradients()(x)
        if len(x) == 3:  # an episode of each class
            asked.append(scores.softmax(1).diagonal())
        return scores

    attack(replace(AGENT, episodes=400, at_once=1), toy_target(Answering(answer)))
    first, last = torch.stack(asked[:60]).mean(0), torch.stack(asked[-60:]).mean(0)
    assert bool((last > first + 0.3).all())


def test_with_diversity_the_action_is_queried_too() -> None:
    module = WithoutGradients()
    how = replace(AGENT, episodes=20, diversity=0.2, training_batch=8, at_once=3)
    found = attack(how, toy_target(module))
    assert found.queries == module.images == how.workload(FlatPrior()).queries(3)
    assert how.workload(FlatPrior()).queries(3) == 3 * (2 * 20 + 4 * 4)


def test_the_inverse_network_predicts_latents_of_confident_answers() -> None:
    """Nearer to the middle of each class than the mean of the pool is."""
    pool = FlatPrior().sample(500, rng=generator(0))
    space = PoolSpace(pool)
    scores = Nearest()(FlatPrior()(pool)).log_softmax(1)
    inverted, sure = replace(COARSE, epochs=30).invert(space, scores, LABELS, generator(1))
    assert inverted.shape == (500, 2)
    gaps = (space.latents(sure) - CENTRES).norm(dim=1)
    assert bool((gaps < 0.7 * CENTRES.norm(dim=1)).all())


def test_children_combine_differences_and_the_best() -> None:
    """Without differences and with every coordinate of its own, a child goes towards the best."""
    how = replace(COARSE, difference=1e-12, crossover=1.0, attraction=0.5, population=3, keep=1)
    points = torch.tensor([[[0.0, 0.0], [2.0, 4.0], [1.0, 1.0]]]).double()
    scores = torch.tensor([[-2.0, -1.0, -3.0]])
    found = how.children(points, scores, 0, [generator(0)])
    expected = torch.tensor([[[1.0, 2.0], [2.0, 4.0], [1.5, 2.5]]]).double()
    torch.testing.assert_close(found, expected)
    still = replace(how, crossover=0.0).children(points, scores, 0, [generator(0)])
    torch.testing.assert_close(still, points)


def test_one_coordinate_is_refused() -> None:
    with pytest.raises(InputError, match="one coordinate"):
        attack(EVOLVED, prior=GreyPrior())
    assert len(attack(GENETIC, prior=GreyPrior())) == 9


# MIRROR's parts


def test_clipping_is_in_p_space() -> None:
    """W = leaky rectifier of P: bounds are the mean and deviation there, by hand."""
    p = torch.randn(500, 3, generator=generator(0))
    w = torch.where(p > 0, p, 0.2 * p)
    space = PSpace.of(w, slope=0.2, bound=1.0)
    torch.testing.assert_close(space.mean, p.mean(0))
    torch.testing.assert_close(space.deviation, p.std(0, correction=0))
    found = space.moved(torch.tensor([[9.0, -9.0, 0.0]]), torch.zeros(1, 3))
    high, low = space.mean + space.deviation, space.mean - space.deviation
    expected = torch.stack([high[0], 0.2 * low[1], torch.tensor(0.0)])
    torch.testing.assert_close(found[0], expected)
    moved = space.moved(torch.zeros(1, 3), torch.tensor([[0.5, -0.5, 0.0]]))
    by = 0.5 * space.deviation
    torch.testing.assert_close(moved[0], torch.stack([by[0], -0.2 * by[1], torch.tensor(0.0)]))


def test_children_resemble_the_more_confident_parent() -> None:
    parents = Individuals(
        torch.tensor([[0.0], [1.0]]).expand(2, 400), torch.tensor([0.8, 0.2]).log()
    )
    how = replace(GENETIC, mutation_probability=0.0)
    space = PSpace(1.0, 1e9, torch.zeros(400), torch.ones(400))
    shares = torch.stack([how.children(parents, space, generator(s)).mean() for s in range(400)])
    # A child is of the same parent twice with 0.64 or 0.04, of both with 0.32: then 0.2 is second's.
    assert float(shares.mean()) == pytest.approx(0.04 + 0.32 * 0.2, abs=0.03)
    mixed = shares[(shares > 0) & (shares < 1)]
    assert float(mixed.mean()) == pytest.approx(0.2, abs=0.01)


def test_best_individuals_are_distinct_and_sorted() -> None:
    one = Individuals(
        torch.tensor([[1.0], [2.0], [1.0], [3.0]]), torch.tensor([-1.0, -3.0, -1.0, -2.0])
    )
    found = one.best(3)
    assert found.latents.flatten().tolist() == [1.0, 3.0, 2.0]
    assert found.scores.tolist() == [-1.0, -2.0, -3.0]
