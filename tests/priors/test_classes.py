"""Games with classes: how a prior without them is extended, what the networks get, what they learn."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from inversight.core.errors import InputError
from inversight.core.seeding import generator
from inversight.priors import StylePrior
from inversight.priors.architecture import Architecture
from inversight.priors.classes import add_class_logits, condition_on_classes
from inversight.priors.game import SOFT_LABELS, Game
from tests.priors.tiny import (
    PUBLIC,
    PUBLISHED,
    REAL,
    SHAPE,
    FixedGuidance,
    Stopped,
    assert_equal,
    assert_same,
    batch,
    new_game,
    play,
    state,
    stop_at,
    tiny,
)

CLASSES = 3
LABELS = F.one_hot(torch.arange(len(PUBLIC)) % CLASSES, CLASSES).float()
Way = Callable[[StylePrior], StylePrior]


def conditioned(prior: StylePrior) -> StylePrior:
    return condition_on_classes(prior, CLASSES, rng=generator(5))


def aware(prior: StylePrior) -> StylePrior:
    return add_class_logits(prior, CLASSES)


EITHER = pytest.mark.parametrize("way", [conditioned, aware])


def game_of(prior: StylePrior, **changes: Any) -> Game:
    game = Game(prior.raw.architecture, tiny(**changes))
    game.start_from(prior)
    game.control.p = 0.5
    return game


# Taking over a prior without classes


def test_images_are_the_same_for_every_class_at_first(prior: StylePrior) -> None:
    found = conditioned(prior)
    z = torch.randn(8, 6, generator=generator(2))
    for name in ("average", "raw"):
        old, new = getattr(prior, name), getattr(found, name)
        for one in torch.eye(CLASSES):
            w = new.mapping(z, one.expand(8, -1))
            torch.testing.assert_close(w, old.mapping(z))
            torch.testing.assert_close(new(w, noise="none"), old(old.mapping(z), noise="none"))
        assert torch.equal(new.mapping.w_avg, old.mapping.w_avg)
    assert torch.equal(found.average.mapping.embed.weight, found.raw.mapping.embed.weight)


def test_logits_are_the_same_for_every_class_at_first(prior: StylePrior) -> None:
    before = prior.critic(REAL)
    critic = conditioned(prior).critic
    for one in torch.eye(CLASSES):
        torch.testing.assert_close(critic(REAL, one.expand(len(REAL), -1)), before)
    critic = aware(prior).critic
    torch.testing.assert_close(critic(REAL), before, rtol=1e-4, atol=1e-5)
    classes = critic.outputs(REAL).softmax(1)
    torch.testing.assert_close(classes, torch.full_like(classes, 1 / CLASSES))


def test_class_vectors_differ(prior: StylePrior) -> None:
    found = conditioned(prior)
    for mapping in (found.raw.mapping, found.critic.mapping):
        vectors = mapping.embed(torch.eye(CLASSES))
        assert float(torch.pdist(vectors).min()) > 0.1 * float(vectors.norm(dim=1).mean())
    other = condition_on_classes(prior, CLASSES, rng=generator(6))
    assert not torch.equal(other.raw.mapping.embed.weight, found.raw.mapping.embed.weight)


def test_a_critic_with_class_logits_can_be_given_others(prior: StylePrior) -> None:
    first = aware(prior)
    assert add_class_logits(first, CLASSES) is first
    c = torch.tensor([[0.0, 1.0]]).expand(len(REAL), -1)
    for further in (add_class_logits(first, 5), prior):
        critic = condition_on_classes(further, 2, rng=generator(1)).critic
        torch.testing.assert_close(critic(REAL, c), prior.critic(REAL), rtol=1e-4, atol=1e-5)


@EITHER
def test_the_prior_is_not_changed(prior: StylePrior, way: Way) -> None:
    before = {k: v.clone() for k, v in prior.critic.state_dict().items()}
    play(game_of(way(prior)), class_labels=LABELS, steps=2, fresh=False)
    assert_same(before, prior.critic.state_dict())


def test_rejects_two_uses_of_classes() -> None:
    with pytest.raises(ValueError, match="expected c_dim or critic_classes, found both"):
        Architecture(size=8, c_dim=2, critic_classes=2)


# The game


def test_the_conditioned_logit_is_linear_in_the_class_vector(prior: StylePrior) -> None:
    critic = conditioned(prior).critic
    rows = torch.randn(len(LABELS), critic.b4.out.weight.shape[0], generator=generator(3))
    vectors = critic.mapping.embed(LABELS)
    vectors = vectors / vectors.square().mean(1, keepdim=True).sqrt()
    expected = (rows * vectors).sum(1) / math.sqrt(rows.shape[1])
    torch.testing.assert_close(critic.judgement(rows, LABELS), expected)


@pytest.mark.parametrize("new_latents", [False, True])
def test_both_networks_get_the_class(prior: StylePrior, new_latents: bool) -> None:
    """The discriminator gets the labels of real images, and those that generated images are made for."""
    game = game_of(conditioned(prior), new_latents=new_latents)
    critic, mapping = game.discriminator, game.generator.mapping
    with (
        patch.object(critic, "judgement", wraps=critic.judgement) as judged,
        patch.object(mapping, "forward", wraps=mapping.forward) as mapped,
    ):
        game.step(batch(0, labels=LABELS[:4]))
    real, *generated = (call.args[1] for call in judged.call_args_list)
    made = [call.args[1] for call in mapped.call_args_list]
    first, second = made if new_latents else made * 2
    assert torch.equal(real, LABELS[:4])
    assert torch.equal(generated[0], first) and torch.equal(generated[1], second)
    assert len(generated) == 2 and torch.equal(first, second) != new_latents


def test_classes_are_drawn_uniformly(prior: StylePrior) -> None:
    game = game_of(conditioned(prior))
    assert next(game.samples(4, generator(0))).shape == (4, *SHAPE)
    drawn = game._classes(3000, generator(0))
    assert drawn is not None and torch.equal(drawn.sum(1), torch.ones(3000))
    assert float((drawn.mean(0) - 1 / 3).abs().max()) < 0.04  # 4.6 deviations
    assert game_of(aware(prior))._classes(3, generator(0)) is None


def test_guidance_gets_the_classes_of_the_images(prior: StylePrior) -> None:
    guidance = FixedGuidance(torch.zeros_like)
    for start in (conditioned(prior), aware(prior), prior):
        game_of(start)._step_generator(batch(0, labels=LABELS[:4]), guidance)
    first, second, third = guidance.batches
    assert first.classes is not None and first.classes.shape == (4,)
    assert first.class_logits is second.classes is third.classes is third.class_logits is None
    assert second.class_logits is not None
    assert second.class_logits(REAL[:4] / 2 + 0.5).shape == (4, CLASSES)


def test_soft_labels_add_their_cross_entropy(
    prior: StylePrior, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The critic's gradient with them, less that without: the cross-entropy's, by hand."""
    soft = torch.softmax(torch.randn(4, CLASSES, generator=generator(8)), 1)
    monkeypatch.setattr(Game, "_apply", lambda *_: None)
    gradients = []
    for labels in (soft, None):
        game = game_of(aware(prior), r1=0.0)
        game.control.p = 0.0
        game._step_discriminators(batch(0, labels=labels))
        gradients.append([p.grad for p in game.discriminator.parameters()])
    critic = game.discriminator
    log_p = critic.outputs(REAL[:4]).log_softmax(1)
    loss = -SOFT_LABELS * (soft * log_p).sum(1).mean()
    expected = torch.autograd.grad(loss, list(critic.parameters()))
    for with_labels, without, one in zip(*gradients, expected, strict=True):
        assert with_labels is not None and without is not None and one is not None
        torch.testing.assert_close(with_labels - without, one, rtol=1e-3, atol=1e-5)


def test_the_critic_learns_the_soft_labels(prior: StylePrior) -> None:
    """Images are dark or bright, and the labels say so with 0.8."""
    bright = torch.arange(60) % 2
    data = (40 + 160 * bright)[:, None, None, None].expand(60, *SHAPE).to(torch.uint8)
    soft = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.1, 0.8]])[bright]
    game = game_of(aware(prior), learning_rate=3e-2, ada_images=1e9)
    game.control.p = 0.0
    play(game, data, class_labels=soft, steps=50, fresh=False)
    with torch.no_grad():
        found = game.discriminator.outputs(data.float() / 127.5 - 1.0).softmax(1)
    torch.testing.assert_close(found, soft, atol=0.15, rtol=0)


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize(
    ("way", "stop"), [(None, 1), (None, 3), (None, 5), (conditioned, 2), (aware, 2)]
)
def test_resumes_bit_by_bit(
    prior: StylePrior, tmp_path: Path, way: Way | None, stop: int, published: bool
) -> None:
    """A training from new weights without classes, and both kinds with classes."""
    changes = PUBLISHED if published else {}
    options = {"class_labels": LABELS, "fresh": False, "steps": 4} if way else {}
    whole, part, resumed = (
        game_of(way(prior), **changes) if way else new_game(**changes) for _ in range(3)
    )
    log = play(whole, **options)
    with pytest.raises(Stopped):
        play(part, **options, progress=stop_at(stop))
    # The row of the step at which progress is called is in the log already.
    file = tmp_path / "checkpoint.safetensors"
    part.save(file, {"log": log[:stop], "guidance": {}})
    assert play(resumed, **options, checkpoint=file) == log
    assert_same(state(whole), state(resumed))
    assert (whole.path_length.mean > 0) == published


@pytest.mark.parametrize("labels", [None, LABELS[:5], LABELS[:, :2]])
def test_rejects_labels_of_another_shape(prior: StylePrior, labels: Tensor | None) -> None:
    with pytest.raises(ValueError, match=r"expected class_labels of the shape \(24, 3\), found"):
        play(game_of(conditioned(prior)), class_labels=labels, steps=1, fresh=False)


def test_a_critic_with_class_logits_trains_without_labels(prior: StylePrior) -> None:
    assert len(play(game_of(aware(prior)), steps=1, fresh=False)) == 1


# As attacks see it


def test_samples_of_a_class(prior: StylePrior) -> None:
    found = conditioned(prior)
    weight = found.average.mapping.fc0.weight
    weight.copy_(torch.randn(weight.shape, generator=generator(4)))
    assert found.num_classes == CLASSES
    labels = torch.tensor([2, 0, 2])
    w = found.sample_of(labels, rng=generator(2))
    z = torch.randn(3, 6, generator=generator(2))
    torch.testing.assert_close(w, found.average.mapping(z, torch.eye(CLASSES)[labels]))
    other = found.sample_of(torch.tensor([1, 0, 1]), rng=generator(2))
    assert torch.equal(other[1], w[1]) and not torch.allclose(other[0], w[0])
    with pytest.raises(InputError, match=r"expected labels in 0\.\.2, found 0\.\.3"):
        found.sample_of(torch.tensor([0, 3]), rng=generator(2))
    with pytest.raises(InputError, match="--arm pseudo-labels"):
        prior.sample_of(labels, rng=generator(2))


def test_realness(prior: StylePrior) -> None:
    shown = REAL / 2 + 0.5
    found = aware(prior)
    logits = found.critic.outputs(REAL, alone=True)
    torch.testing.assert_close(found.realness(shown), logits.exp().sum(1).log())
    torch.testing.assert_close(found.realness(shown), prior.realness(shown), rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="judges images with their classes"):
        conditioned(prior).realness(shown)


@EITHER
def test_reads_back_what_it_saved(prior: StylePrior, tmp_path: Path, way: Way) -> None:
    saved = way(prior)
    saved.save(tmp_path / "prior.safetensors")
    again = StylePrior.load(tmp_path / "prior.safetensors")
    assert again.critic.architecture == saved.critic.architecture
    assert_equal(again, saved)
    w = saved.sample(5, rng=generator(2))
    assert torch.equal(again(again.sample(5, rng=generator(2))), saved(w))
    assert again.num_classes == saved.num_classes
