"""Training images from the weights alone (Haim et al., NeurIPS 2022; Buzaglo et al., NeurIPS 2023).

Threat model: white box. The attacker has the target's weights and nothing else: no prior, no public images, no
query. For multilayer perceptrons on pixels that were trained with weight decay until it had erased the initial
weights. Candidates minimise the papers' objective, here in the span of the first layer's rows, in which all
training images lie (:mod:`inversight.attacks.stationarity`). From them single images are read out of the first
layer (:mod:`inversight.attacks.selectors`), exactly once all images of the span are found. Differences from the
papers:

- Selectors, and the span, are this project's own.
- Adam, and as many steps for images as for multipliers (published: SGD with momentum, with two step sizes, from
  a random search over settings). Multipliers are positive by an exponential (published: a penalty).
- The objective's norm is expanded into products of candidates, in float64, for all restarts at once.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from inversight.attacks.base import Reconstructions
from inversight.attacks.base_attack import BaseAttack, Problem
from inversight.attacks.mlp import Mlp, read_mlp
from inversight.attacks.reading import read_images
from inversight.attacks.signals import FirstLayer
from inversight.attacks.stationarity import (
    Objective,
    Span,
    candidates,
    span_of,
    stationarity_residual,
    whole_space,
)
from inversight.attacks.workload import Workload
from inversight.core.config import settings
from inversight.core.errors import InputError
from inversight.core.progress import part_of
from inversight.core.seeding import generator
from inversight.data import ImageSet
from inversight.models.target import Access, Target
from inversight.priors.base import Prior

_STATIONARY = 0.5
"""Largest residual of weights that are called stationary. It stays at 0.1 to 0.3 for weights that have stopped
changing, since images lie on kinks, where there is no gradient; before, it is near 1."""


@settings
class WeightReconstruction(BaseAttack):
    """Reconstruction from the weights of a multilayer perceptron. The latents that it returns are the images.

    The prior is not used. The first reconstructions of a class are the images that were read out of the
    weights (their loss is at most 0.5, and the lower, the more neurons certify them), the others candidates
    (their loss is 1 + the objective).
    """

    access: ClassVar[Access] = Access.WHITE_BOX
    joint: ClassVar[bool] = True
    """Classes must be attacked together: the weights are a sum over the images of all."""

    images: PositiveInt | None = None
    """Number of training images. None: as many as the first layer's singular values show, or ``guess``."""
    guess: PositiveInt = 100
    """Number of training images if neither ``images`` nor the weights say it."""
    restarts: PositiveInt = 6
    """Sets of candidates, each with two for every training image (papers: about 2)."""
    steps: PositiveInt = 500
    """Steps of the candidates (papers: 50,000)."""
    learning_rate: PositiveFloat = 0.05
    """Adam's step size, in the first layer's inputs."""
    sharpness: PositiveFloat = 100.0
    """Sharpness of the sigmoid for the derivative of ReLU (papers: 10 to 500)."""
    start: PositiveFloat = 0.1
    """Standard deviation of the starts, in the first layer's inputs (papers: 1e-5 to 0.1)."""
    variation: NonNegativeFloat = 0.0
    """Weight of the candidates' total variation."""
    rounds: NonNegativeInt = 6
    """Rounds of the search for single images and their solution; 0: candidates alone, as published."""
    searches: PositiveInt = 1200
    """Starts of the search for single images in each round."""
    keep: PositiveInt = 10
    """Most reconstructions of each class."""

    def workload(self, prior: Prior) -> Workload:
        return Workload(self.keep, self.batch_size, generates=False)

    def check(self, target: Target, prior: Prior) -> None:
        super().check(target, prior)
        mlp = read_mlp(target)
        images = self.images or target.num_classes
        pixels = len(mlp.scale)
        if _numbers(mlp) <= images * pixels:
            raise InputError(
                "WeightReconstruction needs a network with more parameters than training images x pixels: "
                f"{target.spec} has {_numbers(mlp):,}, and {images} images of {pixels} pixels are "
                f"{images * pixels:,}; choose another --attack"
            )

    def advice(self, target: Target, private: ImageSet) -> tuple[str, ...]:
        """Return at most one warning: why the target may hide the images that it was trained on."""
        mlp = read_mlp(target)
        channels, *size = target.image_shape
        images = private.floats(size=(size[0], size[1]), channels=channels)
        names = [private.classes[label] for label in private.labels.tolist()]
        labels = torch.tensor([target.classes.index(name) for name in names])
        residual, decay = stationarity_residual(mlp, images, labels)
        pixels = len(mlp.scale)
        found = []
        if _numbers(mlp) <= len(private) * pixels:
            found.append(
                f"its {_numbers(mlp):,} parameters are fewer than the numbers in {len(private)} images of "
                f"{pixels} pixels"
            )
        if span_of(mlp, self.images) is None:
            found.append(
                "the singular values of its first layer do not show the span of the training images, so "
                "there are candidates alone"
            )
        if residual > _STATIONARY:
            found.append(
                "on the private images it is far from a stationary point of training with weight decay "
                f"(residual {residual:.2g}, 0 at such a point; weight decay {decay:.1e})"
            )
        if not found:
            return ()
        return (f"weight-reconstruction may find little in this target: {'; '.join(found)}",)

    def reconstruct(self, problem: Problem) -> Reconstructions:
        mlp = read_mlp(problem.target)
        shown = span_of(mlp, self.images)
        span = shown or whole_space(mlp)
        count = self.images or (self.guess if shown is None else len(shown.basis))
        fitting = self.restarts * self.steps
        reading = self.rounds * self.searches
        whole = fitting + reading
        fitted, labels, losses = self._candidates(problem, mlp, span, count, whole)
        images, owners, order = [fitted.flatten(0, 1)], [labels.repeat(self.restarts)], [losses]
        layer = FirstLayer(mlp, span)
        if shown is not None and reading > 0 and layer.many:
            found = read_images(
                layer, images[0], rounds=self.rounds, searches=self.searches,
                rng=generator(problem.seed, "reading"),
                progress=part_of(problem.progress, before=fitting, share=reading, whole=whole),
            )  # fmt: skip
            images.insert(0, found.coordinates)
            owners.insert(0, found.labels)
            order.insert(0, 1.0 / (2.0 + found.zeros.double()))
        problem.progress(whole, whole, "images read out of the weights")
        return self._best(
            problem, mlp, span, torch.cat(images), torch.cat(owners), torch.cat(order)
        )

    def _candidates(
        self, problem: Problem, mlp: Mlp, span: Span, count: int, whole: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return coordinates (R, M, n) of the candidates, labels (M,) and losses (R x M,)."""
        classes = len(mlp.weights[-1])
        each = max(1, round(2 * count / classes))
        labels = torch.arange(classes).repeat_interleave(each)
        size = span.basis.shape[1] - 1
        start = []
        for restart in range(self.restarts):
            rng = generator(problem.seed, "start", restart)
            noise = self.start * torch.randn(len(labels), size, generator=rng, dtype=torch.float64)
            inputs = torch.cat([noise, torch.ones(len(labels), 1, dtype=torch.float64)], dim=1)
            start.append(inputs @ span.basis.T)
        objective = Objective(mlp, span, self.sharpness)
        share = self.restarts * self.steps
        progress = part_of(problem.progress, before=0, share=share, whole=whole)
        found, multipliers = candidates(
            objective, labels, torch.stack(start), steps=self.steps,
            learning_rate=self.learning_rate, variation=self.variation,
            shape=problem.target.image_shape, progress=progress,
        )  # fmt: skip
        fit = objective(found, labels, multipliers)
        # Candidates that the weights need little of come last within a restart.
        rank = multipliers.argsort(dim=1, descending=True).argsort(dim=1) / len(labels)
        return found, labels, (1.0 + fit[:, None] + 1e-3 * rank).flatten()

    def _best(
        self, problem: Problem, mlp: Mlp, span: Span, coordinates: Tensor, owners: Tensor, losses: Tensor,
    ) -> Reconstructions:  # fmt: skip
        rows = []
        for label in problem.labels.tolist():
            own = (owners == label).nonzero().squeeze(1)
            rows.append(own[losses[own].argsort(stable=True)[: self.keep]])
        chosen = torch.cat(rows)
        pixels = mlp.pixels(span.inputs(coordinates[chosen]))
        images = pixels.float().unflatten(1, problem.target.image_shape)
        return Reconstructions(images, owners[chosen], images, losses[chosen].float())


def _numbers(mlp: Mlp) -> int:
    """Return the number of parameters."""
    return sum(one.numel() for one in mlp.parameters)
