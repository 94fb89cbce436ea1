"""The white-box attacks find the known answer; Plug & Play's halvings and faster steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from inversight.attacks import (
    Attack,
    PlgMi,
    PlugAndPlay,
    Reconstructions,
    run_attack,
)
from inversight.attacks.gradient_search import LatentSearch
from inversight.attacks.objectives import cross_entropy, logit, max_margin, poincare
from inversight.attacks.workload import cut_to
from inversight.core.errors import InputError
from inversight.core.seeding import generator
from inversight.models.networks import build_classifier
from inversight.models.target import Access, Target, target_of
from inversight.models.transformations import Transformations
from inversight.priors import StylePrior, train_prior
from inversight.priors.base import Prior
from inversight.priors.classes import condition_on_classes
from inversight.settings import PriorTraining
from tests.attacks.table import SEARCH, WHITE_BOX, shortened
from tests.attacks.toy import (
    CLASSES,
    LABELS,
    FlatPrior,
    Nearest,
    NearestByLayer,
    OpenPrior,
    least_on_a_grid,
    levels,
    toy_target,
)

TARGET = toy_target(NearestByLayer())
FLATTER = toy_target(NearestByLayer(height=3.0))
"""Its cross-entropy is curved enough around the best for a search by noisy samples."""

Loss = Callable[[Tensor, Tensor], Tensor]
"""Images and labels -> losses: what an attack's paper descends."""


def identity(images: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(TARGET(images), labels)


def real(images: Tensor) -> Tensor:
    return OpenPrior().realness(images)


def lomma_loss(images: Tensor, labels: Tensor) -> Tensor:
    prior = FlatPrior()
    usual = TARGET(prior(prior.sample(4000, rng=generator(9))))[:, :3].mean(0) / 8.0
    logits = TARGET(images)
    away = (logits[:, :3] / 8.0 - usual).square().mean(1)
    return 100.0 * (logit(logits, labels) + away) - real(images)


@dataclass(frozen=True)
class Row:
    """What an attack descends, the images that it sends, and how far its latents may go."""

    loss: Loss
    queries: int
    reach: float = 4.0
    tolerance: float = 0.03
    target: Target = TARGET


TABLE = {
    "plug-and-play": Row(lambda x, y: poincare(TARGET(x), y), 400 + 3 * 6 * (60 + 4)),
    "gmi": Row(
        lambda x, y: 30.0 * identity(x, y) - real(x), 400 + 3 * 6 * (60 + 4), reach=2.0
    ),
    # Clipped at the pool's deviations, which are about 1.
    "mirror": Row(identity, 400 + 3 * 6 * (60 + 4), reach=1.2, tolerance=0.04),
    "lomma": Row(lomma_loss, 2 * 400 + 3 * 6 * (60 + 4), reach=2.0),
    "if-gmi": Row(lambda x, y: poincare(TARGET(x), y), 400 + 3 * 6 * (60 + 20 + 4)),
    "plg-mi": Row(lambda x, y: max_margin(TARGET(x), y), 3 * 6 * (2 * 60 + 4)),
    "ked-mi": Row(
        lambda x, y: 100.0 * cross_entropy(FLATTER(x), y) + F.softplus(-real(x)),
        3 * (200 * 4 + 6 * 4), target=FLATTER,
    ),
    "vmi": Row(
        lambda x, y: cross_entropy(FLATTER(x), y), 3 * (200 * 8 + 6 * 4), tolerance=0.06,
        target=FLATTER,
    ),
    "mi-face": Row(
        lambda x, y: cross_entropy(FLATTER(x), y), 3 * 6 * (100 + 4), target=FLATTER
    ),
}  # fmt: skip


def attack(how: Attack, target: Target = TARGET, seed: int = 0) -> Reconstructions:
    return run_attack(how, target, OpenPrior(), LABELS, rng=generator(seed))


def test_every_attack_with_gradients_is_in_the_table() -> None:
    names = {n for n, kind in CLASSES.items() if kind().access is Access.WHITE_BOX}
    assert TABLE.keys() == WHITE_BOX.keys() == names


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("seed", [0, 1])
def test_reaches_the_known_answer_within_its_budget(name: str, seed: int) -> None:
    row = TABLE[name]
    found = attack(WHITE_BOX[name], row.target, seed=seed)
    assert found.queries == row.queries
    for label in range(3):
        best = least_on_a_grid(
            lambda x, label=label: row.loss(x, torch.full((len(x),), label)), row.reach
        )
        mine = levels(found.images[found.labels == label])
        torch.testing.assert_close(mine, best.expand(3, -1), atol=row.tolerance, rtol=0)


@pytest.mark.parametrize(
    ("name", "prior", "module", "message"),
    [
        ("gmi", FlatPrior(), Nearest, "Gmi needs a prior with a critic (`realness`), which FlatPrior"),
        ("ked-mi", FlatPrior(), Nearest, "KedMi needs a prior with a critic"),
        ("lomma", FlatPrior(), NearestByLayer, "Lomma needs a prior with a critic"),
        ("lomma", OpenPrior(), Nearest, "penultimate features, but toy: has no torch.nn.Linear"),
        ("if-gmi", FlatPrior(), Nearest, "IfGmi needs a prior with intermediate features"),
        ("plg-mi", FlatPrior(), Nearest, "PlgMi needs a prior that is conditioned on the target's"),
    ],
)  # fmt: skip
def test_missing_capabilities_are_refused(
    name: str, prior: Prior, module: type[Nearest], message: str
) -> None:
    network = module()
    with pytest.raises(InputError) as caught:
        WHITE_BOX[name].run(toy_target(network), prior, LABELS, rng=generator(0))
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert "--attack" in str(caught.value)
    assert network.images == 0  # said before anything is sent


def test_a_prior_of_other_classes(style: StylePrior, network: Target) -> None:
    how = shortened(WHITE_BOX["plg-mi"])
    labels = torch.tensor([0, 1])
    with pytest.raises(InputError, match="--arm pseudo-labels") as caught:
        how.run(network, style, labels, rng=generator(0))
    assert "\n" not in str(caught.value)
    three = condition_on_classes(style, 3, rng=generator(4))
    with pytest.raises(InputError, match="the target's 2 classes, but it is on 3"):
        how.run(network, three, labels, rng=generator(0))
    with pytest.raises(InputError, match="judges images with their classes"):
        shortened(WHITE_BOX["gmi"]).run(network, three, labels, rng=generator(0))


def test_random_transformations_are_drawn_in_every_step() -> None:
    """They change what is found, alike in any batch, and mirror only where the crops do."""
    plg_mi = WHITE_BOX["plg-mi"]
    still = attack(shortened(plg_mi))
    moving = shortened(plg_mi, transform=Transformations())
    one, other = attack(moving), attack(replace(moving, batch_size=4))
    assert not torch.allclose(one.images, still.images, atol=1e-4)
    torch.testing.assert_close(one.images, other.images, rtol=1e-3, atol=1e-4)
    # Mirrored, the halves change places and class a (dark, grey) is pulled to both.
    assert not torch.allclose(
        attack(shortened(plg_mi, crop_flip=True)).latents, still.latents, atol=1e-3
    )


def test_samples_of_plg_mi_are_no_queries() -> None:
    """Cut down to a budget the candidates are fewer, whatever is sampled of a class."""
    how = shortened(WHITE_BOX["plg-mi"])
    used = attack(how).queries
    assert used == 3 * 6 * (2 * 5 + 4)
    less = cut_to(how, used // 2, prior=OpenPrior(), classes=3, used=used)
    assert less is not None and less.candidates == 3 and less.pool == how.pool
    assert attack(less).queries == used // 2


# With networks


@pytest.fixture(scope="module")
def style() -> StylePrior:
    public = torch.randint(0, 256, (12, 1, 16, 16), generator=generator(0)).to(torch.uint8)
    training = PriorTraining(steps=2, batch_size=4, width=2, z_dim=6, w_dim=5)
    return train_prior(public, training=training, rng=generator(1))


@pytest.fixture(scope="module")
def network() -> Target:
    saved = build_classifier(
        "resnet", classes=("a", "b"), image_shape=(1, 16, 16), width=4, mean=[0.5], std=[0.25],
        rng=generator(3),
    )  # fmt: skip
    return target_of(saved, "resnet")


@pytest.mark.parametrize("name", WHITE_BOX)
def test_works_with_a_style_based_prior(name: str, style: StylePrior, network: Target) -> None:
    how = shortened(WHITE_BOX[name], crops=2)
    if isinstance(how, PlgMi):
        style = condition_on_classes(style, 2, rng=generator(4))
    labels = torch.tensor([0, 1])
    found = how.run(network, style, labels, rng=generator(0))
    assert found.images.shape == (6, 1, 16, 16) and bool(found.images.isfinite().all())
    if isinstance(how, LatentSearch):
        assert found.latents.shape == (6, 5)
    other = replace(how, batch_size=3).run(network, style, labels, rng=generator(0))
    torch.testing.assert_close(found.images, other.images, rtol=1e-3, atol=2e-3)


class TestHalvings:
    """Plug & Play gives up candidates that fall behind, and the rest goes on as if they had not been."""

    def test_rungs_are_quarters_and_halves(self) -> None:
        attack = PlugAndPlay(candidates=200, keep=50, steps=70, halvings=2)
        assert attack.rungs == [(18, 100), (17, 50), (35, 50)]
        assert attack.image_steps == 18 * 200 + 17 * 100 + 35 * 50

    def test_never_fewer_than_are_kept(self) -> None:
        attack = PlugAndPlay(candidates=30, keep=20, steps=8, halvings=3)
        assert [left for _, left in attack.rungs] == [20, 20, 20, 20]
        assert sum(steps for steps, _ in attack.rungs) == 8

    @pytest.mark.parametrize("halvings", [0, 1, 3])
    def test_counts_the_images_that_are_sent(self, halvings: int) -> None:
        attack = PlugAndPlay(**SEARCH, halvings=halvings, halving_crops=2)
        target = toy_target(Nearest())
        made = run_attack(attack, target, FlatPrior(), LABELS, rng=generator(0))
        before = [attack.candidates, *(left for _, left in attack.rungs)]
        looked = sum(2 * b for b, a in pairwise(before) if a < b)
        crops = before[-1] * attack.crops
        assert made.queries == attack.pool + len(LABELS) * (attack.image_steps + looked + crops)

    def test_remaining_candidates_are_unchanged(self) -> None:
        # Without memory in the optimiser, a search in two parts is the search in one.
        whole = replace(PlugAndPlay(**SEARCH), betas=(0.0, 0.0), keep=6)
        target = toy_target(Nearest())
        alone = run_attack(whole, target, FlatPrior(), LABELS, rng=generator(0))
        halved = replace(whole, halvings=1, keep=3)
        fewer = run_attack(halved, target, FlatPrior(), LABELS, rng=generator(0))
        assert len(fewer) == len(alone) // 2
        for latent, label in zip(fewer.latents, fewer.labels, strict=True):
            gaps = (alone.latents[alone.labels == label] - latent).abs().amax(1)
            assert float(gaps.min()) < 1e-5

    def test_drops_the_less_confident_half(self) -> None:
        uncropped: dict[str, Any] = {
            "crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0), "crop_flip": False,
        }  # fmt: skip
        still = PlugAndPlay(**{**SEARCH, "steps": 4}, **uncropped, learning_rate=1e-9)
        attack = replace(still, halvings=1)
        target = toy_target(Nearest())
        made = run_attack(attack, target, FlatPrior(), LABELS, rng=generator(0))
        whole = replace(still, keep=6)
        every = run_attack(whole, target, FlatPrior(), LABELS, rng=generator(0))
        for label in LABELS:
            sure = every.latents[every.labels == label][:3]
            kept = made.latents[made.labels == label]
            assert torch.allclose(kept.sort(0).values, sure.sort(0).values, atol=1e-6)

    @pytest.mark.parametrize("batch_size", [1, 5, 64])
    def test_results_do_not_depend_on_the_batch_size(self, batch_size: int) -> None:
        attack = PlugAndPlay(**SEARCH, halvings=2)
        made = [
            run_attack(replace(attack, batch_size=n), TARGET, FlatPrior(), LABELS, rng=generator(1))
            for n in (16, batch_size)
        ]
        assert torch.allclose(made[0].images, made[1].images, atol=1e-5)


class TestFaster:
    """Half precision and compiled steps find what plain ones find."""

    def test_half_precision_descends_at_each_step(
        self, style: StylePrior, network: Target, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Autocast's cache once held the latents as they were at the first step.
        monkeypatch.setattr("inversight.core.device.fast_dtype", lambda device: torch.bfloat16)
        ends = {"candidates": 8, "keep": 8, "crops": 1, "pool": 20, "truncation": 1.0}
        plain = PlugAndPlay(**ends, steps=60, learning_rate=0.05)
        labels = torch.tensor([0, 1])

        def left(attack: PlugAndPlay) -> float:
            made = run_attack(attack, network, style, labels, rng=generator(0))
            return float(poincare(network(style(made.latents)), made.labels).mean())

        begun, full = left(replace(plain, steps=1)), left(plain)
        assert abs(left(replace(plain, half=True)) - full) < 0.05 * (begun - full)

    def test_without_a_compiler_results_are_the_same(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fails(*_: object, **__: object) -> Callable[[Tensor], Tensor]:
            def call(x: Tensor) -> Tensor:
                raise torch._dynamo.exc.TorchDynamoException("no C++ compiler")

            return call

        monkeypatch.setattr(torch, "compile", fails)
        plain = PlugAndPlay(**SEARCH)
        target = toy_target(Nearest())
        made = [
            run_attack(replace(plain, compiled=on), target, FlatPrior(), LABELS, rng=generator(0))
            for on in (False, True)
        ]
        assert torch.equal(made[0].images, made[1].images)
        assert made[0].queries == made[1].queries

    def test_compiled_batches_are_padded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[int] = []

        def record(function: Callable[[Tensor], Tensor], **_: object) -> Callable[[Tensor], Tensor]:
            def call(x: Tensor) -> Tensor:
                seen.append(len(x))
                return function(x)

            return call

        monkeypatch.setattr(torch, "compile", record)
        plain = PlugAndPlay(**{**SEARCH, "steps": 6}, halvings=1)
        target = toy_target(Nearest())
        made = [
            run_attack(replace(plain, compiled=on), target, FlatPrior(), LABELS, rng=generator(0))
            for on in (False, True)
        ]
        assert set(seen) == {plain.batch_size}
        assert torch.equal(made[0].latents, made[1].latents)
        assert made[0].queries == made[1].queries
