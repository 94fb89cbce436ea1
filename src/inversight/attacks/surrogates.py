"""Surrogates: networks that learn a target's answers to images of the prior, as in LOKT and LOMMA.

Both papers train on other images, LOKT on those of a generator of its own, LOMMA on public ones. An
attack here has neither and uses samples of its prior.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inversight.attacks.base_attack import Problem
from inversight.attacks.queries import check_queries
from inversight.core.imaging import to_float, to_uint8
from inversight.core.seeding import generator
from inversight.data import ImageSet
from inversight.models.target import Target, target_of
from inversight.models.training import Variation, train_classifier
from inversight.settings import ClassifierArchitecture, Training

FAMILIES: tuple[ClassifierArchitecture, ...] = ("resnet", "vgg")
"""Surrogates alternate between these families."""


@torch.no_grad()
def label_images(problem: Problem, latents: Tensor, *, batch_size: int) -> tuple[ImageSet, Tensor]:
    """Return the 8-bit images of the latents, labelled by the target, and its answers: N queries.

    Labels are the predicted classes; answers: (N, K) on the CPU.
    """
    check_queries(problem.target, len(latents))
    images, answers = [], []
    for w in latents.split(batch_size):
        rounded = to_uint8(problem.prior(w))
        images.append(rounded.cpu())
        answers.append(problem.target(to_float(rounded)).cpu())
    found, names = torch.cat(answers), tuple(map(str, range(len(latents))))
    labels, classes = found.argmax(1), problem.target.classes
    return ImageSet(torch.cat(images), labels, names, classes, names), found


def train_surrogates(
    problem: Problem, images: ImageSet, *, count: int, training: Training, variation: Variation
) -> Iterator[Target]:
    """Train ``count`` surrogates, one after another; the first is of ``training``'s family."""
    first, device = FAMILIES.index(training.architecture), problem.device
    for number in range(count):
        family = FAMILIES[(first + number) % len(FAMILIES)]
        trained = train_classifier(
            images, training=replace(training, architecture=family), variation=variation,
            image_shape=problem.prior.image_shape, device=device,
            rng=generator(problem.seed, "surrogate", number),
        )  # fmt: skip
        yield target_of(trained.classifier, "surrogate").to(device)


def distillation(answers: Tensor, temperature: float) -> Variation:
    """Return a training on a target's ``answers`` (N, K) to the images, logits or log-probabilities."""
    held_loss = partial(distillation_loss, temperature=temperature)
    return Variation(
        loss=lambda module, batch: held_loss(module(batch.inputs), batch.labels),
        held_loss=held_loss,
        soft=answers,
    )


def distillation_loss(logits: Tensor, answers: Tensor, temperature: float) -> Tensor:
    """Return T^2 mean KL(softmax(answers / T) || softmax(logits / T)) over images, in [0, inf).

    Hinton et al. 2015, section 2, without hard labels. logits and answers: (N, K); lower is nearer.
    The square keeps the size of gradients the same for all T.
    """
    student, teacher = (F.log_softmax(x / temperature, dim=1) for x in (logits, answers))
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


class Ensemble(nn.Module):
    """Return the mean of the members' logits for images in [0, 1]."""

    def __init__(self, members: list[Target]) -> None:
        super().__init__()
        self.members = members

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([member(x) for member in self.members]).mean(0)
