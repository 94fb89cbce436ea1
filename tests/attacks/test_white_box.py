"""The white-box attacks: a table of attack and known answer, and the promises that all of them make."""

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
    Gmi,
    IfGmi,
    KedMi,
    LatentSearch,
    Lomma,
    MiFace,
    Mirror,
    PlgMi,
    PlugAndPlay,
    Reconstructions,
    Vmi,
    run_attack,
)
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
from tests.attacks.toy import (
    CLASSES,
    LABELS,
    SIZE,
    FlatPrior,
    Nearest,
    NearestByLayer,
    OpenPrior,
    least_on_a_grid,
    levels,
    toy_target,
)

ENDS: dict[str, Any] = {"candidates": 6, "keep": 3, "crops": 4, "batch_size": 16}
SEARCH = {**ENDS, "pool": 400, "steps": 60}
TARGET = toy_target(NearestByLayer())
LESS_SURE = toy_target(NearestByLayer(height=3.0))
"""Its cross-entropy is curved enough around the best for a search by noisy samples."""

STILL = Transformations(least_area=1.0, brightness=0.0, contrast=0.0, degrees=0.0)
"""The toy's answer is known for images as they are."""

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
    """An attack, what it descends, how far its latents may go, and the images that it may send."""

    attack: Any
    loss: Loss
    queries: int
    reach: float = 4.0
    tolerance: float = 0.03
    target: Target = TARGET


TABLE = {
    "plug-and-play": Row(
        PlugAndPlay(**SEARCH, learning_rate=0.05),
        lambda x, y: poincare(TARGET(x), y),
        400 + 3 * 6 * (60 + 4),
    ),
    "gmi": Row(
        Gmi(**SEARCH, learning_rate=0.03, identity_weight=30.0, bound=2.0),
        lambda x, y: 30.0 * identity(x, y) - real(x),
        400 + 3 * 6 * (60 + 4),
        reach=2.0,
    ),
    "mirror": Row(
        Mirror(**SEARCH, learning_rate=0.1, slope=1.0, bound=1.2),
        identity,
        400 + 3 * 6 * (60 + 4),
        reach=1.2,
        tolerance=0.04,  # the clip is at the pool's deviations, which are about 1
    ),
    "lomma": Row(
        Lomma(**SEARCH, learning_rate=2e-4, bound=2.0, surrogates=0),
        lomma_loss,
        2 * 400 + 3 * 6 * (60 + 4),
        reach=2.0,
    ),
    "if-gmi": Row(
        IfGmi(**SEARCH, layer_steps=20, learning_rate=0.02),
        lambda x, y: poincare(TARGET(x), y),
        400 + 3 * 6 * (60 + 20 + 4),
    ),
    "plg-mi": Row(
        PlgMi(**SEARCH, learning_rate=0.05, transform=STILL, crop_flip=False),
        lambda x, y: max_margin(TARGET(x), y),
        3 * 6 * (2 * 60 + 4),
    ),
    "ked-mi": Row(
        KedMi(**{**SEARCH, "steps": 200}, samples=4, learning_rate=0.2, start_log_variance=-2.0),
        lambda x, y: 100.0 * cross_entropy(LESS_SURE(x), y) + F.softplus(-real(x)),
        3 * (200 * 4 + 6 * 4),
        target=LESS_SURE,
    ),
    "vmi": Row(
        Vmi(**{**SEARCH, "steps": 200}, samples=8, learning_rate=0.1),
        lambda x, y: cross_entropy(LESS_SURE(x), y),
        3 * (200 * 8 + 6 * 4),
        tolerance=0.06,
        target=LESS_SURE,
    ),
    "mi-face": Row(
        MiFace(**ENDS, steps=100, jitter=0, learning_rate=0.1),
        lambda x, y: cross_entropy(LESS_SURE(x), y),
        3 * 6 * (100 + 4),
        target=LESS_SURE,
    ),
}
EACH = pytest.mark.parametrize("row", TABLE.values(), ids=TABLE)


def attack(how: Attack, target: Target = TARGET, seed: int = 0) -> Reconstructions:
    return run_attack(how, target, OpenPrior(), LABELS, rng=generator(seed))


def short(row: Row, **changes: Any) -> Any:
    """The row's attack with few steps, from a small pool."""
    fewer = {"steps": 5, "pool": 40, "layer_steps": 3}
    fewer = {name: value for name, value in fewer.items() if hasattr(row.attack, name)}
    return replace(row.attack, **fewer, **changes)


def test_every_attack_with_gradients_is_in_the_table() -> None:
    assert set(TABLE) == {n for n, kind in CLASSES.items() if kind().access is Access.WHITE_BOX}
    assert all(isinstance(row.attack, CLASSES[name]) for name, row in TABLE.items())


@EACH
@pytest.mark.parametrize("seed", [0, 1])
def test_reaches_the_known_answer_within_its_budget(row: Row, seed: int) -> None:
    found = attack(row.attack, row.target, seed=seed)
    assert found.queries == row.queries
    for label in range(3):
        best = least_on_a_grid(
            lambda x, label=label: row.loss(x, torch.full((len(x),), label)), row.reach
        )
        mine = levels(found.images[found.labels == label])
        torch.testing.assert_close(mine, best.expand(3, -1), atol=row.tolerance, rtol=0)


@EACH
def test_the_seed_decides(row: Row) -> None:
    how = short(row)
    one, again, other = attack(how), attack(how), attack(how, seed=1)
    assert torch.equal(one.images, again.images) and torch.equal(one.losses, again.losses)
    assert not torch.equal(one.images, other.images)


@EACH
@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_any_batch_size_gives_the_same(row: Row, batch_size: int) -> None:
    one, other = attack(short(row)), attack(short(row, batch_size=batch_size))
    torch.testing.assert_close(one.images, other.images, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(one.losses, other.losses, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", sorted(TABLE.keys() - {"mi-face"}))
def test_classes_do_not_depend_on_each_other(name: str) -> None:
    row = TABLE[name]
    among = attack(short(row))
    alone = run_attack(short(row), TARGET, OpenPrior(), torch.tensor([1]), rng=generator(0))
    torch.testing.assert_close(alone.images, among.images[among.labels == 1], rtol=1e-4, atol=1e-5)


@EACH
def test_the_shape_of_what_it_returns(row: Row) -> None:
    told: list[tuple[int, int]] = []
    found = short(row).run(
        TARGET, OpenPrior(), LABELS, rng=generator(0),
        progress=lambda done, total, note="": told.append((done, total)),
    )  # fmt: skip
    assert isinstance(row.attack, Attack)
    assert found.images.shape == (9, 1, SIZE, SIZE)
    assert found.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert not found.latents.requires_grad and not found.images.requires_grad
    for label in range(3):
        losses = found.losses[found.labels == label]
        assert bool((losses[1:] >= losses[:-1]).all() and (losses >= 0).all())
    assert told[-1][0] == told[-1][1]
    assert [d for d, _ in told] == sorted(d for d, _ in told)


@EACH
@pytest.mark.parametrize("access", [Access.SCORES, Access.LABEL])
def test_needs_white_box_access(row: Row, access: Access) -> None:
    module = Nearest()
    with pytest.raises(InputError, match="needs white-box access"):
        row.attack.run(toy_target(module).restricted(access), OpenPrior(), LABELS, rng=generator(0))
    assert module.images == 0


@EACH
def test_contradicting_settings(row: Row) -> None:
    with pytest.raises(InputError, match="keep <= candidates"):
        attack(replace(row.attack, keep=7))


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
def test_a_missing_capability_is_one_line(
    name: str, prior: Prior, module: type[Nearest], message: str
) -> None:
    network = module()
    with pytest.raises(InputError) as caught:
        TABLE[name].attack.run(toy_target(network), prior, LABELS, rng=generator(0))
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert "--attack" in str(caught.value)
    assert network.images == 0  # said before anything is sent


def test_the_defaults_are_the_published_ones() -> None:
    gmi, lomma, ked, vmi = Gmi(), Lomma(), KedMi(), Vmi()
    assert (gmi.learning_rate, gmi.momentum, gmi.steps) == (2e-2, 0.9, 1500)
    assert (gmi.identity_weight, gmi.bound, gmi.objective) == (100.0, 1.0, "cross-entropy")
    assert (lomma.objective, lomma.feature_weight, lomma.steps) == ("logit", 1.0, 1500)
    assert (lomma.surrogates, lomma.temperature, lomma.training.epochs) == (3, 1.0, 20)
    assert (ked.learning_rate, ked.identity_weight, ked.steps) == (2e-2, 100.0, 1500)
    assert (vmi.learning_rate, vmi.momentum, vmi.divergence_weight) == (1e-4, 0.9, 1e-3)
    mirror, halves, face = Mirror(), IfGmi(), MiFace()
    assert (mirror.learning_rate, mirror.bound, mirror.truncation) == (0.2, 1.0, 0.7)
    assert (halves.layers, halves.layer_steps, halves.radius) == (4, 25, 1000.0)
    assert (halves.steps, halves.objective, halves.betas) == (70, "poincare", (0.1, 0.1))
    assert (face.statistics_weight, face.jitter, face.group) == (10.0, 2, 256)
    plg = PlgMi()
    assert (plg.learning_rate, plg.steps, plg.transformations) == (0.1, 600, 2)
    assert (plg.objective, plg.transform.least_area, plg.transform.degrees) == (
        "max-margin",
        0.8,
        5,
    )
    assert (face.steps, face.learning_rate, face.variation_weight) == (2000, 0.05, 2.5e-5)


def test_a_prior_of_other_classes(style: StylePrior, network: Target) -> None:
    how = short(TABLE["plg-mi"])
    labels = torch.tensor([0, 1])
    with pytest.raises(InputError, match="--arm pseudo-labels") as caught:
        how.run(network, style, labels, rng=generator(0))
    assert "\n" not in str(caught.value)
    three = condition_on_classes(style, 3, rng=generator(4))
    with pytest.raises(InputError, match="the target's 2 classes, but it is on 3"):
        how.run(network, three, labels, rng=generator(0))
    with pytest.raises(InputError, match="judges images with their classes"):
        short(TABLE["gmi"]).run(network, three, labels, rng=generator(0))


def test_random_transformations_are_drawn_in_every_step() -> None:
    """They change what is found, alike in any batch, and mirror only where the crops do."""
    row = TABLE["plg-mi"]
    still = attack(short(row))
    moving = short(row, transform=Transformations())
    one, other = attack(moving), attack(replace(moving, batch_size=4))
    assert not torch.allclose(one.images, still.images, atol=1e-4)
    torch.testing.assert_close(one.images, other.images, rtol=1e-3, atol=1e-4)
    # Mirrored, the halves change places and class a (dark, grey) is pulled to both.
    assert not torch.allclose(attack(short(row, crop_flip=True)).latents, still.latents, atol=1e-3)


def test_samples_of_a_class_are_not_sent() -> None:
    """Cut down to a budget the candidates are fewer, whatever is sampled of a class."""
    how = short(TABLE["plg-mi"])
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


@EACH
def test_works_with_a_style_based_prior(row: Row, style: StylePrior, network: Target) -> None:
    how = replace(short(row), crops=2)
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

    def test_those_who_stay_are_what_they_would_have_been(self) -> None:
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

    def test_gives_up_the_less_sure_half(self) -> None:
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
    def test_batches_change_nothing(self, batch_size: int) -> None:
        attack = PlugAndPlay(**SEARCH, halvings=2)
        made = [
            run_attack(replace(attack, batch_size=n), TARGET, FlatPrior(), LABELS, rng=generator(1))
            for n in (16, batch_size)
        ]
        assert torch.allclose(made[0].images, made[1].images, atol=1e-5)


class TestFaster:
    """Half precision and compiled steps find what plain ones find."""

    def test_half_moves_on_at_each_step(
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

    def test_where_nothing_can_be_compiled_steps_go_on_as_they_are(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
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

    def test_compiled_rows_are_filled_up_and_cut_off(self, monkeypatch: pytest.MonkeyPatch) -> None:
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
