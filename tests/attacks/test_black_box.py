"""The black-box attacks: they find the known answer with scores alone, within their queries."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from inversight.attacks import (
    Attack,
    C2fMi,
    CmaEs,
    MirrorGenetic,
    PlugAndPlay,
    QueriesSpentError,
    Reconstructions,
    RlbMi,
    run_attack,
)
from inversight.attacks.constraints import PSpace
from inversight.attacks.mirror_genetic import Individuals
from inversight.attacks.pool_space import PoolSpace
from inversight.core.errors import InputError
from inversight.core.seeding import generator
from inversight.models.target import Access, Target
from inversight.priors import Prior
from tests.attacks.toy import (
    CENTRES,
    CLASSES,
    LABELS,
    SIZE,
    FlatPrior,
    Nearest,
    WithoutGradients,
    surest_on_a_grid,
    toy_target,
)
from tests.examples import NoisePrior

GENETIC = MirrorGenetic(
    pool=300, population=40, generations=40, candidates=10, keep=3, crops=4, bound=2.0, slope=1.0
)
EVOLVED = CmaEs(pool=300, searches=6, population=6, generations=30, keep=3, crops=4)
COARSE = C2fMi(
    pool=300, population=20, generations=200, settling=30, keep=3, crops=4, hidden=32, epochs=10
)
AGENT = RlbMi(
    pool=300, episodes=900, candidates=4, keep=3, crops=4, reach=2.0, hidden=32, training_batch=32,
    learning_rate=3e-3,
)  # fmt: skip
BOTH = pytest.mark.parametrize("how", [GENETIC, EVOLVED], ids=["mirror", "cma"])
SHORT = [
    replace(GENETIC, generations=8),
    replace(EVOLVED, generations=8),
    replace(COARSE, generations=8, settling=4),
    replace(AGENT, episodes=60),
]
ALL = pytest.mark.parametrize("how", SHORT, ids=["mirror", "cma", "c2f", "rlb"])
Search = CmaEs | MirrorGenetic | C2fMi | RlbMi


@pytest.fixture
def module() -> WithoutGradients:
    return WithoutGradients()


@pytest.fixture
def target(module: WithoutGradients) -> Target:
    return toy_target(module)


def attack(
    target: Target, how: Attack, seed: int = 0, prior: Prior | None = None
) -> Reconstructions:
    return run_attack(how, target, prior or FlatPrior(), LABELS, rng=generator(seed))


def same(one: Reconstructions, other: Reconstructions) -> bool:
    return torch.equal(one.latents, other.latents) and torch.equal(one.losses, other.losses)


@pytest.mark.parametrize(
    ("how", "near", "less"),
    [
        (GENETIC, 0.15, 1e-4),
        (EVOLVED, 0.15, 1e-4),
        (COARSE, 0.15, 1e-3),
        (AGENT, 0.3, 1e-3),
    ],
    ids=["mirror", "cma", "c2f", "rlb"],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_reaches_the_best_reconstruction(
    target: Target, how: Attack, near: float, less: float, seed: int
) -> None:
    found = attack(target, how, seed)
    blind = target.restricted(Access.SCORES)
    for label in range(3):
        best, most = surest_on_a_grid(blind, label)
        mine = found.latents[found.labels == label]
        torch.testing.assert_close(mine, best.expand(3, -1), atol=near, rtol=0)
        confidence = blind(FlatPrior()(mine)).softmax(1)[:, label]
        assert float(confidence.min()) > most - less


@BOTH
def test_the_search_finds_what_the_pool_has_not(target: Target, how: CmaEs | MirrorGenetic) -> None:
    """The best of the attack's own pool, which is all that no generation leaves, is less sure."""
    blind = target.restricted(Access.SCORES)

    def missing(generations: int) -> Tensor:
        one = replace(how, pool=60, truncation=1.0, generations=generations)
        if isinstance(one, MirrorGenetic):
            one = replace(one, bound=30.0, mutation_scale=1.0)
        found = attack(target, one)
        confidence = blind(FlatPrior()(found.latents)).softmax(1)
        return (1 - confidence.gather(1, found.labels[:, None])).view(3, 3).amax(1)

    least = torch.tensor([1 - surest_on_a_grid(blind, label)[1] for label in range(3)])
    start, end = (missing(n) - least for n in (1, 40))
    assert bool((end < 0.2 * start).all())


def test_wide_latents_are_searched_too() -> None:
    """Sixty-four coordinates, a diagonal covariance: most of the way to the template of the class."""
    templates = torch.rand(3, 64, generator=generator(0))

    class Templates(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            gaps = (x.flatten(1)[:, None] - templates[None]).square().sum(2)
            # A constant class above all others, so that being nearer is all that is rewarded.
            return torch.cat([-gaps, torch.full((len(x), 1), 9.0)], dim=1)

    target = Target(Templates(), ("a", "b", "c", "none"), (1, 8, 8), (0.0,), (1.0,), "templates")
    prior = NoisePrior()
    how = replace(EVOLVED, searches=3, population=None, generations=100)
    assert how.population_size(64) == 16
    assert how.workload(prior).queries(3) == 300 + 9 * (100 * 16 + 4)
    pool = prior(prior.sample(300, rng=generator(1))).flatten(1)
    start = (pool[:, None] - templates[None]).square().sum(2).amin(0)
    found = attack(target, how, prior=prior)
    gaps = (found.images.flatten(1) - templates[found.labels]).square().sum(1)
    assert bool((gaps.view(3, 3).amax(1) < 0.2 * start).all())


@ALL
def test_the_seed_decides(target: Target, how: Attack) -> None:
    assert same(attack(target, how), attack(target, how))
    assert not same(attack(target, how), attack(target, how, seed=1))


@ALL
@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_any_batch_size_gives_the_same(target: Target, how: Search, batch_size: int) -> None:
    other = attack(target, replace(how, batch_size=batch_size))
    torch.testing.assert_close(attack(target, how).latents, other.latents)


@ALL
def test_classes_do_not_depend_on_each_other(target: Target, how: Attack) -> None:
    alone = run_attack(how, target, FlatPrior(), torch.tensor([1]), rng=generator(0))
    among = attack(target, how)
    torch.testing.assert_close(alone.latents, among.latents[among.labels == 1])


@ALL
def test_the_shape_of_what_it_returns(target: Target, how: Attack) -> None:
    found = attack(target, how)
    assert found.images.shape == (9, 1, SIZE, SIZE)
    assert found.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert not found.latents.requires_grad and not found.images.requires_grad
    for label in range(3):
        mine = found.labels == label
        assert len(found.latents[mine].unique(dim=0)) == 3  # distinct
        losses = found.losses[mine]
        assert bool((losses[1:] >= losses[:-1]).all()) and bool((losses >= 0).all())
    torch.testing.assert_close(found.images, FlatPrior()(found.latents))


@ALL
def test_queries_are_counted_to_the_image(
    target: Target, module: WithoutGradients, how: Search
) -> None:
    found = attack(target, how)
    assert found.queries == module.images <= how.workload(FlatPrior()).queries(3)
    module.images = 0
    alone = how.run(target, FlatPrior(), LABELS, rng=generator(0))
    assert alone.queries == module.images == found.queries


def test_the_plan_of_a_genetic_search_is_exact(target: Target) -> None:
    assert attack(target, GENETIC).queries == 300 + 3 * (40 * 39 + 10 * 4)


@pytest.mark.parametrize("how", [COARSE, AGENT], ids=["c2f", "rlb"])
@pytest.mark.parametrize("limit", [400, 800])
def test_the_others_end_at_a_limit_too(
    target: Target, module: WithoutGradients, how: C2fMi | RlbMi, limit: int
) -> None:
    limited = replace(how, most_queries=limit)
    found = attack(target, limited)
    assert found.queries == module.images <= limit and len(found) == 9
    other = attack(target, replace(limited, batch_size=7))
    assert other.queries == found.queries
    torch.testing.assert_close(other.latents, found.latents)
    module.images = 0
    outside = run_attack(how, target, FlatPrior(), LABELS, rng=generator(0), limit=limit)
    assert outside.queries == module.images == found.queries and same(outside, found)
    with pytest.raises(QueriesSpentError, match="limit of 9 queries"):
        attack(target, replace(how, most_queries=9))


def test_the_agent_learns(target: Target) -> None:
    """The last episodes are surer than the first, in which the agent knows nothing yet."""
    asked: list[Tensor] = []

    class Listening(WithoutGradients):
        def forward(self, x: Tensor) -> Tensor:
            scores = super().forward(x)
            asked.append(scores.softmax(1)[:3].diagonal() if len(x) == 3 else torch.zeros(3))
            return scores

    attack(toy_target(Listening()), replace(AGENT, episodes=500))
    first, last = torch.stack(asked[:60]).mean(0), torch.stack(asked[440:500]).mean(0)
    assert bool((last > first + 0.3).all())


def test_a_share_of_the_state_is_asked_about_by_itself(
    target: Target, module: WithoutGradients
) -> None:
    how = replace(AGENT, episodes=20, diversity=0.2, training_batch=8, at_once=3)
    found = attack(target, how)
    assert found.queries == module.images == how.workload(FlatPrior()).queries(3)
    assert how.workload(FlatPrior()).queries(3) == 3 * (2 * 20 + 4 * 4)


def test_the_inverse_network_says_where_a_sure_answer_lies(target: Target) -> None:
    """Nearer to the middle of each class than the mean of the pool is."""
    blind = target.restricted(Access.SCORES)
    pool = FlatPrior().sample(500, rng=generator(0))
    space = PoolSpace(pool)
    with torch.no_grad():
        scores = blind(FlatPrior()(pool)).log_softmax(1)
    inverted, sure = replace(COARSE, epochs=30).invert(space, scores, LABELS, generator(1))
    assert inverted.shape == (500, 2)
    gaps = (space.latents(sure) - CENTRES).norm(dim=1)
    assert bool((gaps < 0.7 * CENTRES.norm(dim=1)).all())


def test_children_mix_differences_and_the_best() -> None:
    """Without differences and with every coordinate of its own, a child goes towards the best."""
    how = replace(COARSE, difference=1e-12, crossover=1.0, attraction=0.5, population=3, keep=1)
    points = torch.tensor([[[0.0, 0.0], [2.0, 4.0], [1.0, 1.0]]]).double()
    scores = torch.tensor([[-2.0, -1.0, -3.0]])
    found = how.children(points, scores, 0, [generator(0)])
    expected = torch.tensor([[[1.0, 2.0], [2.0, 4.0], [1.5, 2.5]]]).double()
    torch.testing.assert_close(found, expected)
    still = replace(how, crossover=0.0).children(points, scores, 0, [generator(0)])
    torch.testing.assert_close(still, points)


@BOTH
@pytest.mark.parametrize("limit", [300, 301, 900, 2000])
def test_a_limit_ends_the_search_with_the_best_so_far(
    target: Target, module: WithoutGradients, how: CmaEs | MirrorGenetic, limit: int
) -> None:
    limited = replace(how, most_queries=limit)
    found = attack(target, limited)
    assert found.queries == module.images <= limit
    assert len(found) == 9
    for batch_size in (3, 1000):
        other = attack(target, replace(limited, batch_size=batch_size))
        assert other.queries == found.queries
        torch.testing.assert_close(other.latents, found.latents)
    blind = target.restricted(Access.SCORES)
    one, none = (
        blind(FlatPrior()(made.latents)).softmax(1).gather(1, made.labels[:, None]).view(3, 3)
        for made in (found, attack(target, replace(how, most_queries=300)))
    )
    assert bool((one.amax(1) >= none.amax(1) - 1e-6).all())
    assert limit < 900 or bool((one.amax(1) > none.amax(1)).all())


@BOTH
def test_a_limit_from_outside_holds_too(
    target: Target, module: WithoutGradients, how: Attack
) -> None:
    found = run_attack(how, target, FlatPrior(), LABELS, rng=generator(0), limit=1000)
    assert found.queries == module.images <= 1000 and len(found) == 9


@BOTH
def test_a_limit_below_the_pool_is_one_line(
    target: Target, module: WithoutGradients, how: CmaEs | MirrorGenetic
) -> None:
    with pytest.raises(QueriesSpentError, match="limit of 250 queries is spent: 0 images were"):
        attack(target, replace(how, most_queries=250))
    assert module.images == 0


@ALL
def test_label_access_is_not_enough(target: Target, module: WithoutGradients, how: Attack) -> None:
    with pytest.raises(InputError, match="needs scores access, but the target toy gives label"):
        how.run(target.restricted(Access.LABEL), FlatPrior(), LABELS, rng=generator(0))
    assert module.images == 0


@ALL
def test_scores_are_enough_and_more_changes_nothing(how: Attack) -> None:
    """With a white-box target that gives gradients the attack does the same."""
    white = toy_target(Nearest())
    assert same(attack(white, how), attack(white.restricted(Access.SCORES), how))


@ALL
def test_follows_the_protocol_and_tells_progress(target: Target, how: Attack) -> None:
    assert isinstance(how, Attack) and type(how) in CLASSES.values()
    told: list[tuple[int, int]] = []
    run_attack(
        how, target, FlatPrior(), LABELS, rng=generator(0),
        progress=lambda done, total, note="": told.append((done, total)),
    )  # fmt: skip
    assert told[-1][0] == told[-1][1]
    assert [d for d, _ in told] == sorted(d for d, _ in told)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (replace(GENETIC, keep=11), "keep <= candidates <= population <= pool"),
        (replace(GENETIC, pool=39), "population=40, pool=39"),
        (replace(EVOLVED, keep=7), "keep <= searches <= pool"),
        (replace(COARSE, keep=21), "keep <= population <= pool"),
        (replace(AGENT, keep=5), "keep <= candidates <= episodes"),
    ],
)
def test_contradicting_settings(target: Target, how: Attack, message: str) -> None:
    with pytest.raises(InputError, match=message):
        attack(target, how)


def test_one_coordinate_is_refused(target: Target) -> None:
    @dataclass(frozen=True)
    class Grey:
        image_shape: tuple[int, int, int] = (1, SIZE, SIZE)

        def sample(self, n: int, *, rng: torch.Generator) -> Tensor:
            return torch.randn(n, 1, generator=rng)

        def __call__(self, latents: Tensor) -> Tensor:
            return torch.sigmoid(latents)[:, :, None, None].expand(-1, 1, SIZE, SIZE)

    with pytest.raises(InputError, match="one coordinate"):
        attack(target, EVOLVED, prior=Grey())
    assert len(attack(target, GENETIC, prior=Grey())) == 9


def test_the_published_constants() -> None:
    published = MirrorGenetic()
    assert (published.population, published.generations) == (100, 100)
    assert (published.mutation_probability, published.mutation_scale) == (0.1, 0.1)
    assert (published.truncation, published.bound, published.slope) == (0.7, 1.0, 0.2)
    coarse, agent = C2fMi(), RlbMi()
    assert (coarse.population, coarse.generations, coarse.pairs) == (32, 300, 4)
    assert (coarse.attraction, coarse.difference, coarse.crossover) == (0.02, 0.1, 0.5)
    assert (agent.episodes, agent.diversity, agent.learning_rate) == (40_000, 0.0, 5e-4)
    assert (agent.state_weight, agent.action_weight, agent.margin_weight) == (2.0, 2.0, 8.0)


# MIRROR's parts


def test_clipping_is_in_p() -> None:
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


def test_children_take_after_the_surer_parent() -> None:
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


def test_the_surest_parent_lives_on_and_copies_are_left_out() -> None:
    one = Individuals(
        torch.tensor([[1.0], [2.0], [1.0], [3.0]]), torch.tensor([-1.0, -3.0, -1.0, -2.0])
    )
    found = one.best(3)
    assert found.latents.flatten().tolist() == [1.0, 3.0, 2.0]
    assert found.scores.tolist() == [-1.0, -2.0, -3.0]


def test_plug_and_play_goes_on_with_gradients() -> None:
    module = Nearest()
    how = PlugAndPlay(pool=60, candidates=8, steps=5, keep=3, crops=4, batch_size=16)
    found = attack(toy_target(module), how)
    assert found.queries == module.images == 60 + 24 * 5 + 24 * 4
    direct = how.run(toy_target(Nearest()), FlatPrior(), LABELS, rng=generator(0))
    assert same(found, direct) and direct.queries is None
