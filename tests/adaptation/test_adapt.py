"""The arms of an adaptation: what guides them, which targets they need, and that they can be resumed."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from inversight.adaptation import Damped, WeightedTerm, guidance_terms
from inversight.adaptation.terms import TERMS
from inversight.attacks.objectives import entropy
from inversight.models.target import Target
from inversight.priors import StylePrior
from inversight.settings import Adaptation
from tests.priors.tiny import (
    METRIC,
    TRAINING,
    Stopped,
    adapted,
    assert_equal,
    deep,
    linear_target,
    pictures,
    stop_at,
    trained,
)
from tests.refusals import refused


def run(arm: str, target: Target | None = None, **changes: Any) -> StylePrior:
    return adapted(trained(), target or linear_target(1), arm, **changes)


def test_vanilla_ignores_the_target() -> None:
    one, other = (run("vanilla", linear_target(seed)) for seed in (1, 2))
    assert torch.equal(pictures(one), pictures(other))
    assert "entropy" not in one.log[-1]


@pytest.mark.parametrize("arm", ["entropy", "natural-gradient"])
def test_guided_arms_depend_on_the_target(arm: str) -> None:
    one, other = (run(arm, linear_target(seed)) for seed in (1, 2))
    assert not torch.allclose(pictures(one), pictures(other))
    assert {"entropy", "class_entropy"} <= one.log[-1].keys()


@pytest.mark.parametrize(
    ("arm", "target"), [("natural-gradient", linear_target(1)), ("projected", deep())]
)
def test_weight_0_is_vanilla(arm: str, target: Target) -> None:
    assert torch.equal(pictures(run(arm, target, weight=0.0)), pictures(run("vanilla", target)))


def test_guidance_lowers_the_entropy() -> None:
    def mean_entropy(arm: str) -> float:
        target = linear_target(3)
        made = run(arm, target, steps=25, weight=3.0)
        w = made.sample(256, rng=torch.Generator().manual_seed(9))
        return float(entropy(target((made.raw(w, noise="none") + 1) / 2)).mean())

    plain = mean_entropy("vanilla")
    assert max(mean_entropy("entropy"), mean_entropy("natural-gradient")) < plain - 0.02


@pytest.mark.parametrize("setting", ["uniform_latents", "augmented_guidance"])
def test_published_variants_change_the_prior(setting: str) -> None:
    before = replace(trained(), augmentation=0.9)
    plain, varied = (
        adapted(before, linear_target(1), "entropy", **{setting: on}) for on in (False, True)
    )
    assert not torch.allclose(pictures(plain), pictures(varied))


def test_natural_gradient_equals_the_gradient_if_the_metric_is_a_multiple_of_the_identity() -> None:
    """Mean squared error of grey images has M = c I."""
    one, other = pictures(run("entropy")), pictures(run("natural-gradient"))
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("arm", ["vanilla", "natural-gradient", "projected", "target-aware"])
@pytest.mark.parametrize(
    ("fraction", "own", "share"),
    [
        (0.1, 5000.0, 2.0**-10),
        (0.5, 5000.0, 2.0**-2),
        (0.5, 10.0, 2.0**-4),
        (None, 80.0, 2.0**-0.5),
    ],
)
def test_weight_that_the_moving_average_leaves_on_the_old_generator(
    arm: str, fraction: float | None, own: float, share: float
) -> None:
    """After n images with half-life h it is 2^(-n/h); here n is 5 x 8, and h at most fraction x n."""
    before = trained()
    average = copy.deepcopy(before.average)
    for parameter in average.parameters():
        parameter.copy_(1.0)
    training = replace(TRAINING, ema_images=own)
    after = adapted(
        replace(before, average=average), deep(), arm, training=training, ema_fraction=fraction,
        learning_rate_factor=1e-12,
    )  # fmt: skip
    assert after.training == training
    for name, old in average.named_parameters():
        new, raw = after.average.get_parameter(name), before.raw.get_parameter(name)
        torch.testing.assert_close(new, share * old + (1 - share) * raw, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "arm", ["natural-gradient", "projected", "conditional", "pseudo-labels", "target-aware"]
)
def test_resumed_adaptation_equals_an_uninterrupted_one(tmp_path: Path, arm: str) -> None:
    training = replace(TRAINING, images_at_once=4)
    whole = run(arm, deep(), training=training, pseudo_labels_top=10)
    eager: dict[str, Any] = {
        "training": replace(training, checkpoint_seconds=1e-6), "pseudo_labels_top": 10,
        "checkpoint": tmp_path / "checkpoint.safetensors",
    }  # fmt: skip
    with pytest.raises(Stopped):  # the checkpoint of step 3 is there, step 4 is lost
        run(arm, deep(), progress=stop_at(4), **eager)
    assert eager["checkpoint"].is_file()
    assert_equal(run(arm, deep(), **eager), whole)


@pytest.mark.parametrize(
    ("arm", "settings", "expected"),
    [
        ("vanilla", {"weight": 0.7}, {}),
        ("entropy", {"weight": 0.7}, {"entropy": 0.7}),
        ("balanced", {"weight": 0.7}, {"entropy": 0.7, "balance": 0.7}),
        ("projected", {}, {"statistics": 3.0}),  # stands for the discriminator of the maps
        ("projected", {"weight": 0.7}, {"statistics": 0.7}),
        ("diverse", {"weight": 0.7}, {"statistics": 0.7, "spread": 0.35}),
        ("pseudo-labels", {"weight": 0.7}, {"margin": 0.7}),
        ("pseudo-labels", {"weight": 0.0}, {}),
        ("pseudo-labels", {"pseudo_labels_alpha": 0.0}, {}),
        ("pseudo-labels", {"scale": "absolute"}, {"margin": 0.2}),
        ("target-aware", {"weight": 0.0}, {}),
        ("target-aware", {"target_aware_entropy": 0.0}, {}),
        ("target-aware", {"scale": "absolute"}, {"critic_entropy": 1e-4}),
    ],
)
def test_terms_of_an_arm(arm: str, settings: dict[str, Any], expected: dict[str, float]) -> None:
    found = guidance_terms(arm, Adaptation(**settings), None, TERMS["statistics"])
    assert found == [WeightedTerm(TERMS[name], weight) for name, weight in expected.items()]


def test_natural_gradient_is_preconditioned() -> None:
    settings = Adaptation(damping=0.2, iterations=3, weight=0.7, guided_images=5)
    damped = Damped(METRIC, damping=0.2, iterations=3)
    expected = [WeightedTerm(TERMS["entropy"], 0.7, damped, part=5)]
    assert guidance_terms("natural-gradient", settings, METRIC) == expected
    with refused("needs a guidance embedding"):
        guidance_terms("natural-gradient", settings)
    with refused("arm diverse needs the term made for the target"):
        guidance_terms("diverse", settings)


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        ("statistics", "needs a target with batch normalisation"),
        ("projected", "arm projected needs a target with convolutions"),
        ("natural", "expected one of vanilla"),
    ],
)
def test_refuses_unknown_arms_and_targets_without_layers(arm: str, message: str) -> None:
    with refused(message):
        run(arm)
