"""White-box attacks: what they need of a prior, and Plug & Play's halvings and faster steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from inversight.attacks import Attack, PlgMi, PlugAndPlay, Reconstructions, run_attack
from inversight.attacks.gradient_search import LatentSearch
from inversight.attacks.objectives import poincare
from inversight.attacks.workload import cut_to
from inversight.core.errors import InputError
from inversight.core.seeding import generator
from inversight.models.networks import build_classifier
from inversight.models.target import Target, target_of
from inversight.models.transformations import Transformations
from inversight.priors import StylePrior, train_prior
from inversight.priors.base import Prior
from inversight.priors.classes import condition_on_classes
from inversight.settings import PriorTraining
from tests.attacks.table import SEARCH, WHITE_BOX, shortened
from tests.attacks.toy import LABELS, FlatPrior, Nearest, NearestByLayer, OpenPrior, toy_target

SHORT_PLG = shortened(WHITE_BOX["plg-mi"])
TWO = torch.tensor([0, 1])


def attack(how: Attack, prior: Prior | None = None, seed: int = 0) -> Reconstructions:
    target = toy_target(NearestByLayer())
    return run_attack(how, target, prior or OpenPrior(), LABELS, rng=generator(seed))


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
    three = condition_on_classes(style, 3, rng=generator(4))
    for how, prior, message in (
        (SHORT_PLG, style, "classes, but it is on none; .*--arm pseudo-labels"),
        (SHORT_PLG, three, "the target's 2 classes, but it is on 3"),
        (shortened(WHITE_BOX["gmi"]), three, "judges images with their classes"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            how.run(network, prior, TWO, rng=generator(0))
        assert "\n" not in str(caught.value)


def test_random_transformations_are_drawn_in_every_step() -> None:
    """They change what is found, alike in any batch, and mirror only where the crops do."""
    moving = replace(SHORT_PLG, transform=Transformations())
    still, one, other = attack(SHORT_PLG), attack(moving), attack(replace(moving, batch_size=4))
    assert not torch.allclose(one.images, still.images, atol=1e-4)
    torch.testing.assert_close(one.images, other.images, rtol=1e-3, atol=1e-4)
    # Mirrored, the halves change places and class a (dark, grey) is pulled to both.
    mirrored = attack(replace(SHORT_PLG, crop_flip=True))
    assert not torch.allclose(mirrored.latents, still.latents, atol=1e-3)


def test_samples_of_plg_mi_are_no_queries() -> None:
    """Cut down to a budget the candidates are fewer, whatever is sampled of a class."""
    used = attack(SHORT_PLG).queries
    assert used == 3 * 6 * (2 * 5 + 4)
    less = cut_to(SHORT_PLG, used // 2, prior=OpenPrior(), classes=3, used=used)
    assert less is not None and less.candidates == 3 and less.pool == SHORT_PLG.pool
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
    found = how.run(network, style, TWO, rng=generator(0))
    assert found.images.shape == (6, 1, 16, 16) and bool(found.images.isfinite().all())
    if isinstance(how, LatentSearch):
        assert found.latents.shape == (6, 5)
    other = replace(how, batch_size=3).run(network, style, TWO, rng=generator(0))
    torch.testing.assert_close(found.images, other.images, rtol=1e-3, atol=2e-3)


class TestHalvings:
    """Plug & Play gives up candidates that fall behind, and the rest goes on as if they had not been."""

    def test_rungs_are_quarters_and_halves(self) -> None:
        how = PlugAndPlay(candidates=200, keep=50, steps=70, halvings=2)
        assert how.rungs == [(18, 100), (17, 50), (35, 50)]
        assert how.image_steps == 18 * 200 + 17 * 100 + 35 * 50

    def test_never_fewer_than_are_kept(self) -> None:
        how = PlugAndPlay(candidates=30, keep=20, steps=8, halvings=3)
        assert [left for _, left in how.rungs] == [20, 20, 20, 20]
        assert sum(steps for steps, _ in how.rungs) == 8

    @pytest.mark.parametrize("halvings", [0, 1, 3])
    def test_counts_the_images_that_are_sent(self, halvings: int) -> None:
        how = PlugAndPlay(**SEARCH, halvings=halvings, halving_crops=2)
        before = [how.candidates, *(left for _, left in how.rungs)]
        looked = sum(2 * b for b, a in pairwise(before) if a < b)
        each = how.image_steps + looked + before[-1] * how.crops
        assert attack(how).queries == how.pool + len(LABELS) * each

    def test_remaining_candidates_are_unchanged(self) -> None:
        # Without memory in the optimiser, a search in two parts is the search in one.
        whole = PlugAndPlay(**SEARCH | {"keep": 6}, betas=(0.0, 0.0))
        alone, fewer = attack(whole), attack(replace(whole, halvings=1, keep=3))
        assert len(fewer) == len(alone) // 2
        for latent, label in zip(fewer.latents, fewer.labels, strict=True):
            gaps = (alone.latents[alone.labels == label] - latent).abs().amax(1)
            assert float(gaps.min()) < 1e-5

    def test_drops_the_less_confident_half(self) -> None:
        still = PlugAndPlay(
            **SEARCH | {"steps": 4}, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), crop_flip=False,
            learning_rate=1e-9,
        )  # fmt: skip
        made, every = attack(replace(still, halvings=1)), attack(replace(still, keep=6))
        for label in LABELS:
            sure = every.latents[every.labels == label][:3]
            kept = made.latents[made.labels == label]
            assert torch.allclose(kept.sort(0).values, sure.sort(0).values, atol=1e-6)

    @pytest.mark.parametrize("batch_size", [1, 5, 64])
    def test_results_do_not_depend_on_the_batch_size(self, batch_size: int) -> None:
        how = PlugAndPlay(**SEARCH | {"steps": 20}, halvings=2)
        one, other = attack(how, seed=1), attack(replace(how, batch_size=batch_size), seed=1)
        assert torch.allclose(one.images, other.images, atol=1e-5)


Function = Callable[[Tensor], Tensor]


class TestFaster:
    """Half precision and compiled steps find what plain ones find."""

    def test_half_precision_descends_at_each_step(
        self, style: StylePrior, network: Target, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Autocast's cache once held the latents as they were at the first step.
        monkeypatch.setattr("inversight.core.device.fast_dtype", lambda device: torch.bfloat16)
        ends = {"candidates": 8, "keep": 8, "crops": 1, "pool": 20, "truncation": 1.0}
        plain = PlugAndPlay(**ends, steps=60, learning_rate=0.05)

        def left(how: PlugAndPlay) -> float:
            made = run_attack(how, network, style, TWO, rng=generator(0))
            return float(poincare(network(style(made.latents)), made.labels).mean())

        begun, full = left(replace(plain, steps=1)), left(plain)
        assert abs(left(replace(plain, half=True)) - full) < 0.05 * (begun - full)

    def check_compiled(
        self,
        plain: PlugAndPlay,
        call: Callable[[Function, Tensor], Tensor],
        patch: pytest.MonkeyPatch,
    ) -> None:
        """Compiled steps, each made by ``call``, give the same as plain ones."""
        patch.setattr(torch, "compile", lambda function, **_: lambda x: call(function, x))
        one, other = attack(plain), attack(replace(plain, compiled=True))
        assert torch.equal(one.latents, other.latents) and torch.equal(one.images, other.images)
        assert one.queries == other.queries

    def test_without_a_compiler_results_are_the_same(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(function: Function, x: Tensor) -> Tensor:
            raise torch._dynamo.exc.TorchDynamoException("no C++ compiler")

        self.check_compiled(PlugAndPlay(**SEARCH | {"steps": 6}), fail, monkeypatch)

    def test_compiled_batches_are_padded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[int] = []

        def record(function: Function, x: Tensor) -> Tensor:
            seen.append(len(x))
            return function(x)

        plain = PlugAndPlay(**SEARCH | {"steps": 6}, halvings=1)
        self.check_compiled(plain, record, monkeypatch)
        assert set(seen) == {plain.batch_size}
