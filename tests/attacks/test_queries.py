"""The threat model is enforced on every attack."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from inversight.attacks import QueriesSpentError, Reconstructions, black_box, run_attack
from inversight.attacks.queries import QueryMeter, metered
from inversight.core.errors import InputError
from inversight.core.seeding import generator
from inversight.models.target import Access, Target
from inversight.priors import Prior
from tests.attacks.toy import LABELS, SIZE, Answering, FlatPrior, toy_target
from tests.examples import OwnNetwork, SampleAttack


@pytest.fixture
def target() -> Target:
    return Target(OwnNetwork(3), ("a", "b", "c"), (1, 8, 8), (0.5,), (0.5,), "own")


@dataclass(frozen=True)
class Curious:
    """An attack that looks at what it was given."""

    access: Access
    look: Callable[[Target], None]

    def run(self, target: Target, prior: Prior, labels: Tensor, **_: object) -> Reconstructions:
        self.look(target)
        none = torch.zeros(0)
        return Reconstructions(none, none, none, none)


def look(target: Target, access: Access, seen: Callable[[Target], None]) -> Reconstructions:
    how: Any = Curious(access, seen)
    return run_attack(how, target, FlatPrior(), LABELS, rng=generator(0))


@pytest.mark.parametrize("access", [Access.SCORES, Access.LABEL])
def test_below_white_box_only_answers_are_left(target: Target, access: Access) -> None:
    x = torch.rand(2, 1, 8, 8, requires_grad=True)

    def seen(given: Target) -> None:
        assert given.access is access
        with torch.enable_grad():
            assert not given(x).requires_grad
            assert not given.module(x).requires_grad
        assert not list(given.module.parameters()) and not list(given.module.children())
        torch.testing.assert_close(given(x), target.restricted(access)(x))

    look(target, access, seen)


def test_white_box_is_the_target_itself(target: Target) -> None:
    def seen(given: Target) -> None:
        assert given.module is target.module and given.access is Access.WHITE_BOX
        assert given(torch.rand(2, 1, 8, 8)).requires_grad

    assert look(target, Access.WHITE_BOX, seen).queries == 2


def test_access_is_at_most_the_targets(target: Target) -> None:
    label = target.restricted(Access.LABEL)
    assert metered(label, Access.WHITE_BOX, QueryMeter()).access is Access.LABEL
    with pytest.raises(InputError, match="needs scores access"):
        look(label, Access.SCORES, lambda given: None)


def test_queries_of_a_custom_attack_are_counted(target: Target) -> None:
    found = run_attack(SampleAttack(), target, FlatPrior(), LABELS, rng=generator(0))
    assert found.queries == 50
    with pytest.raises(QueriesSpentError, match="limit of 49 queries is spent: 0 images"):
        run_attack(SampleAttack(), target, FlatPrior(), LABELS, rng=generator(0), limit=49)


def test_nested_meters_count_sent_images_only(target: Target) -> None:
    outer, inner = QueryMeter(limit=5), QueryMeter(limit=4)
    given = metered(metered(target, Access.SCORES, outer), Access.SCORES, inner)
    x = torch.rand(3, 1, 8, 8)
    given(x)
    for _ in range(2):
        with pytest.raises(QueriesSpentError, match="limit of 4 queries is spent: 3 images"):
            given(x[:2])
    assert (outer.used, inner.used) == (3, 3)
    given(x[:1])
    inner.limit = None
    with pytest.raises(QueriesSpentError, match="limit of 5"):
        given(x[:2])
    assert (outer.used, inner.used) == (4, 4)


def test_any_callable_is_a_target() -> None:
    shapes = []

    def service(images: Tensor) -> Tensor:
        assert not torch.is_grad_enabled() and not images.requires_grad
        assert float(images.min()) >= 0 and float(images.max()) <= 1
        shapes.append(tuple(images.shape))
        left = images[..., : SIZE // 2].mean((1, 2, 3))
        return torch.stack([left, 1 - left], dim=1).log()

    target = black_box(service, classes=("dark", "light"), image_shape=(1, SIZE, SIZE))
    assert target.access is Access.SCORES and target.num_classes == 2
    how = SampleAttack()
    found = run_attack(how, target, FlatPrior(), torch.tensor([0, 1]), rng=generator(0))
    assert found.queries == 50 and shapes == [(50, 1, SIZE, SIZE)]
    # The surest of class "dark" (logit of the left half) is lighter than that of the other.
    assert float(found.images[0, 0, 0, 0]) > float(found.images[3, 0, 0, 0])


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x: torch.full((len(x), 2), 0.5), "answers with probabilities"),
        (lambda x: torch.zeros(len(x), 3), r"expected scores of shape \(4, 2\), found \(4, 3\)"),
    ],
)
def test_wrong_answers_are_refused(answer: Callable[[Tensor], Tensor], message: str) -> None:
    target = black_box(answer, classes=("a", "b"), image_shape=(1, 8, 8), spec="service")
    with pytest.raises(InputError, match=message):
        target(torch.rand(4, 1, 8, 8))


def test_a_restricted_target_never_turns_gradients_on() -> None:
    def answer(x: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        return x.flatten(1)[:, :4]

    given = metered(toy_target(Answering(answer)), Access.SCORES, QueryMeter())
    with torch.enable_grad():
        assert given(torch.rand(2, 1, SIZE, SIZE, requires_grad=True)).shape == (2, 4)
        given.module(torch.rand(2, 1, SIZE, SIZE, requires_grad=True))
