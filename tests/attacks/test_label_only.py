"""The label-only attacks: they find the middle of a class by its border, within their queries."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from inversight.attacks import (
    Attack,
    BrepMi,
    Lokt,
    PlugAndPlay,
    QueriesSpentError,
    Reconstructions,
    run_attack,
)
from inversight.attacks.brep_mi import _Spheres, _Starts
from inversight.attacks.pool_space import PoolSpace
from inversight.attacks.queries import QueryMeter
from inversight.attacks.score_search import Problem
from inversight.core.errors import InputError, StageError
from inversight.core.seeding import generator
from inversight.models.target import Access, Target
from inversight.settings import Training
from tests.attacks.toy import (
    CLASSES,
    LABELS,
    SIZE,
    Discs,
    LinearPrior,
    Nearest,
    from_middle,
    toy_target,
)

REPELLED = BrepMi(pool=200, searches=6, iterations=40, keep=3)
TAUGHT = Lokt(
    images=2500,
    surrogates=2,
    training=Training(
        epochs=12, batch_size=64, width=8, flip=False, shift=0.0, rotation=0.0, validation=0.1
    ),
    white_box=PlugAndPlay(
        pool=300, candidates=8, steps=20, keep=3, crops=4, learning_rate=0.02,
        crop_scale=(0.8, 1.0), crop_flip=False,
    ),
)  # fmt: skip
QUICK = replace(TAUGHT, images=300, surrogates=1, training=replace(TAUGHT.training, epochs=2))
BOTH = pytest.mark.parametrize("how", [REPELLED, QUICK], ids=["brep", "lokt"])


@pytest.fixture
def module() -> Discs:
    return Discs()


@pytest.fixture
def target(module: Discs) -> Target:
    return toy_target(module).restricted(Access.LABEL)


def attack(target: Target, how: Attack, seed: int = 0) -> Reconstructions:
    return run_attack(how, target, LinearPrior(), LABELS, rng=generator(seed))


def same(one: Reconstructions, other: Reconstructions) -> bool:
    return torch.equal(one.latents, other.latents) and torch.equal(one.losses, other.losses)


@pytest.mark.parametrize(("how", "near"), [(REPELLED, 0.35), (TAUGHT, 0.6)], ids=["brep", "lokt"])
def test_reaches_the_middle_of_the_class(target: Target, how: BrepMi | Lokt, near: float) -> None:
    """Samples that the target puts in a class are two thirds of a radius from its middle."""
    found = attack(target, how)
    assert float(from_middle(found.latents, found.labels).max()) < near
    assert torch.equal(target(LinearPrior()(found.latents)).argmax(1), found.labels)
    assert found.queries is not None and found.queries <= how.workload(LinearPrior()).queries(3)


@BOTH
def test_the_seed_decides(target: Target, how: Attack) -> None:
    assert same(attack(target, how), attack(target, how))
    assert not same(attack(target, how), attack(target, how, seed=1))


@BOTH
def test_classes_do_not_depend_on_each_other(target: Target, how: Attack) -> None:
    alone = run_attack(how, target, LinearPrior(), torch.tensor([1]), rng=generator(0))
    among = attack(target, how)
    torch.testing.assert_close(alone.latents, among.latents[among.labels == 1])


@BOTH
def test_labels_are_all_they_are_given(how: Attack) -> None:
    """A white-box target with gradients changes nothing, and is asked without them."""

    class Curious(Nearest):
        seen: list[Tensor] = []  # noqa: RUF012

        def forward(self, x: Tensor) -> Tensor:
            assert not torch.is_grad_enabled()
            return super().forward(x)

    white = toy_target(Curious())
    assert how.access is Access.LABEL
    assert same(attack(white, how), attack(white.restricted(Access.LABEL), how))


@BOTH
def test_the_size_of_scores_does_not_matter(how: Attack) -> None:
    class Louder(Nearest):
        def forward(self, x: Tensor) -> Tensor:
            return 9.0 * super().forward(x) + 1.0

    assert same(attack(toy_target(Nearest()), how), attack(toy_target(Louder()), how))


@BOTH
def test_the_shape_of_what_it_returns(target: Target, how: Attack) -> None:
    found = attack(target, how)
    assert isinstance(how, Attack) and type(how) in CLASSES.values()
    assert found.images.shape == (9, 1, SIZE, SIZE)
    assert found.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert not found.latents.requires_grad and not found.images.requires_grad
    for label in range(3):
        mine = found.labels == label
        assert len(found.latents[mine].unique(dim=0)) == 3
        losses = found.losses[mine]
        assert bool((losses[1:] >= losses[:-1]).all())
    torch.testing.assert_close(found.images, LinearPrior()(found.latents))


@BOTH
def test_queries_are_counted_to_the_image(target: Target, module: Discs, how: Attack) -> None:
    found = attack(target, how)
    assert found.queries == module.images > 0
    module.images = 0
    alone = how.run(target, LinearPrior(), LABELS, rng=generator(0))
    assert alone.queries == module.images == found.queries


@BOTH
def test_progress_ends_where_it_should(target: Target, how: Attack) -> None:
    told: list[tuple[int, int]] = []
    how.run(
        target, LinearPrior(), LABELS, rng=generator(0),
        progress=lambda done, total, note="": told.append((done, total)),
    )  # fmt: skip
    assert told[-1][0] == told[-1][1] and [d for d, _ in told] == sorted(d for d, _ in told)


@BOTH
def test_a_class_that_no_sample_is_in_is_left_out(how: Attack) -> None:
    class Without(Nearest):
        def forward(self, x: Tensor) -> Tensor:
            scores = super().forward(x)
            scores[:, 1] = -9.0
            return scores

    found = attack(toy_target(Without()), how)
    assert found.labels.tolist() == [0] * 3 + [2] * 3
    # Those that are there are what they would be without the other.
    two = run_attack(
        how, toy_target(Without()), LinearPrior(), torch.tensor([0, 2]), rng=generator(0)
    )
    torch.testing.assert_close(two.latents, found.latents)


@BOTH
def test_no_class_at_all_is_one_line(how: Attack) -> None:
    class Nothing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([[0.0, 0.0, 0.0, 1.0]]).expand(len(x), 4)

    with pytest.raises(StageError, match=r"samples of the prior in .*to reconstruct; raise"):
        attack(toy_target(Nothing()), how)


# BREP-MI's parts


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_any_batch_size_gives_the_same(target: Target, batch_size: int) -> None:
    one = replace(REPELLED, iterations=5)
    other = replace(one, batch_size=batch_size)
    torch.testing.assert_close(attack(target, one).latents, attack(target, other).latents)


@pytest.mark.parametrize("limit", [200, 201, 900, 5000])
def test_a_limit_ends_the_search_where_it_is(target: Target, module: Discs, limit: int) -> None:
    found = attack(target, replace(REPELLED, most_queries=limit))
    assert found.queries == module.images <= limit and len(found) == 9
    further = from_middle(found.latents, found.labels).mean()
    start = attack(target, replace(REPELLED, most_queries=200))
    assert limit < 900 or further < from_middle(start.latents, start.labels).mean()


def test_a_limit_below_the_pool_is_one_line(target: Target, module: Discs) -> None:
    with pytest.raises(QueriesSpentError, match="limit of 150 queries is spent: 0 images were"):
        attack(target, replace(REPELLED, most_queries=150))
    with pytest.raises(QueriesSpentError, match="limit of 150"):
        run_attack(QUICK, target, LinearPrior(), LABELS, rng=generator(0), limit=150)
    assert module.images == 0


def test_one_iteration_by_hand(target: Target) -> None:
    """Equation 5: minus the mean direction of the points outside, times a third of the radius."""
    how = BrepMi(pool=100, searches=1, points=4, keep=1)
    space = PoolSpace(torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))  # itself
    # A third of the disc's radius inside its border, to the right of the middle.
    start = torch.tensor([[-1.2 + 0.7 * 2 / 3, 0.2]], dtype=torch.float64)
    problem = Problem(target, LinearPrior(), torch.tensor([0]), 0, QueryMeter(), 200)
    search = _Spheres(how, problem, _Starts(space, start, torch.tensor([0])))
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


def test_patience_ends_a_search(target: Target, module: Discs) -> None:
    attack(target, replace(REPELLED, patience=1, iterations=3))
    soon = module.images
    module.images = 0
    attack(target, replace(REPELLED, patience=3, iterations=3))
    assert 200 < soon < module.images


def test_more_pools_are_drawn_where_a_class_is_missing(target: Target, module: Discs) -> None:
    few = replace(REPELLED, pool=10, iterations=1)
    assert len(attack(target, replace(few, pools=30))) == 9
    assert module.images > 20
    assert len(attack(target, replace(few, pools=1))) < 9


def test_contradicting_settings(target: Target) -> None:
    with pytest.raises(InputError, match="keep <= searches, found keep=7, searches=6"):
        attack(target, replace(REPELLED, keep=7))


def test_the_published_constants() -> None:
    published = BrepMi()
    assert (published.points, published.radius, published.growth) == (32, 2.0, 1.3)
    assert (published.inside, published.longest_step, published.patience) == (1.0, 3.0, 1000)
    assert (published.bound, Lokt().surrogates) == (1.5, 3)


# LOKT's parts


def test_rare_classes_weigh_more(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    import inversight.attacks.surrogates as surrogates

    seen = []
    train = surrogates.train_classifier

    def watched(images, *, variation, **given):  # type: ignore[no-untyped-def]
        seen.append((images.labels, variation.weights, given["training"].architecture))
        return train(images, variation=variation, **given)

    monkeypatch.setattr(surrogates, "train_classifier", watched)
    attack(target, replace(QUICK, surrogates=2, balance=1000.0))
    labels, weights, _ = seen[0]
    assert [s[2] for s in seen] == ["resnet", "vgg"]
    sums = torch.stack([weights[labels == label].sum() for label in range(4)])
    torch.testing.assert_close(sums, sums.mean().expand(4))
    assert float(weights.mean()) == pytest.approx(1.0)
    # The label is the target's.
    asked = target(labels_images(300)).argmax(1)
    assert len(asked) == len(labels) and torch.equal(asked.bincount(), labels.bincount())


def labels_images(count: int) -> Tensor:
    from inversight.core.imaging import to_float, to_uint8
    from inversight.core.seeding import draw_seed

    seed = draw_seed(generator(0))
    latents = LinearPrior().sample(count, rng=generator(seed, "pool"))
    return to_float(to_uint8(LinearPrior()(latents)))
