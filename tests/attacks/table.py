"""Every attack with settings for the toy problem, which the tests of several files share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from inversight import attacks
from inversight.attacks import Reconstructions, run_attack
from inversight.core.seeding import generator
from inversight.models.transformations import Transformations
from inversight.priors import Prior, StylePrior
from inversight.priors.architecture import Architecture
from inversight.settings import Training
from tests.attacks.toy import (
    LABELS,
    Discs,
    FlatPrior,
    LinearPrior,
    Nearest,
    NearestByLayer,
    OpenPrior,
    Perceptron,
    WithoutGradients,
    toy_target,
)
from tests.priors.stylegan2_files import random_prior

ENDS: dict[str, Any] = {"candidates": 6, "keep": 3, "crops": 4, "batch_size": 16}
SEARCH = {**ENDS, "pool": 400, "steps": 60}
STILL = Transformations(least_area=1.0, brightness=0.0, contrast=0.0, degrees=0.0)
"""The toy's answer is known for images as they are."""

WHITE_BOX: dict[str, Any] = {
    "plug-and-play": attacks.PlugAndPlay(**SEARCH, learning_rate=0.05),
    "gmi": attacks.Gmi(**SEARCH, learning_rate=0.03, identity_weight=30.0, bound=2.0),
    "mirror": attacks.Mirror(**SEARCH, learning_rate=0.1, slope=1.0, bound=1.2),
    "lomma": attacks.Lomma(**SEARCH, learning_rate=2e-4, bound=2.0, surrogates=0),
    "if-gmi": attacks.IfGmi(**SEARCH, layer_steps=20, learning_rate=0.02),
    "plg-mi": attacks.PlgMi(**SEARCH, learning_rate=0.05, transform=STILL, crop_flip=False),
    "ked-mi": attacks.KedMi(
        **{**SEARCH, "steps": 200}, samples=4, learning_rate=0.2, start_log_variance=-2.0
    ),
    "vmi": attacks.Vmi(**{**SEARCH, "steps": 200}, samples=8, learning_rate=0.1),
    "mi-face": attacks.MiFace(**ENDS, steps=100, jitter=0, learning_rate=0.1),
}
FLOW = attacks.Vmi(
    family="flow", couplings=2, hidden=8, pool=400, candidates=6, keep=3, crops=4, batch_size=64,
    samples=8, steps=200, learning_rate=0.1,
)  # fmt: skip
TRAINING = Training(
    architecture="vgg", epochs=12, batch_size=64, width=8, flip=False, shift=0.0, rotation=0.0,
    validation=0.1,
)  # fmt: skip
AUGMENTED = replace(
    WHITE_BOX["lomma"], steps=80, images=800, surrogates=2, training=replace(TRAINING, epochs=6)
)
QUICK_AUGMENTED = replace(
    AUGMENTED, pool=40, steps=5, images=200, surrogates=1, training=replace(TRAINING, epochs=2)
)
GENETIC = attacks.MirrorGenetic(
    pool=300, population=40, generations=40, candidates=10, keep=3, crops=4, bound=2.0, slope=1.0
)
EVOLVED = attacks.CmaEs(pool=300, searches=6, population=6, generations=30, keep=3, crops=4)
COARSE = attacks.C2fMi(
    pool=300, population=20, generations=200, settling=30, keep=3, crops=4, hidden=32, epochs=10
)
AGENT = attacks.RlbMi(
    pool=300, episodes=600, at_once=2, candidates=4, keep=3, crops=4, reach=2.0, hidden=32,
    training_batch=32, learning_rate=3e-3,
)  # fmt: skip
REPELLED = attacks.BrepMi(pool=200, searches=6, iterations=40, keep=3)
TRANSFERRED = attacks.Lokt(
    images=1500, surrogates=2, training=replace(TRAINING, architecture="resnet"),
    white_box=attacks.PlugAndPlay(
        pool=300, candidates=8, steps=20, keep=3, crops=4, learning_rate=0.02,
        crop_scale=(0.8, 1.0), crop_flip=False,
    ),
)  # fmt: skip
QUICK_TRANSFERRED = replace(
    TRANSFERRED, images=300, surrogates=1, training=replace(TRANSFERRED.training, epochs=2)
)


TUNED = attacks.Ppdg(
    around={
        "class": "plug-and-play", **ENDS, "pool": 40, "steps": 5, "learning_rate": 0.05,
        "truncation": 1.0, "batch_size": 200,
    },
    images=2, samples=20, inversion_steps=4, tuning_steps=3, tuning_learning_rate=0.02, batch_size=16,
)  # fmt: skip


FITTED = attacks.WeightReconstruction(guess=4, restarts=2, steps=5, rounds=0, keep=3)
"""Reads nothing out of random weights, but fits candidates."""


def tunable(classes: int = 0) -> StylePrior:
    """Return a small random prior whose generator can be tuned."""
    return random_prior(
        Architecture(size=8, channels=1, z_dim=4, w_dim=4, c_dim=classes, channel_max=4)
    )


def shortened(attack: Any, **changes: Any) -> Any:
    """Return a white-box attack with few steps, from a small pool."""
    fewer = {"steps": 5, "pool": 40, "layer_steps": 3}
    return replace(
        attack, **{name: n for name, n in fewer.items() if hasattr(attack, name)}, **changes
    )


@dataclass(frozen=True)
class Case:
    """An attack that is quick, and the toy problem that it solves.

    tolerance: of results that differ by rounding alone.
    """

    attack: Any
    prior: Prior
    module: Callable[[], Nearest | Discs | Perceptron]
    tolerance: dict[str, float] = field(default_factory=dict)

    def run(
        self, attack: Any = None, *, module: Any = None, labels: Tensor = LABELS, seed: int = 0,
        **given: Any,
    ) -> Reconstructions:  # fmt: skip
        """Run the attack, or another, on the toy problem."""
        target, how = toy_target(module or self.module()), attack or self.attack
        return run_attack(how, target, self.prior, labels, rng=generator(seed), **given)


def same(one: Reconstructions, other: Reconstructions) -> bool:
    """Return whether latents and losses are equal, bit by bit."""
    return torch.equal(one.latents, other.latents) and torch.equal(one.losses, other.losses)


ROUNDING = {"rtol": 1e-3, "atol": 1e-4}
CASES: dict[str, Case] = {
    name: Case(shortened(attack), OpenPrior(), NearestByLayer, ROUNDING)
    for name, attack in WHITE_BOX.items()
}
CASES |= {
    "vmi-flow": Case(shortened(FLOW), OpenPrior(), NearestByLayer, ROUNDING),
    "lomma-surrogates": Case(QUICK_AUGMENTED, OpenPrior(), NearestByLayer, ROUNDING),
    "mirror-black-box": Case(replace(GENETIC, generations=8), FlatPrior(), WithoutGradients),
    "cma-es": Case(replace(EVOLVED, generations=8), FlatPrior(), WithoutGradients),
    "c2f-mi": Case(replace(COARSE, generations=8, settling=4), FlatPrior(), WithoutGradients),
    "rlb-mi": Case(replace(AGENT, episodes=30, training_batch=16), FlatPrior(), WithoutGradients),
    "brep-mi": Case(replace(REPELLED, iterations=5), LinearPrior(), Discs),
    "lokt": Case(QUICK_TRANSFERRED, LinearPrior(), Discs, ROUNDING),
    "ppdg": Case(TUNED, tunable(), NearestByLayer, ROUNDING),
    "weight-reconstruction": Case(FITTED, FlatPrior(), Perceptron),
}
