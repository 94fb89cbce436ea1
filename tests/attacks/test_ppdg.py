"""PPDG: what the tuning does to the generator, what the rounds are, and what is refused."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from inversight.attacks import PlugAndPlay, Ppdg, ppdg, run_attack
from inversight.attacks.ppdg import INNER
from inversight.core.errors import InputError
from inversight.core.imaging import to_uint8
from inversight.core.seeding import draw_seed, generator
from inversight.models.target import Access
from inversight.priors import Prior, StylePrior
from inversight.priors.pivotal_tuning import tune
from tests.attacks.table import TUNED, tunable
from tests.attacks.toy import LABELS, FlatPrior, NearestByLayer, toy_target
from tests.priors.tiny import convolved

CONVOLUTIONS = convolved(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))
STRONGER = replace(TUNED, inversion_steps=10, tuning_steps=25, tuning_learning_rate=0.05)
SEED = draw_seed(generator(0))


@pytest.fixture
def tunings(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What each call of the tuning got and returned."""
    calls: list[dict[str, Any]] = []

    def recorded(prior: StylePrior, loss: Any, images: Tensor, **given: Any) -> StylePrior:
        made = tune(prior, loss, images, **given)
        calls.append({"before": prior, "after": made, "images": images})
        return made

    monkeypatch.setattr(ppdg, "tune", recorded)
    return calls


def squares(one: Tensor, other: Tensor) -> Tensor:
    """Mean squared differences (N, M) of images (N, ...) in [0, 1] and (M, ...) uint8."""
    pairs = one[:, None] - other[None].float() / 255
    return pairs.flatten(2).square().mean(2)


def test_a_tuned_generator_draws_the_best_of_round_1(tunings: list[dict[str, Any]]) -> None:
    target, prior = CONVOLUTIONS, tunable()
    run_attack(STRONGER, target, prior, LABELS, rng=generator(0))
    first = STRONGER.inner.run(target, prior, LABELS, rng=generator(SEED, "first"))
    assert len(tunings) == len(LABELS)
    w = prior.sample(300, rng=generator(9))
    for label, call in zip(LABELS, tunings, strict=True):
        images, before, after = call["images"], call["before"], call["after"]
        assert torch.equal(images, to_uint8(first.images[first.labels == label][:2]))
        at_pivots = [squares(p(p.pivots), images).diagonal().mean() for p in (before, after)]
        assert float(at_pivots[1]) < 0.7 * float(at_pivots[0])
        # Images like them have become more likely.
        sampled = [squares(p(w), images).sort(dim=0).values[:30].mean() for p in (before, after)]
        assert float(sampled[1]) < float(sampled[0])


def test_without_tuning_round_2_is_the_attack_itself() -> None:
    target, prior, still = CONVOLUTIONS, tunable(), replace(TUNED, tuning_steps=0)
    found = run_attack(still, target, prior, LABELS, rng=generator(0))
    for label in LABELS:
        rng = generator(SEED, "second", int(label))
        alone = still.inner.run(target, prior, label[None], rng=rng)
        mine = found.labels == label
        assert torch.equal(found.images[mine], alone.images)
        assert torch.equal(found.losses[mine], alone.losses)
    changed = run_attack(TUNED, target, prior, LABELS, rng=generator(0))
    assert not torch.allclose(changed.images, found.images, atol=1e-3)


def test_the_prior_stays_as_it_was_and_no_tuned_generator_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prior, alive = tunable(), list[weakref.ref[nn.Module]]()
    before = {k: v.clone() for k, v in prior.average.state_dict().items()}

    def watched(*given: Any, **options: Any) -> StylePrior:
        gc.collect()
        assert all(one() is None for one in alive)
        made = tune(*given, **options)
        alive.append(weakref.ref(made.average))
        return made

    monkeypatch.setattr(ppdg, "tune", watched)
    run_attack(TUNED, CONVOLUTIONS, prior, LABELS, rng=generator(0))
    gc.collect()
    assert len(alive) == len(LABELS) and all(one() is None for one in alive)
    assert all(torch.equal(v, before[k]) for k, v in prior.average.state_dict().items())


SHORT: dict[str, Any] = {"candidates": 3, "keep": 2, "crops": 2, "steps": 2}
MORE: dict[str, Any] = {
    "plug-and-play": {"pool": 20, "halvings": 1}, "if-gmi": {"pool": 20, "layer_steps": 2},
    "lomma": {"pool": 20, "surrogates": 0}, "ked-mi": {"samples": 3}, "vmi": {"samples": 3},
}  # fmt: skip


@pytest.mark.parametrize("name", INNER)
def test_every_attack_in_latents_can_be_the_rounds(name: str) -> None:
    around = {"class": name, **SHORT, **MORE.get(name, {"pool": 20})}
    how, prior = replace(TUNED, around=around), tunable(classes=3 if name == "plg-mi" else 0)
    found = run_attack(how, CONVOLUTIONS, prior, LABELS, rng=generator(0))
    assert found.labels.tolist() == [0, 0, 1, 1, 2, 2] and bool(found.images.isfinite().all())
    assert found.queries == how.workload(prior).queries(3)


@pytest.mark.parametrize(
    ("changes", "prior", "message"),
    [
        (
            {"around": {"class": "cma-es"}},
            tunable(),
            "around: expected a white-box attack .* CmaEs",
        ),
        ({"around": {"class": "mi-face"}}, tunable(), "that searches the prior's .* found MiFace"),
        ({"around": {"class": "ppdg"}}, tunable(), "such as plug-and-play, gmi, .* found Ppdg"),
        ({"around": {"class": "miror"}}, tunable(), "around miror: .* did you mean mirror"),
        ({"around": {"class": "mirror", "crop": 3}}, tunable(), "unknown setting crop; .* crops"),
        ({"around": {"class": "gmi"}}, tunable(classes=3), "Gmi needs a critic that judges"),
        ({"images": 4}, tunable(), "images <= keep .* found images=4, keep=3"),
        ({}, FlatPrior(), "Ppdg needs a prior whose generator it can tune, which FlatPrior is not"),
    ],
)
def test_refuses_what_cannot_be_tuned_or_has_no_gradients(
    changes: dict[str, Any], prior: Prior, message: str
) -> None:
    module = NearestByLayer()
    with pytest.raises(InputError, match=message) as caught:
        replace(TUNED, **changes).run(toy_target(module), prior, LABELS, rng=generator(0))
    assert "\n" not in str(caught.value) and module.images == 0


def test_refuses_a_black_box() -> None:
    with pytest.raises(InputError, match="Ppdg needs white-box access"):
        TUNED.run(CONVOLUTIONS.restricted(Access.SCORES), tunable(), LABELS, rng=generator(0))


def test_its_batches_are_those_of_its_rounds() -> None:
    inner = Ppdg(batch_size=7, around={"class": "plug-and-play", "batch_size": 9}).inner
    assert isinstance(inner, PlugAndPlay) and inner.batch_size == 7
