"""The three arms on a tiny prior and target."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from inversight.adaptation import WeightedTerm, guidance_terms
from inversight.adaptation.preconditioners import Damped
from inversight.adaptation.terms import TERMS
from inversight.attacks.objectives import entropy
from inversight.core.errors import ConfigError
from inversight.core.seeding import generator
from inversight.priors import StylePrior
from inversight.settings import Adaptation
from tests.priors.tiny import METRIC, TRAINING, Stopped, adapted, linear_target, pictures, stop_at


def test_vanilla_does_not_look_at_the_target(prior: StylePrior) -> None:
    one, other = (adapted(prior, linear_target(seed), "vanilla") for seed in (1, 2))
    assert torch.equal(pictures(one), pictures(other))
    assert "entropy" not in one.log[-1]


@pytest.mark.parametrize("arm", ["entropy", "natural-gradient"])
def test_guided_arms_do(prior: StylePrior, arm: str) -> None:
    one, other = (adapted(prior, linear_target(seed), arm) for seed in (1, 2))
    assert not torch.allclose(pictures(one), pictures(other))
    assert {"entropy", "class_entropy"} <= one.log[-1].keys()


def test_no_weight_is_vanilla(prior: StylePrior) -> None:
    target = linear_target(1)
    torch.testing.assert_close(
        pictures(adapted(prior, target, "natural-gradient", weight=0.0)),
        pictures(adapted(prior, target, "vanilla")),
    )


@pytest.mark.parametrize("arm", ["entropy", "natural-gradient"])
def test_guided_arms_lower_the_entropy(prior: StylePrior, arm: str) -> None:
    target = linear_target(3)
    plain = adapted(prior, target, "vanilla", steps=40)
    guided = adapted(prior, target, arm, steps=40, weight=3.0)

    def mean_entropy(made: StylePrior) -> float:
        w = made.sample(256, rng=generator(9))
        return float(entropy(target((made.raw(w, noise="none") + 1) / 2)).mean())

    assert mean_entropy(guided) < mean_entropy(plain) - 0.02


def test_a_metric_that_is_a_multiple_of_the_identity_changes_nothing(prior: StylePrior) -> None:
    """Mean squared error of grey images has M = c I, so the natural gradient is the gradient."""
    target = linear_target(1)
    torch.testing.assert_close(
        pictures(adapted(prior, target, "entropy")),
        pictures(adapted(prior, target, "natural-gradient")),
        rtol=1e-3,
        atol=1e-4,
    )


def test_a_stopped_adaptation_goes_on_bit_by_bit(prior: StylePrior, tmp_path: Path) -> None:
    target = linear_target(1)
    whole = adapted(prior, target, "natural-gradient")
    options: dict[str, Any] = {
        "training": replace(TRAINING, checkpoint_seconds=1e-6),
        "checkpoint": tmp_path / "checkpoint.safetensors",
    }
    with pytest.raises(Stopped):  # the checkpoint of step 3 is there, step 4 is lost
        adapted(prior, target, "natural-gradient", **options, progress=stop_at(4))
    resumed = adapted(prior, target, "natural-gradient", **options)
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
        adapted(prior, linear_target(1), "statistics")
    with pytest.raises(ConfigError, match="expected one of vanilla"):
        adapted(prior, linear_target(1), "natural")
