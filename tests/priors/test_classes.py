"""Games that know classes: what is taken over, what the players are told, what they learn."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from inversight.core.errors import InputError
from inversight.core.seeding import generator
from inversight.priors import Conditional, StylePrior, train_prior
from inversight.priors.architecture import Architecture
from inversight.priors.classes import add_class_logits, condition_on_classes
from inversight.priors.game import SOFT_LABELS, Game, GeneratedBatch, Microbatch
from inversight.priors.training import run_game
from tests.priors.fixed_guidance import FixedGuidance
from tests.priors.test_training import PUBLISHED, SHAPE, assert_same, public, state, tiny

CLASSES = 3
LABELS = F.one_hot(torch.arange(20) % CLASSES, CLASSES).float()
Way = Callable[[StylePrior], StylePrior]


def with_classes(prior: StylePrior) -> StylePrior:
    return condition_on_classes(prior, CLASSES, rng=generator(5))


def aware(prior: StylePrior) -> StylePrior:
    return add_class_logits(prior, CLASSES)


EITHER = pytest.mark.parametrize("way", [with_classes, aware])


@pytest.fixture(scope="module")
def prior() -> StylePrior:
    return train_prior(public(), training=tiny(), rng=generator(1))


def game_of(prior: StylePrior, **changes: object) -> Game:
    game = Game(image_shape=SHAPE, training=tiny(**changes), architecture=prior.raw.architecture)
    game.start_from(prior.raw, prior.average, prior.critic, 0.5)
    return game


def images() -> Tensor:
    return public().float() / 127.5 - 1.0


# Taking over a prior without classes


def test_images_are_the_same_for_every_class_at_first(prior: StylePrior) -> None:
    found = with_classes(prior)
    z = torch.randn(8, 6, generator=generator(2))
    for name in ("average", "raw"):
        old, new = getattr(prior, name), getattr(found, name)
        for one in torch.eye(CLASSES):
            w = new.mapping(z, one.expand(8, -1))
            torch.testing.assert_close(w, old.mapping(z))
            torch.testing.assert_close(new(w, noise="none"), old(old.mapping(z), noise="none"))
        assert torch.equal(new.mapping.w_avg, old.mapping.w_avg)
    assert torch.equal(found.average.mapping.embed.weight, found.raw.mapping.embed.weight)


def test_so_is_the_judgement(prior: StylePrior) -> None:
    before = prior.critic(images())
    found = with_classes(prior)
    for one in torch.eye(CLASSES):
        torch.testing.assert_close(found.critic(images(), one.expand(20, -1)), before)
    told = aware(prior)
    torch.testing.assert_close(told.critic(images()), before, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(told.critic.outputs(images()).softmax(1), torch.full((20, 3), 1 / 3))


def test_class_vectors_tell_classes_apart(prior: StylePrior) -> None:
    found = with_classes(prior)
    for mapping in (found.raw.mapping, found.critic.mapping):
        vectors = mapping.embed(torch.eye(CLASSES))
        assert float(torch.pdist(vectors).min()) > 0.1 * float(vectors.norm(dim=1).mean())
    other = condition_on_classes(prior, CLASSES, rng=generator(6))
    assert not torch.equal(other.raw.mapping.embed.weight, found.raw.mapping.embed.weight)


def test_a_critic_that_told_classes_apart_can_be_given_others(prior: StylePrior) -> None:
    told = aware(prior)
    assert add_class_logits(told, CLASSES) is told
    for further in (add_class_logits(told, 5), prior):
        judged = condition_on_classes(further, 2, rng=generator(1)).critic
        c = torch.tensor([[0.0, 1.0]]).expand(20, -1)
        torch.testing.assert_close(
            judged(images(), c), prior.critic(images()), rtol=1e-4, atol=1e-5
        )


def test_the_prior_is_not_touched(prior: StylePrior) -> None:
    before = {k: v.clone() for k, v in prior.critic.state_dict().items()}
    for way in (with_classes, aware):
        run_game(game_of(way(prior)), public(), class_labels=LABELS, steps=2, rng=generator(0))
    assert all(torch.equal(v, prior.critic.state_dict()[k]) for k, v in before.items())


def test_one_use_of_classes() -> None:
    with pytest.raises(ValueError, match="expected c_dim or critic_classes, found both"):
        Architecture(size=8, c_dim=2, critic_classes=2)


# The game


def test_the_conditioned_judgement_is_linear_in_the_class_vector(prior: StylePrior) -> None:
    critic = game_of(with_classes(prior)).discriminator
    rows = torch.randn(20, critic.b4.out.weight.shape[0], generator=generator(3))
    c = torch.eye(CLASSES)[torch.arange(20) % CLASSES]
    vectors = critic.mapping.embed(c)
    vectors = vectors / vectors.square().mean(1, keepdim=True).sqrt()
    expected = (rows * vectors).sum(1) / math.sqrt(rows.shape[1])
    torch.testing.assert_close(critic.judgement(rows, c), expected)


def test_each_player_is_told_the_class(prior: StylePrior) -> None:
    """Real images' classes are those that are known; generated ones' are the generator's."""
    game = game_of(with_classes(prior))
    told: list[Tensor] = []
    made: list[Tensor] = []
    judgement, mapping = game.discriminator.judgement, game.generator.mapping.forward

    def judge(outputs: Tensor, c: Tensor | None = None) -> Tensor:
        assert c is not None
        told.append(c)
        return judgement(outputs, c)

    def generate(z: Tensor | None, c: Tensor | None = None) -> Tensor:
        assert c is not None
        made.append(c)
        return mapping(z, c)

    game.discriminator.judgement = judge  # type: ignore[method-assign,assignment]
    game.generator.mapping.forward = generate  # type: ignore[method-assign,assignment]
    game.step([Microbatch(images()[:4], generator(0), LABELS[:4])])
    real, fake, again = told
    assert torch.equal(real, LABELS[:4])
    assert torch.equal(fake, made[0]) and torch.equal(again, made[1])
    assert not torch.equal(made[0], made[1])


def test_classes_are_drawn_evenly(prior: StylePrior) -> None:
    drawn = game_of(with_classes(prior))._classes(3000, generator(0))
    assert drawn is not None and torch.equal(drawn.sum(1), torch.ones(3000))
    assert float((drawn.mean(0) - 1 / 3).abs().max()) < 0.04  # 4.6 deviations
    assert game_of(aware(prior))._classes(3, generator(0)) is None


def test_guidance_is_told_what_images_were_made_for(prior: StylePrior) -> None:
    seen: list[GeneratedBatch] = []

    class Noting(FixedGuidance):
        def __call__(self, images: Tensor, made: GeneratedBatch) -> dict[str, Tensor]:
            seen.append(made)
            return super().__call__(images, made)

    guide = Noting(torch.zeros_like)
    for way in (with_classes, aware, lambda one: one):
        game_of(way(prior))._step_generator(
            [Microbatch(images()[:4], generator(0), LABELS[:4])], guide
        )
    classes, told, plain = seen
    assert (
        classes.classes is not None
        and classes.classes.shape == (4,)
        and classes.class_logits is None
    )
    assert told.classes is None and told.class_logits is not None
    assert told.class_logits(images()[:4] / 2 + 0.5).shape == (4, CLASSES)
    assert plain.classes is None and plain.class_logits is None


def test_soft_labels_add_their_cross_entropy(prior: StylePrior) -> None:
    """The critic's gradient with them, less that without: the cross-entropy's, by hand."""
    soft = torch.softmax(torch.randn(4, CLASSES, generator=generator(8)), 1)
    kept = []
    for class_labels in (soft, None):
        game = game_of(aware(prior), r1=0.0)
        game.control.p = 0.0
        game.optimise_d.step = lambda: None  # type: ignore[method-assign,assignment]
        game._step_discriminators([Microbatch(images()[:4], generator(0), class_labels)])
        kept.append([p.grad.clone() for p in game.discriminator.parameters()])
    critic = game.discriminator
    log_p = critic.outputs(images()[:4]).log_softmax(1)
    loss = -SOFT_LABELS * (soft * log_p).sum(1).mean()
    expected = torch.autograd.grad(loss, list(critic.parameters()))
    for with_labels, without, one in zip(*kept, expected, strict=True):
        torch.testing.assert_close(with_labels - without, one, rtol=1e-3, atol=1e-5)


def test_the_critic_learns_the_soft_labels(prior: StylePrior) -> None:
    """Images are dark or bright, and the labels say so with 0.8."""
    bright = torch.arange(60) % 2
    data = (40 + 160 * bright)[:, None, None, None].expand(60, *SHAPE).to(torch.uint8)
    soft = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.1, 0.8]])[bright]
    game = game_of(aware(prior), learning_rate=1e-2, ada_images=1e9)
    game.control.p = 0.0
    run_game(game, data, class_labels=soft, steps=150, rng=generator(0))
    x = data.float() / 127.5 - 1.0
    with torch.no_grad():
        found = game.discriminator.outputs(x).softmax(1)
    torch.testing.assert_close(found, soft, atol=0.15, rtol=0)


@EITHER
@pytest.mark.parametrize("published", [False, True])
def test_a_resumed_game_goes_on_bit_by_bit(
    prior: StylePrior, tmp_path: Path, way: Way, published: bool
) -> None:
    changes = PUBLISHED | {"images_at_once": 2} if published else {}
    file = tmp_path / "checkpoint.safetensors"
    whole, part, resumed = (game_of(way(prior), **changes) for _ in range(3))
    run_game(whole, public(), class_labels=LABELS, steps=4, rng=generator(0))
    run_game(part, public(), class_labels=LABELS, steps=2, rng=generator(0))
    part.save(file, {"log": [], "guidance": {}})
    run_game(resumed, public(), class_labels=LABELS, steps=4, rng=generator(0), checkpoint=file)
    assert_same(state(whole), state(resumed))


def test_samples_know_classes(prior: StylePrior) -> None:
    (shown,) = game_of(with_classes(prior)).samples(4, generator(0))
    assert shown.shape == (4, *SHAPE)


def test_knowledge_that_does_not_fit(prior: StylePrior) -> None:
    game = game_of(with_classes(prior))
    with pytest.raises(ValueError, match="needs the public images' classes"):
        run_game(game, public(), steps=1, rng=generator(0))
    for wrong in (LABELS[:5], LABELS[:, :2]):
        with pytest.raises(ValueError, match=r"expected class_labels \(20, 3\), found"):
            run_game(game, public(), class_labels=wrong, steps=1, rng=generator(0))
    # A critic that tells classes apart can play on without being taught.
    run_game(game_of(aware(prior)), public(), steps=1, rng=generator(0))


# As attacks see it


def test_samples_of_a_class(prior: StylePrior) -> None:
    found = with_classes(prior)
    found.average.mapping.fc0.weight.copy_(
        torch.randn(found.average.mapping.fc0.weight.shape, generator=generator(4))
    )
    assert isinstance(found, Conditional) and found.num_classes == CLASSES
    labels = torch.tensor([2, 0, 2])
    w = found.sample_of(labels, rng=generator(2))
    z = torch.randn(3, 6, generator=generator(2))
    torch.testing.assert_close(w, found.average.mapping(z, torch.eye(CLASSES)[labels]))
    other = found.sample_of(torch.tensor([1, 0, 1]), rng=generator(2))
    assert torch.equal(other[1], w[1]) and not torch.allclose(other[0], w[0])
    with pytest.raises(InputError, match=r"expected labels in 0\.\.2, found 0\.\.3"):
        found.sample_of(torch.tensor([0, 3]), rng=generator(2))


def test_a_prior_without_classes_has_no_samples_of_one(prior: StylePrior) -> None:
    assert prior.num_classes == 0
    with pytest.raises(InputError, match="--arm pseudo-labels"):
        prior.sample_of(torch.tensor([0]), rng=generator(2))


def test_realness(prior: StylePrior) -> None:
    shown = images() / 2 + 0.5
    told = aware(prior)
    logits = told.critic.outputs(images(), alone=True)
    torch.testing.assert_close(told.realness(shown), logits.exp().sum(1).log())
    torch.testing.assert_close(told.realness(shown), prior.realness(shown), rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="judges images with their classes"):
        with_classes(prior).realness(shown)


@EITHER
def test_the_file_gives_it_back(prior: StylePrior, tmp_path: Path, way: Way) -> None:
    made = way(prior)
    made.save(tmp_path / "prior.safetensors")
    again = StylePrior.load(tmp_path / "prior.safetensors")
    assert again.critic.architecture == made.critic.architecture
    w = made.sample(5, rng=generator(2))
    assert torch.equal(again(again.sample(5, rng=generator(2))), made(w))
    assert torch.equal(again.critic.outputs(images()), made.critic.outputs(images()))
    assert again.num_classes == made.num_classes
