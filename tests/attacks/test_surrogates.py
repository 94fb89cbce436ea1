"""Surrogates learn a target's soft answers; LOMMA descends the mean loss of the target and them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from inversight.attacks import Lomma, QueriesSpentError, Reconstructions, lomma, run_attack
from inversight.attacks.objectives import logit
from inversight.attacks.surrogates import (
    distillation,
    distillation_loss,
    label_images,
    train_surrogates,
)
from inversight.core.seeding import generator
from inversight.models.networks import ResidualBlock, build_classifier
from inversight.models.target import Target, target_of
from inversight.models.training import Variation
from inversight.settings import Training
from tests.attacks.table import AUGMENTED, CASES, QUICK_AUGMENTED, TRAINING
from tests.attacks.toy import (
    LABELS,
    SIZE,
    NearestByLayer,
    OpenPrior,
    least_on_a_grid,
    levels,
    problem_of,
    toy_target,
)

TARGET = toy_target(NearestByLayer(height=3.0))


def attack(how: Lomma, seed: int = 0, target: Target = TARGET) -> Reconstructions:
    return run_attack(how, target, OpenPrior(), LABELS, rng=generator(seed))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_distillation_loss_is_the_divergence_from_the_answers(temperature: float) -> None:
    rng = generator(0)
    logits, answers = (3.0 * torch.randn(5, 4, generator=rng, dtype=torch.float64) for _ in "ab")

    own, known = (Categorical(logits=x / temperature) for x in (logits, answers))
    expected = float(kl_divergence(known, own).mean())
    found = distillation_loss(logits, answers, temperature)
    assert float(found) == pytest.approx(temperature**2 * expected)
    assert float(distillation_loss(answers + 7.0, answers, temperature)) == pytest.approx(0.0)


def test_the_gradient_equals_that_of_soft_cross_entropy() -> None:
    """Their difference is the entropy of the answers, which the network does not change."""
    logits, answers = (torch.randn(5, 4, generator=generator(seed)) for seed in (0, 1))
    logits.requires_grad_(True)
    soft = torch.nn.functional.cross_entropy(logits, answers.softmax(1))
    (one,) = torch.autograd.grad(distillation_loss(logits, answers, 1.0), logits)
    (other,) = torch.autograd.grad(soft, logits)
    torch.testing.assert_close(one, other)


def test_surrogates_learn_the_soft_answers() -> None:
    prior = OpenPrior()
    problem = problem_of(TARGET, prior)
    latents = prior.sample(800, rng=generator(0))
    images, answers = label_images(problem, latents, batch_size=64)
    assert torch.equal(images.labels, answers.argmax(1))
    training = replace(TRAINING, batch_size=32)
    fresh = prior(prior.sample(500, rng=generator(1)))
    right = TARGET(fresh).log_softmax(1)

    def apart(found: Tensor) -> float:
        return float(distillation_loss(found, right, 1.0).detach())

    def made(count: int, variation: Variation) -> list[Target]:
        options = {"count": count, "training": training, "variation": variation}
        return list(train_surrogates(problem, images, **options))  # type: ignore[arg-type]

    usual = apart(right.exp().mean(0).log().expand_as(right))
    hard = apart(made(1, Variation())[0](fresh))  # labels do not tell how sure
    surrogates = made(1, distillation(answers, 1.0)) + made(2, distillation(answers, 3.0))
    _, vgg, resnet = (set(map(type, surrogate.module.modules())) for surrogate in surrogates)
    assert ResidualBlock in resnet - vgg
    assert all(apart(surrogate(fresh)) < 0.05 * min(usual, hard) for surrogate in surrogates)


def test_descends_the_mean_over_target_and_surrogates(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Target] = []

    def watched(*given, **named):  # type: ignore[no-untyped-def]
        kept.extend(train_surrogates(*given, **named))
        return kept

    monkeypatch.setattr(lomma, "train_surrogates", watched)
    found = attack(AUGMENTED)
    assert len(kept) == 2 and found.queries == 2 * 400 + 800 + 3 * 6 * (80 + 4)
    prior = OpenPrior()
    usual = TARGET(prior(prior.sample(4000, rng=generator(9))))[:, :3].mean(0) / 3.0

    def losses(images: Tensor) -> Tensor:
        """As an image of each class, (N, 3)."""
        answers = [TARGET(images), *(each(images) for each in kept)]
        away = (answers[0][:, :3] / 3.0 - usual).square().mean(1)
        rest = 100.0 * away - prior.realness(images)
        every = (torch.full((len(images),), label) for label in range(3))
        identity = [torch.stack([logit(x, y) for x in answers]).mean(0) for y in every]
        return 100.0 * torch.stack(identity, 1) + rest[:, None]

    for label, best in enumerate(least_on_a_grid(losses, 2.0)):
        mine = levels(found.images[found.labels == label])
        torch.testing.assert_close(mine, best.expand(3, -1), atol=0.04, rtol=0)


def test_without_surrogates_no_queries_are_spent_on_them() -> None:
    none = replace(QUICK_AUGMENTED, surrogates=0)
    plain, augmented = attack(none), attack(QUICK_AUGMENTED)
    assert not torch.equal(plain.images, augmented.images)
    assert augmented.queries == 200 + plain.queries  # type: ignore[operator]
    fewer_images = attack(replace(none, images=10, temperature=9.0, training=Training(epochs=1)))
    assert torch.equal(plain.latents, fewer_images.latents)


def test_a_query_limit_holds() -> None:
    module = NearestByLayer()
    with pytest.raises(QueriesSpentError):
        CASES["lomma-surrogates"].run(module=module, limit=2 * 40 + 199)
    assert module.images == 2 * 40


def test_a_target_of_another_size_and_a_single_training_image() -> None:
    saved = build_classifier(
        "resnet", classes=tuple("abcde"), image_shape=(1, 16, 16), width=4, mean=[0.5], std=[0.25],
        rng=generator(3),
    )  # fmt: skip
    for images in (1, 65):
        how = replace(QUICK_AUGMENTED, images=images, crops=2)
        found = attack(how, target=target_of(saved, "resnet"))
        assert found.images.shape == (9, 1, SIZE, SIZE) and bool(found.images.isfinite().all())
