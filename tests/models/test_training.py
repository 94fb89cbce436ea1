"""Training of classifiers: losses by hand, early stopping, what is kept, augmentation."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inversight.core.errors import StageError
from inversight.core.seeding import generator
from inversight.data import ImageSet, load_digits
from inversight.models.networks import Classifier
from inversight.models.target import accuracy_on, target_of
from inversight.models.training import (
    Batch,
    Stepping,
    TrainedClassifier,
    Variation,
    _optimiser,
    augment,
    focal_loss,
    recipe_loss,
    rotation_task,
    train_classifier,
)
from inversight.settings import Training


def two_classes(n: int = 20, noise: float = 0.1) -> ImageSet:
    """Bright on the left, or bright on the right."""
    rng = generator(0)
    images = noise * torch.rand(2 * n, 1, 8, 8, generator=rng)
    images[:n, :, :, :4] += 0.8
    images[n:, :, :, 4:] += 0.8
    return ImageSet(
        images=(images * 255).to(torch.uint8),
        labels=torch.arange(2).repeat_interleave(n),
        ids=tuple(f"{i:03d}" for i in range(2 * n)),
        classes=("left", "right"),
        hashes=tuple(str(i) for i in range(2 * n)),
    )


QUICK = Training(width=4, epochs=12, batch_size=8, warmup_epochs=1, flip=False, rotation=0.0)


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
@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
@pytest.mark.parametrize("architecture", ["resnet", "vgg"])
def test_learns_what_can_be_learnt(loss: str, optimiser: str, architecture: str) -> None:
    training = replace(
        QUICK,
        loss=loss,
        optimiser=optimiser,
        architecture=architecture,
        learning_rate=0.02 if optimiser == "sgd" else 2e-3,
    )
    made = train_classifier(
        two_classes(), training=training, image_shape=(1, 8, 8), rng=generator(2)
    )
    assert made.train_accuracy == 1.0 and made.validation_accuracy == 1.0
    assert accuracy_on(target_of(made.classifier, "x"), two_classes()) == 1.0


def test_repeats() -> None:
    one, same, other = (
        train_classifier(
            two_classes(),
            training=replace(QUICK, epochs=2),
            image_shape=(1, 8, 8),
            rng=generator(s),
        ).classifier.module
        for s in (1, 1, 2)
    )
    weights = [torch.cat([p.flatten() for p in m.parameters()]) for m in (one, same, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_early_stopping_keeps_the_best_epoch() -> None:
    """Labels without meaning: the validation loss soon rises, and training stops."""
    noise = two_classes(noise=1.0)
    shuffled = replace(noise, labels=noise.labels[torch.randperm(40, generator=generator(3))])
    told: list[str] = []
    made = train_classifier(
        shuffled,
        training=replace(QUICK, epochs=60, patience=4, learning_rate=5e-3),
        image_shape=(1, 8, 8),
        rng=generator(2),
        progress=lambda done, total, note="": told.append(note),
    )
    losses = [float(n.rpartition(" ")[2]) for n in told if "validation" in n]
    assert made.epochs < 60
    assert made.epochs - 1 - losses.index(min(losses)) in (3, 4)


def test_without_validation_every_image_is_trained_on() -> None:
    made = train_classifier(
        two_classes(2), training=replace(QUICK, validation=0.0, epochs=3), image_shape=(1, 8, 8),
        rng=generator(0),
    )  # fmt: skip
    assert made.validation_accuracy is None and made.epochs == 3


def test_classes_of_one_image_are_trained_on() -> None:
    made = train_classifier(
        two_classes(1), training=replace(QUICK, epochs=2), image_shape=(1, 8, 8), rng=generator(0)
    )
    assert made.validation_accuracy is None


def test_divergence_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(StageError, match=r"lower training\.learning_rate"):
        train_classifier(
            two_classes(),
            training=replace(
                QUICK, optimiser="sgd", learning_rate=1e30, warmup_epochs=0, epochs=20
            ),
            image_shape=(1, 8, 8),
            rng=generator(0),
        )


def test_warm_up_then_cosine() -> None:
    weight = torch.nn.Linear(1, 1)
    training = replace(QUICK, epochs=10, warmup_epochs=2, learning_rate=1.0)
    optimiser, schedule = _optimiser(weight, training, epochs=10, steps_per_epoch=5)
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


def test_fewer_epochs_are_what_is_trained() -> None:
    training = replace(QUICK, most_steps=8, validation=0.0)  # five steps an epoch
    made = train_classifier(
        two_classes(), training=training, image_shape=(1, 8, 8), rng=generator(0)
    )
    assert made.epochs == 1


def squares(n: int) -> Tensor:
    x = torch.zeros(n, 1, 16, 16)
    x[:, :, 5:11, 3:9] = 1.0
    return x


def test_no_augmentation_is_the_identity() -> None:
    still = replace(QUICK, shift=0.0)
    torch.testing.assert_close(augment(squares(3), still, generator(0)), squares(3))


def test_flips_half_of_the_images() -> None:
    flipping = replace(QUICK, shift=0.0, flip=True)
    y = augment(squares(200), flipping, generator(0))
    flipped = torch.isclose(y, squares(200).flip(3), atol=1e-4).flatten(1).all(1)
    same = torch.isclose(y, squares(200), atol=1e-4).flatten(1).all(1)
    assert bool((flipped ^ same).all())
    assert 70 < int(flipped.sum()) < 130


def test_shifts_stay_in_range() -> None:
    y = augment(squares(200), replace(QUICK, shift=0.1), generator(0))
    position = (y * torch.arange(16.0)).sum((1, 2, 3)) / y.sum((1, 2, 3))
    moved = (position - 5.5).abs()
    assert 0.3 < float(moved.max()) < 0.1 * 16 + 1.0


def test_rotation_task_has_four_turns_of_each_image() -> None:
    images = load_digits(seed=0).private
    task = rotation_task(images)
    n = len(images)
    assert len(task) == 4 * n and task.classes == ("0", "90", "180", "270")
    assert len(set(task.ids)) == 4 * n
    for k in range(4):
        assert torch.equal(task.images[k * n + 3], torch.rot90(images.images[3], k, dims=(1, 2)))
        assert task.labels[k * n : (k + 1) * n].unique().tolist() == [k]


def varied(variation: Variation | None = None, images: ImageSet | None = None) -> TrainedClassifier:
    return train_classifier(
        images or two_classes(noise=1.0),
        training=QUICK,
        image_shape=(1, 8, 8),
        rng=generator(5),
        variation=variation or Variation(),
    )


def same(a: TrainedClassifier, b: TrainedClassifier) -> bool:
    one, other = (m.classifier.module.state_dict() for m in (a, b))
    return all(torch.equal(one[name], other[name]) for name in one)


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
            soft=F.one_hot(two_classes().labels, 2),
            loss=lambda module, batch: recipe_loss(
                module(batch.inputs), batch.labels.argmax(1), QUICK
            ),
            held_loss=lambda logits, soft: recipe_loss(logits, soft.argmax(1), QUICK),
        ),
    ],
)
def test_variations_that_change_nothing_train_the_same_network(neutral: Variation) -> None:
    """Also where they draw: the other draws stay what they are."""
    assert same(varied(neutral), varied())


def test_rows_follow_the_split() -> None:
    """Each image carries its row as its grey level; what is changed are the rows that are named."""
    n = 40
    images = replace(
        two_classes(),
        images=torch.arange(n, dtype=torch.uint8)[:, None, None, None].expand(n, 1, 8, 8),
        labels=torch.arange(n) % 2,
    )
    seen: list[Tensor] = []

    def check(pixels: Tensor, rows: Tensor, rng: torch.Generator) -> Tensor:
        torch.testing.assert_close((pixels[:, 0, 0, 0] * 255).round().long(), rows)
        seen.append(rows)
        return pixels

    varied(Variation(change=check), images)
    assert len(torch.cat(seen).unique()) == 32  # a fifth of each class is validation


def test_validation_is_weighted_too() -> None:
    """Noise: the validation loss of a class that counts for nothing is not looked at."""
    images = two_classes(noise=1.0)
    notes: list[list[str]] = []
    for weights in (None, torch.zeros(40)):
        told: list[str] = []
        train_classifier(
            images, training=replace(QUICK, epochs=2), image_shape=(1, 8, 8), rng=generator(5),
            variation=Variation(weights=weights),
            progress=lambda done, total, note="", told=told: told.append(note),  # type: ignore[misc]
        )  # fmt: skip
        notes.append(told)
    assert "validation 0.000" not in notes[0][0] and "validation 0.000" in notes[1][0]


def test_no_epoch_is_kept_before_the_loss_settles() -> None:
    """A held loss that only rises makes the first epoch the best one that may be kept."""
    calls: list[float] = []

    def rising(logits: Tensor, labels: Tensor) -> Tensor:
        calls.append(float(len(calls)))
        return torch.tensor(calls[-1])

    states: list[dict[str, Tensor]] = []

    def note(module: Classifier, batch: Batch) -> Tensor:
        if not states or batch.done * QUICK.epochs >= len(states):
            states.append({k: v.clone() for k, v in module.state_dict().items()})
        return drawing_loss(module, batch)

    made = varied(Variation(loss=note, held_loss=rising, settles=0.5))
    assert made.epochs == len(states) == QUICK.epochs
    kept = made.classifier.module.state_dict()
    after_7 = states[7]  # the first of 12 epochs that begins with half behind it is the seventh
    assert all(torch.equal(kept[name], after_7[name]) for name in kept if "num" not in name)


def test_start_frozen_and_normalisation() -> None:
    first = varied().classifier
    start = first.module.state_dict()
    made = varied(
        Variation(start=start, frozen=("stem", "stages"), normalisation=([0.25], [0.5]))
    ).classifier
    after = made.module.state_dict()
    for name in start:
        moves = not name.startswith(("stem", "stages"))
        assert torch.equal(start[name], after[name]) != moves, name
    assert made.mean == (0.25,) and made.std == (0.5,)
    assert isinstance(made.module.norm, nn.BatchNorm2d)
