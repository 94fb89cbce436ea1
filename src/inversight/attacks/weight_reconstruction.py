"""Training images from the weights alone (Haim et al., NeurIPS 2022; Buzaglo et al., NeurIPS 2023).

Threat model: white box. The attacker has the target's weights and nothing else: no prior, no public images, no
query. For multilayer perceptrons that were trained with weight decay until it had erased the initial weights:
on pixels, or as the head of a frozen backbone (Oz et al. 2024), whose features of the training images are
looked for then, and drawn by the prior. Candidates minimise the papers' objective, here in the span of the
first layer's rows, in which all training images lie (:mod:`inversight.attacks.stationarity`). From them single
images are read out of the first layer (:mod:`inversight.attacks.selectors`), exactly once enough images of the
span are found. Their parts are taken away from the weights, and the rest is searched again. Differences from
the papers:

- Selectors, the span, and the search of the rest are this project's own.
- Adam, and as many steps for images as for multipliers (published: SGD with momentum, with two step sizes, from
  a random search over settings). Multipliers are positive by an exponential (published: a penalty).
- The objective's norm is expanded into products of candidates, in float64, for all restarts at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
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
    candidates,
    span_of,
    stationarity_residual,
    whole_space,
)
from inversight.attacks.workload import Workload
from inversight.core.config import settings
from inversight.core.errors import InputError
from inversight.core.progress import Progress, part_of
from inversight.core.seeding import generator
from inversight.data import ImageSet
from inversight.models.backbone import features_of
from inversight.models.target import Access, Target
from inversight.priors.base import Prior
from inversight.priors.descent import descend, ramp

_STATIONARY = 0.5
"""Largest residual of weights that are called stationary. It stays at 0.1 to 0.3 for weights that have stopped
changing, since images lie on kinks, where there is no gradient; before, it is near 1."""


@settings
class WeightReconstruction(BaseAttack):
    """Reconstruction from the weights of a multilayer perceptron.

    The first reconstructions of a class are the images that were read out of the weights (their loss is at most
    0.5, and the lower, the more neurons certify them), the others candidates (their loss is 1 + the objective).
    The latents that it returns are the images. For the head of a frozen backbone features are found instead of
    images. The prior, which is used for nothing else, draws images of about these features, of its latents.
    """

    access: ClassVar[Access] = Access.WHITE_BOX
    joint: ClassVar[bool] = True
    """Classes must be attacked together: the weights are a sum over the images of all."""

    images: PositiveInt | None = None
    """Number of training images. None: as many as the first layer's singular values show, or ``guess``."""
    guess: PositiveInt = 100
    """Number of training images if neither ``images`` nor the weights say it."""
    restarts: PositiveInt = 6
    """Sets of candidates, each with two for every training image (papers: about 2). Later rounds have half
    as many."""
    steps: PositiveInt = 500
    """Steps of the candidates (papers: 50,000)."""
    learning_rate: PositiveFloat = 0.05
    """Adam's step size, in the first layer's inputs, which for a head are divided by their root mean square."""
    sharpness: PositiveFloat = 100.0
    """Sharpness of the sigmoid for the derivative of ReLU (papers: 10 to 500)."""
    start: PositiveFloat = 0.1
    """Standard deviation of the starts, in the same unit (papers: 1e-5 to 0.1)."""
    variation: NonNegativeFloat = 0.0
    """Weight of the candidates' total variation."""
    rounds: NonNegativeInt = 6
    """Rounds of the search for single images and their solution; 0: candidates alone, as published."""
    searches: PositiveInt = 1200
    """Starts of the search for single images in each round."""
    keep: PositiveInt = 10
    """Most reconstructions of each class."""
    pool: PositiveInt = 500
    """For a head: samples of the prior, whose nearest are moved until their features are those found."""
    inversion_steps: NonNegativeInt = 200
    """For a head: steps of that."""
    inversion_rate: PositiveFloat = 0.02
    """For a head: Adam's step size of that, in latents."""

    def workload(self, prior: Prior) -> Workload:
        return Workload(self.keep, self.batch_size, generates=False)

    def check(self, target: Target, prior: Prior) -> None:
        super().check(target, prior)
        mlp = read_mlp(target)
        images = self.images or target.num_classes
        pixels = len(mlp.scale)
        what = "features" if mlp.of_features else "pixels"
        if _numbers(mlp) <= images * pixels:
            raise InputError(
                f"WeightReconstruction needs layers with more parameters than training images x {what}: "
                f"those of {target.spec} have {_numbers(mlp):,}, and {images} images of {pixels} {what} are "
                f"{images * pixels:,}; choose another --attack"
            )
        if mlp.of_features and self.variation > 0:
            raise InputError(
                "WeightReconstruction: features have no total variation; leave variation out"
            )

    def advice(self, target: Target, private: ImageSet) -> tuple[str, ...]:
        """Return at most one warning: why the target may hide the images that it was trained on."""
        mlp = read_mlp(target)
        channels, *size = target.image_shape
        images = private.floats(size=(size[0], size[1]), channels=channels)
        names = [private.classes[label] for label in private.labels.tolist()]
        labels = torch.tensor([target.classes.index(name) for name in names])
        if mlp.of_features:
            with torch.no_grad():
                parts = (part.to(target.device) for part in images.split(self.batch_size))
                images = torch.cat([features_of(target, part).cpu() for part in parts])
        residual, decay = stationarity_residual(mlp, images, labels)
        pixels = len(mlp.scale)
        what = "features" if mlp.of_features else "pixels"
        found = []
        if _numbers(mlp) <= len(private) * pixels:
            found.append(
                f"its {_numbers(mlp):,} parameters are fewer than the numbers in {len(private)} images of "
                f"{pixels} {what}"
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
        drawn = _Drawn.of(problem, self.pool) if mlp.of_features else None
        unit = 1.0 if drawn is None else float(drawn.features.square().mean().sqrt())
        shape = problem.target.image_shape
        fit = _Fit(self, Objective(mlp, span, self.sharpness), count, unit, shape, problem.seed)
        first = part_of(problem.progress, before=0, share=fitting, whole=whole)
        fitted, labels, losses = fit.first(first)
        images, owners, order = [fitted], [labels], [losses]
        layer = FirstLayer(mlp, span)
        if shown is not None and reading > 0 and layer.many:
            found = read_images(
                layer, fitted, fit.rest, rounds=self.rounds, searches=self.searches,
                rng=generator(problem.seed, "reading"),
                progress=part_of(problem.progress, before=fitting, share=reading, whole=whole),
            )  # fmt: skip
            images.insert(0, found.coordinates)
            owners.insert(0, found.labels)
            order.insert(0, 1.0 / (2.0 + found.zeros.double()))
        problem.progress(whole, whole, "images read out of the weights")
        coordinates, owner, loss = torch.cat(images), torch.cat(owners), torch.cat(order)
        chosen = self._best(problem.labels, owner, loss)
        inputs, owner, loss = span.inputs(coordinates[chosen]), owner[chosen], loss[chosen].float()
        if drawn is None:
            pictures = mlp.pixels(inputs).float().unflatten(1, shape)
            return Reconstructions(pictures, owner, pictures, loss)
        features = inputs.float()
        latents = self._inverted(problem, drawn, features)
        with torch.no_grad():
            pictures = torch.cat(
                [problem.prior(one).cpu() for one in latents.split(self.batch_size)]
            )
        return Reconstructions(pictures, owner, latents, loss, features=features)

    def _best(self, labels: Tensor, owners: Tensor, losses: Tensor) -> Tensor:
        """Return the rows of the best of each class in ``labels``, best first within each."""
        rows = []
        for label in labels.tolist():
            own = (owners == label).nonzero().squeeze(1)
            rows.append(own[losses[own].argsort(stable=True)[: self.keep]])
        return torch.cat(rows)

    def _inverted(self, problem: Problem, drawn: _Drawn, features: Tensor) -> Tensor:
        """Return latents (M, ...) of the prior whose images have about these features (M, D)."""
        start = drawn.latents[
            torch.cdist(features, drawn.features).argmin(1).to(drawn.latents.device)
        ]
        wanted = features.to(start)
        size = wanted.square().sum(1).mean()

        def losses(variables: Sequence[Tensor]) -> Iterator[Tensor]:
            for rows in torch.arange(len(wanted)).split(self.batch_size):
                made = features_of(problem.target, problem.prior(variables[0][rows]))
                yield (made - wanted[rows]).square().sum(1) / size

        adam = partial(torch.optim.Adam, lr=self.inversion_rate)
        return descend([start], losses, optimiser=adam, steps=self.inversion_steps, rate=ramp)[0]


@dataclass(frozen=True)
class _Fit:
    """The candidates of an attack: images whose sum is the weights, or what is left of them.

    count: number of training images. unit: of the inputs, by which starts and steps are multiplied. shape: of
    an image, (C, H, W).
    """

    attack: WeightReconstruction
    objective: Objective
    count: int
    unit: float
    shape: tuple[int, int, int]
    seed: int

    def first(self, progress: Progress) -> tuple[Tensor, Tensor, Tensor]:
        """Return coordinates (M, n) of the first candidates, labels (M,) and losses (M,), of all restarts."""
        labels = self._labels(torch.zeros(0, dtype=torch.int64))
        restarts = self.attack.restarts
        found, multipliers = self._fitted(self.objective, labels, restarts, ("start",), progress)
        fit = self.objective(found, labels, multipliers)
        # Candidates that the weights need little of come last within a restart.
        rank = multipliers.argsort(dim=1, descending=True).argsort(dim=1) / len(labels)
        losses = (1.0 + fit[:, None] + 1e-3 * rank).flatten()
        return found.flatten(0, 1), labels.repeat(restarts), losses

    def rest(
        self, round_: int, selectors: Tensor, images: Tensor, labels: Tensor, progress: Progress
    ) -> Tensor:
        """Return candidates (M, n) for what is left of the weights without ``images``, from other starts."""
        objective = self.objective.without(selectors, images, labels)
        wanted, restarts = self._labels(labels), max(1, self.attack.restarts // 2)
        found, _ = self._fitted(objective, wanted, restarts, ("refit", round_), progress)
        return found.flatten(0, 1)

    def _labels(self, known: Tensor) -> Tensor:
        """Return the classes (M,) of candidates: two for each image that is not known yet."""
        classes = len(self.objective.mlp.weights[-1])
        left = round(2 * self.count / classes) - 2 * torch.bincount(known, minlength=classes)
        return torch.arange(classes).repeat_interleave(left.clamp_min(2 if len(known) else 1))

    def _fitted(
        self, objective: Objective, labels: Tensor, restarts: int, name: tuple[str | int, ...],
        progress: Progress,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Return coordinates (R, M, n) and multipliers (R, M)."""
        attack, span = self.attack, self.objective.span
        size, ones = span.basis.shape[1] - 1, torch.ones(len(labels), 1, dtype=torch.float64)
        start = []
        for restart in range(restarts):
            rng = generator(self.seed, *name, restart)
            noise = torch.randn(len(labels), size, generator=rng, dtype=torch.float64)
            inputs = torch.cat([self.unit * attack.start * noise, ones], dim=1)
            start.append(inputs @ span.basis.T)
        return candidates(
            objective, labels, torch.stack(start), steps=attack.steps,
            learning_rate=self.unit * attack.learning_rate, variation=attack.variation,
            shape=self.shape, progress=progress,
        )  # fmt: skip


@dataclass(frozen=True)
class _Drawn:
    """Samples of the prior: latents (P, ...), and features (P, D) float32 on the CPU."""

    latents: Tensor
    features: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, problem: Problem, count: int) -> _Drawn:
        latents = problem.sample(count, 1.0, "inversion")
        images = map(problem.prior, latents.split(problem.batch_size))
        parts = [features_of(problem.target, one).float().cpu() for one in images]
        return cls(latents, torch.cat(parts))


def _numbers(mlp: Mlp) -> int:
    """Return the number of parameters."""
    return sum(one.numel() for one in mlp.parameters)
