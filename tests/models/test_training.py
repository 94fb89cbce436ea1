"""Training of classifiers: losses by hand, early stopping, what is kept, augmentation."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inversight.core.errors import StageError
from inversight.core.seeding import generator
from inversight.data import ImageSet, image_set
from inversight.models.networks import Classifier
from inversight.models.target import accuracy_on, target_of
from inversight.models.training import (
    PLAIN,
    Batch,
    Stepping,
    TrainedClassifier,
    Variation,
    augment,
    build_optimiser,
    focal_loss,
    recipe_loss,
    rotation_task,
    train_classifier,
)
from inversight.settings import Training


def two_classes(n: int = 20, noise: float = 0.1) -> ImageSet:
    """Bright on the left, or bright on the right."""
    images = noise * torch.rand(2 * n, 1, 8, 8, generator=generator(0))
    images[:n, :, :, :4] += 0.8
    images[n:, :, :, 4:] += 0.8
    labels, ids = ["left"] * n + ["right"] * n, [f"{i:03d}" for i in range(2 * n)]
    return image_set((images * 255).to(torch.uint8), labels, ids, ("left", "right"))


QUICK = Training(width=4, epochs=12, batch_size=8, warmup_epochs=1, flip=False, rotation=0.0)
NOISE = two_classes(noise=1.0)


def train(
    images: ImageSet = NOISE, seed: int = 5, variation: Variation = PLAIN, notes: Any = None,
    **changes: Any,
) -> TrainedClassifier:  # fmt: skip
    """Train with these changes of the settings; the notes of the progress are added to ``notes``."""
    notes = [] if notes is None else notes
    return train_classifier(
        images, training=replace(QUICK, **changes), image_shape=(1, 8, 8), rng=generator(seed),
        progress=lambda done, total, note="": notes.append(note), variation=variation,
    )  # fmt: skip


def same(*made: TrainedClassifier) -> bool:
    one, other = (m.classifier.module.state_dict() for m in made)
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
def test_focal_loss_by_hand(gamma: float) -> None:
    logits = torch.randn(5, 3, generator=generator(1), dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 1, 0])
    p = logits.softmax(1)[torch.arange(5), labels]
    expected = sum(-((1 - float(q)) ** gamma) * float(q.log()) for q in p) / 5
    assert float(focal_loss(logits, labels, gamma)) == pytest.approx(expected)
    if gamma == 0.0:
        torch.testing.assert_close(focal_loss(logits, labels, 0.0), F.cross_entropy(logits, labels))


@pytest.mark.parametrize("loss", ["cross-entropy", "focal"])
@pytest.mark.parametrize(("optimiser", "learning_rate"), [("adamw", 2e-3), ("sgd", 0.02)])
@pytest.mark.parametrize("architecture", ["resnet", "vgg"])
def test_learns_two_easy_classes(
    loss: str, optimiser: str, learning_rate: float, architecture: str
) -> None:
    images = two_classes()
    made = train(
        images, 2, loss=loss, optimiser=optimiser, architecture=architecture,
        learning_rate=learning_rate,
    )  # fmt: skip
    assert made.train_accuracy == 1.0 and made.validation_accuracy == 1.0
    assert accuracy_on(target_of(made.classifier, "x"), images) == 1.0


def test_repeats_from_the_same_seed() -> None:
    one, again, other = (train(two_classes(), seed, epochs=2) for seed in (1, 1, 2))
    assert same(one, again) and not same(one, other)


def test_early_stopping_keeps_the_best_epoch() -> None:
    """Labels without meaning: the validation loss soon rises, and training stops."""
    shuffled = replace(NOISE, labels=NOISE.labels[torch.randperm(40, generator=generator(3))])
    notes: list[str] = []
    made = train(shuffled, 2, notes=notes, epochs=60, patience=4, learning_rate=5e-3)
    losses = [float(n.rpartition(" ")[2]) for n in notes if "validation" in n]
    assert made.epochs < 60
    assert made.epochs - 1 - losses.index(min(losses)) in (3, 4)


@pytest.mark.parametrize(
    ("images", "changes", "epochs"),
    [(2, {"validation": 0.0, "epochs": 3}, 3),  # no validation
     (1, {"epochs": 2}, 2),  # no class has images to spare
     (20, {"validation": 0.0, "most_steps": 8}, 1)],  # five steps an epoch
)  # fmt: skip
def test_trains_on_every_image_without_validation(
    images: int, changes: dict[str, Any], epochs: int
) -> None:
    made = train(two_classes(images), **changes)
    assert made.validation_accuracy is None and made.epochs == epochs


def test_divergence_is_an_error_with_a_remedy() -> None:
    with pytest.raises(StageError, match=r"lower training\.learning_rate"):
        train(optimiser="sgd", learning_rate=1e30, warmup_epochs=0)


def test_learning_rate_warms_up_then_follows_a_cosine() -> None:
    training = replace(QUICK, warmup_epochs=2, learning_rate=1.0)
    optimiser, schedule = build_optimiser(
        nn.Linear(1, 1).parameters(), training, epochs=10, steps_per_epoch=5
    )
    rates = []
    for _ in range(50):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[30] == pytest.approx(0.5)  # half-way through the decay
    assert all(a >= b for a, b in itertools.pairwise(rates[9:]))
    assert rates[-1] < 0.01


@pytest.mark.parametrize(("images", "epochs"), [(8, 12), (80, 10), (81, 9), (10_000, 1)])
def test_large_sets_get_fewer_epochs(images: int, epochs: int) -> None:
    assert replace(QUICK, most_steps=100).epochs_for(images) == epochs


SQUARES = torch.zeros(200, 1, 16, 16)
SQUARES[:, :, 5:11, 3:9] = 1.0


def augmented(**changes: Any) -> Tensor:
    return augment(SQUARES, replace(QUICK, **changes), generator(0))


def test_augmentation_without_changes_is_the_identity() -> None:
    torch.testing.assert_close(augmented(shift=0.0), SQUARES)


def test_flips_half_of_the_images() -> None:
    y = augmented(shift=0.0, flip=True)
    flipped, kept = (
        torch.isclose(y, x, atol=1e-4).flatten(1).all(1) for x in (SQUARES.flip(3), SQUARES)
    )
    assert bool((flipped ^ kept).all())
    assert 70 < int(flipped.sum()) < 130


def test_shifts_within_the_range() -> None:
    y = augmented(shift=0.1)
    position = (y * torch.arange(16.0)).sum((1, 2, 3)) / y.sum((1, 2, 3))
    assert 0.3 < float((position - 5.5).abs().max()) < 0.1 * 16 + 1.0


def test_rotation_task_has_four_turns_of_each_image() -> None:
    task, n = rotation_task(NOISE), len(NOISE)
    assert len(set(task.ids)) == len(task) == 4 * n and task.classes == ("0", "90", "180", "270")
    for k in range(4):
        assert torch.equal(task.images[k * n + 3], torch.rot90(NOISE.images[3], k, dims=(1, 2)))
        assert task.labels[k * n : (k + 1) * n].unique().tolist() == [k]


def drawing_loss(module: Classifier, batch: Batch) -> Tensor:
    torch.rand(3, generator=batch.rng)
    return recipe_loss(module(batch.inputs), batch.labels, QUICK)


def drawing_change(images: Tensor, rows: Tensor, rng: torch.Generator) -> Tensor:
    torch.rand(3, generator=rng)
    return images


@pytest.mark.parametrize(
    "neutral",
    [
        Variation(loss=drawing_loss, change=drawing_change),
        Variation(held_loss=lambda logits, labels: recipe_loss(logits, labels, QUICK)),
        Variation(stepping=Stepping(), frozen=("nothing",)),
        Variation(
            soft=F.one_hot(NOISE.labels, 2),
            loss=lambda net, batch: recipe_loss(net(batch.inputs), batch.labels.argmax(1), QUICK),
            held_loss=lambda logits, soft: recipe_loss(logits, soft.argmax(1), QUICK),
        ),
    ],
)
def test_variations_without_effect_train_the_same_network(neutral: Variation) -> None:
    """Their own draws do not change the draws of plain training."""
    assert same(train(variation=neutral, epochs=3), train(epochs=3))


def test_rows_follow_the_split() -> None:
    """Each image carries its row as its grey level; changes see the rows of their images."""
    levels = torch.arange(40, dtype=torch.uint8)[:, None, None, None].expand(40, 1, 8, 8)
    seen: list[Tensor] = []

    def check(pixels: Tensor, rows: Tensor, rng: torch.Generator) -> Tensor:
        torch.testing.assert_close((pixels[:, 0, 0, 0] * 255).round().long(), rows)
        seen.append(rows)
        return pixels

    images = replace(NOISE, images=levels, labels=torch.arange(40) % 2)
    train(images, variation=Variation(change=check), epochs=1)
    assert len(torch.cat(seen).unique()) == 32  # a fifth of each class is validation


@pytest.mark.parametrize(("weights", "zero"), [(None, False), (torch.zeros(40), True)])
def test_weights_apply_to_the_validation_loss(weights: Tensor | None, zero: bool) -> None:
    notes: list[str] = []
    train(variation=Variation(weights=weights), notes=notes, epochs=2)
    assert ("validation 0.000" in notes[0]) == zero


def test_keeps_no_epoch_before_the_loss_settles() -> None:
    """A held loss that only rises makes the first epoch the best one that may be kept."""
    calls = itertools.count()
    states: list[dict[str, Tensor]] = []

    def note(module: Classifier, batch: Batch) -> Tensor:
        if not states or batch.done * QUICK.epochs >= len(states):
            states.append({k: v.clone() for k, v in module.state_dict().items()})
        return drawing_loss(module, batch)

    def rising(logits: Tensor, labels: Tensor) -> Tensor:
        return torch.tensor(float(next(calls)))

    made = train(variation=Variation(loss=note, held_loss=rising, settles=0.5))
    assert made.epochs == len(states) == QUICK.epochs
    kept = made.classifier.module.state_dict()
    after_7 = states[7]  # the first of 12 epochs that begins with half behind it is the seventh
    assert all(torch.equal(kept[name], after_7[name]) for name in kept if "num" not in name)


def test_start_frozen_and_normalisation() -> None:
    start = train(epochs=2).classifier.module.state_dict()
    frozen = ("stem", "stages")
    variation = Variation(start=start, frozen=frozen, normalisation=([0.25], [0.5]))
    made = train(variation=variation, epochs=2)
    for name, after in made.classifier.module.state_dict().items():
        assert torch.equal(start[name], after) == name.startswith(frozen), name
    assert made.classifier.mean == (0.25,) and made.classifier.std == (0.5,)
    assert isinstance(made.classifier.module.norm, nn.BatchNorm2d)
