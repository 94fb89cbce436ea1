"""The control: samples of the prior with the given labels, without a target."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import Tensor

from inversight.attacks import CmaEs, MiFace, PlugAndPlay, control
from inversight.attacks.control import control_truncation
from inversight.core.seeding import generator
from tests.attacks.toy import SIZE, FlatPrior


def test_returns_samples_of_the_prior_for_the_labels() -> None:
    labels = torch.tensor([2, 0, 2, 0, 2])
    made = control(FlatPrior(), labels, rng=generator(0))
    assert made.labels.tolist() == [0, 0, 2, 2, 2] and made.queries == 0
    assert made.images.shape == (5, 1, SIZE, SIZE)
    torch.testing.assert_close(made.images, FlatPrior()(made.latents))
    drawn = FlatPrior().sample(5, rng=generator(0))
    assert {tuple(w) for w in made.latents.tolist()} == {tuple(w) for w in drawn.tolist()}
    assert "target" not in inspect.signature(control).parameters


@pytest.mark.parametrize("batch_size", [1, 3])
def test_results_depend_on_the_seed_but_not_the_batch_size(batch_size: int) -> None:
    labels = torch.arange(3).repeat(4)
    one = control(FlatPrior(), labels, rng=generator(0))
    again = control(FlatPrior(), labels, rng=generator(0), batch_size=batch_size)
    assert torch.equal(one.latents, again.latents)
    torch.testing.assert_close(one.images, again.images)  # a product's last bit may differ
    assert not torch.equal(one.images, control(FlatPrior(), labels, rng=generator(1)).images)


def test_labels_are_assigned_at_random() -> None:
    """A prior whose samples come in a row: no class gets the first ones."""

    class Counting(FlatPrior):
        def sample(self, n: int, *, rng: torch.Generator) -> Tensor:
            return torch.arange(n).float()[:, None].expand(n, 2)

    made = control(Counting(), torch.arange(4).repeat_interleave(100), rng=generator(0))
    means = made.latents[:, 0].view(4, 100).mean(1)
    assert bool(((means - 199.5).abs() < 45).all())


def test_samples_are_truncated() -> None:
    asked = []

    class Truncatable(FlatPrior):
        def truncated(self, psi: float) -> FlatPrior:
            asked.append(psi)
            return FlatPrior(scale=psi)

    made = control(Truncatable(), torch.zeros(4).long(), rng=generator(0), truncation=0.5)
    assert asked == [0.5]
    expected = 0.5 * FlatPrior().sample(4, rng=generator(0))
    torch.testing.assert_close(made.latents.sort(0).values, expected.sort(0).values)


def test_truncation_is_the_largest_of_the_attacks() -> None:
    assert control_truncation([PlugAndPlay(truncation=0.4), CmaEs(truncation=0.6)]) == 0.6
    assert not hasattr(MiFace(), "truncation")
    assert control_truncation([PlugAndPlay(truncation=0.4), MiFace()]) == 1.0
