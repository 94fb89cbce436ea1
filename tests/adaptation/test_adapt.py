"""The three arms on a tiny prior and target."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from inversight.adaptation import WeightedTerm, adapt, guidance_terms
from inversight.adaptation.preconditioners import Damped
from inversight.adaptation.terms import TERMS
from inversight.attacks.objectives import entropy
from inversight.core.errors import ConfigError
from inversight.core.seeding import generator
from inversight.embeddings.pixel import Pixel
from inversight.models.target import Target
from inversight.priors import StylePrior, train_prior
from inversight.settings import Adaptation, PriorTraining

SHAPE = (1, 8, 8)
TRAINING = PriorTraining(steps=10, batch_size=8, width=2, z_dim=6, w_dim=5)
PUBLIC = torch.randint(0, 256, (24, *SHAPE), generator=generator(0)).to(torch.uint8)
METRIC = Pixel((8, 8))


def linear_target(seed: int) -> Target:
    """Three classes by a random linear map of the pixels."""
    linear = nn.Linear(64, 3)
    linear.weight.data = torch.randn(3, 64, generator=generator(seed)) * 0.2
    module = nn.Sequential(nn.Flatten(), linear).requires_grad_(False)
    return Target(module, ("a", "b", "c"), SHAPE, (0.5,), (0.5,), "test")


@pytest.fixture(scope="module")
def prior() -> StylePrior:
    return train_prior(PUBLIC, training=TRAINING, rng=generator(1))


def run(prior: StylePrior, target: Target, arm: str, **changes: object) -> StylePrior:
    settings: dict[str, object] = {"steps": 5, "iterations": 2} | changes
    return adapt(
        prior,
        target,
        PUBLIC,
        arm=arm,
        adaptation=Adaptation(**settings),  # type: ignore[arg-type]
        training=TRAINING,
        metric=METRIC,
        rng=generator(2),
    )


def pictures(prior: StylePrior) -> Tensor:
    return prior.raw(prior.sample(64, rng=generator(9)))


def test_vanilla_does_not_look_at_the_target(prior: StylePrior) -> None:
    one, other = (run(prior, linear_target(seed), "vanilla") for seed in (1, 2))
    assert torch.equal(pictures(one), pictures(other))
    assert "entropy" not in one.log[-1]


@pytest.mark.parametrize("arm", ["entropy", "natural-gradient"])
def test_guided_arms_do(prior: StylePrior, arm: str) -> None:
    one, other = (run(prior, linear_target(seed), arm) for seed in (1, 2))
    assert not torch.allclose(pictures(one), pictures(other))
    assert {"entropy", "class_entropy"} <= one.log[-1].keys()


def test_no_weight_is_vanilla(prior: StylePrior) -> None:
    target = linear_target(1)
    torch.testing.assert_close(
        pictures(run(prior, target, "natural-gradient", weight=0.0)),
        pictures(run(prior, target, "vanilla")),
    )


@pytest.mark.parametrize("arm", ["entropy", "natural-gradient"])
def test_guided_arms_lower_the_entropy(prior: StylePrior, arm: str) -> None:
    target = linear_target(3)
    plain = run(prior, target, "vanilla", steps=40)
    guided = run(prior, target, arm, steps=40, weight=3.0)

    def mean_entropy(made: StylePrior) -> float:
        w = made.sample(256, rng=generator(9))
        return float(entropy(target((made.raw(w, noise="none") + 1) / 2)).mean())

    assert mean_entropy(guided) < mean_entropy(plain) - 0.02


def test_a_metric_that_is_a_multiple_of_the_identity_changes_nothing(prior: StylePrior) -> None:
    """Mean squared error of grey images has M = c I, so the natural gradient is the gradient."""
    target = linear_target(1)
    torch.testing.assert_close(
        pictures(run(prior, target, "entropy")),
        pictures(run(prior, target, "natural-gradient")),
        rtol=1e-3,
        atol=1e-4,
    )


def test_a_stopped_adaptation_goes_on_bit_by_bit(prior: StylePrior, tmp_path: Path) -> None:
    target = linear_target(1)
    whole = run(prior, target, "natural-gradient")
    eager = PriorTraining(
        steps=10, batch_size=8, width=2, z_dim=6, w_dim=5, checkpoint_seconds=1e-6
    )
    file = tmp_path / "checkpoint.safetensors"

    class Stop(Exception):
        pass

    def stop(done: int, total: int, note: str = "") -> None:
        if done == 4:  # the checkpoint of step 3 is there, step 4 is lost
            raise Stop

    for progress in (stop, lambda done, total, note="": None):
        try:
            resumed = adapt(
                prior,
                target,
                PUBLIC,
                arm="natural-gradient",
                adaptation=Adaptation(steps=5, iterations=2),
                training=eager,
                metric=METRIC,
                rng=generator(2),
                progress=progress,
                checkpoint=file,
            )
        except Stop:
            assert file.is_file()
    assert torch.equal(pictures(resumed), pictures(whole))
    assert resumed.log == whole.log


def test_arms_choose_what_they_guide_by() -> None:
    settings = Adaptation(damping=0.2, iterations=3, weight=0.7, guided_images=5)
    assert guidance_terms("vanilla", settings, None) == []
    assert guidance_terms("entropy", settings, None) == [WeightedTerm(TERMS["entropy"], 0.7)]
    turned = Damped(METRIC, damping=0.2, iterations=3)
    assert guidance_terms("natural-gradient", settings, METRIC) == [
        WeightedTerm(TERMS["entropy"], 0.7, turned, part=5)
    ]
    assert guidance_terms("balanced", settings, None) == [
        WeightedTerm(TERMS["entropy"], 0.7),
        WeightedTerm(TERMS["balance"], 0.7),
    ]
    term = TERMS["statistics"]  # stands for what is made for a target
    assert guidance_terms("projected", settings, None, term) == [WeightedTerm(term, 0.7)]
    assert guidance_terms("diverse", settings, None, term) == [
        WeightedTerm(term, 0.7),
        WeightedTerm(TERMS["spread"], 0.35),
    ]
    with pytest.raises(ConfigError, match="arm diverse needs the term made for the target"):
        guidance_terms("diverse", settings, None)
    with pytest.raises(ConfigError, match="needs a guidance embedding"):
        guidance_terms("natural-gradient", settings, None)


def test_statistics_need_batch_normalisation(prior: StylePrior) -> None:
    with pytest.raises(ConfigError, match="needs a target with batch normalisation"):
        run(prior, linear_target(1), "statistics")
    with pytest.raises(ConfigError, match="expected one of vanilla"):
        run(prior, linear_target(1), "natural")
