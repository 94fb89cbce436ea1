"""C2FMI (Ye et al., IEEE TDSC 2023): from coarse to fine, by the target's scores alone.

Threat model: scores. The attacker sends images and reads probabilities, and has a prior trained on
public images. Coarse: a network learns to invert the target's answers, and says what an image looks
like that the target is sure of. Fine: differential evolution on the target's confidence. Constants
are those of the published code. What differs from it, and why:

- The inverse network goes from answers to latents. The published one goes from answers to features
  of a face network, to which latents are then fitted by its gradients: a prior's samples are pairs of
  latent and answer already, and no second network trained on faces is needed.
- The pool's surest samples start the search, each moved by what the network says lies between its
  answer and a sure one, where the target is surer of it then; the published start is many latents
  fitted to the same features.
- It returns several reconstructions of a class, the last generation's best.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Annotated

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from inversight.attacks.base import Reconstructions
from inversight.attacks.pool_space import PoolSpace
from inversight.attacks.queries import QueriesSpentError, admitted
from inversight.attacks.selection import ScoreSearch, classified_pool, end_search, log_confidence
from inversight.core.config import Fraction, settings
from inversight.core.errors import InputError
from inversight.core.progress import Progress, silent
from inversight.core.seeding import draw_seed, generator
from inversight.models.target import Target
from inversight.priors.base import Prior


@settings
class C2fMi(ScoreSearch):
    """C2FMI: an inverse network's coarse latents, refined by differential evolution on scores."""

    pool: PositiveInt = 5000
    """Latents sampled and classified once, for all classes together: the inverse network learns from
    them, and the searches start at the surest (published: 150,000 public images)."""
    truncation: Fraction = 0.5
    """Truncation of the pool towards the mean latent (as Plug & Play: 0.5)."""
    hidden: PositiveInt = 512
    """Width of the inverse network's two hidden layers (published: 4,096, for 10,575 classes)."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.25
    """Dropout before its last layer (published: 0.25)."""
    epochs: PositiveInt = 20
    """Passes over the pool that it is trained for (published: 20)."""
    learning_rate: PositiveFloat = 1e-3
    """Adam's step size in its training (published: 1e-3)."""
    training_batch: PositiveInt = 128
    """Answers in a training step (published: 128)."""
    least: PositiveFloat = 1e-4
    """Probability below which answers are not told apart, and that of all other classes in the sure
    answer that is inverted."""
    population: PositiveInt = 32
    """Individuals of a class (published: 32)."""
    generations: PositiveInt = 300
    """Generations of a class (published: 300)."""
    attraction: Fraction = 0.02
    """Share of the way to the best that a child goes (published: 0.02)."""
    difference: PositiveFloat = 0.1
    """Weight of each difference that is added to a child (published: 0.1)."""
    pairs: PositiveInt = 4
    """Differences of two individuals that are added to a child (published: 4)."""
    crossover: Fraction = 0.5
    """Share of the coordinates that a child has of its own (published: 0.5)."""
    settling: NonNegativeInt = 30
    """Last generations, in which the weight of differences falls (published: 30)."""
    settling_scale: PositiveFloat = 50.0
    """What the generations left are divided by for that weight, in those last ones (published: 50)."""
    keep: PositiveInt = 32
    """Reconstructions kept for each class."""

    def planned_queries(self, prior: Prior, classes: int) -> int:
        """Images that the attack sends for so many classes if nothing limits it."""
        return self.pool + classes * self.population * (1 + self.generations + self.crops)

    def check(self, target: Target, prior: Prior) -> None:
        """Refuse settings that contradict each other, before the first query.

        Raises:
            InputError: they do.
        """
        if not self.keep <= self.population <= self.pool or self.population < 2:
            raise InputError(
                "C2fMi: expected keep <= population <= pool and a population of at least 2, found "
                f"keep={self.keep}, population={self.population}, pool={self.pool}"
            )

    def run(
        self,
        target: Target,
        prior: Prior,
        labels: Tensor,
        *,
        rng: torch.Generator,
        progress: Progress = silent,
    ) -> Reconstructions:
        """Reconstruct each class in ``labels`` (distinct class indices).

        Raises:
            InputError: the target gives labels alone, or the settings contradict each other.
            QueriesSpentError: ``most_queries`` does not even cover the pool.
        """
        target, meter = admitted(self, target, prior, self.most_queries)
        seed = draw_seed(rng)
        total = self.generations + 3
        pool = classified_pool(
            target, prior, self.pool, truncation=self.truncation,
            batch_size=self.batch_size, rng=generator(seed, "pool"),
        )  # fmt: skip
        progress(1, total, "pool classified")
        space = PoolSpace(pool.latents)
        inverted, sure = self._inverted(space, pool.scores, labels, generator(seed, "inverse"))
        progress(2, total, "inverse network trained")

        rows = pool.best(labels, self.population)
        points = space.points[rows]
        scores = pool.scores[rows, labels[:, None]]
        wanted = labels.repeat_interleave(self.population)
        rngs = [generator(seed, "search", label) for label in labels.tolist()]

        def surer(children: Tensor) -> tuple[Tensor, Tensor]:
            """The children that the target is surer of than of their parents, in their places."""
            children = space.clipped(children)  # beyond the range a step would change nothing
            latents = space.latents(children)
            found = log_confidence(target, prior, latents, wanted, batch_size=self.batch_size)
            found = found.view(scores.shape)
            better = found > scores
            return torch.where(better[:, :, None], children, points), found.maximum(scores)

        try:
            points, scores = surer(points + sure[:, None] - inverted[rows])
            for generation in range(self.generations):
                points, scores = surer(self._children(points, scores, generation, rngs))
                progress(generation + 3, total, f"generations, {meter.used:,} queries")
        except QueriesSpentError:
            pass  # The best so far is what there is.
        made = end_search(
            target,
            prior,
            labels,
            space.latents(points).view(len(labels), self.population, *pool.latents.shape[1:]),
            scores,
            self.crop_draws,
            keep=self.keep,
            batch_size=self.batch_size,
            rng=generator(seed, "crops"),
        )
        progress(total, total, f"reconstructions selected, {meter.used:,} queries")
        return replace(made, queries=meter.used)

    def _inverted(
        self, space: PoolSpace, scores: Tensor, labels: Tensor, rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Points (P, D) that the inverse network gives for the pool's answers (P, K), on which it is
        trained, and those (L, D) that it gives for a sure answer of each class."""
        answers = scores.clamp(min=math.log(self.least))
        mean, deviation = answers.mean(0), answers.std(0).clamp_min(1e-3)
        answers = (answers - mean) / deviation
        points = space.points.float()
        network = _Inverse(scores.shape[1], self.hidden, space.width, self.dropout, rng)
        optimiser = torch.optim.Adam(network.parameters(), lr=self.learning_rate)
        for _ in range(self.epochs):
            for index in torch.randperm(len(points), generator=rng).split(self.training_batch):
                loss = F.mse_loss(network(answers[index], rng), points[index])
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
        sure = torch.full((len(labels), scores.shape[1]), math.log(self.least))
        sure[torch.arange(len(labels)), labels] = 0.0
        with torch.no_grad():
            found = network(answers), network((sure - mean) / deviation)
        return found[0].double(), found[1].double()

    def _children(
        self, points: Tensor, scores: Tensor, generation: int, rngs: list[torch.Generator]
    ) -> Tensor:
        """One child of each individual, (classes, population, D)."""
        left = self.generations - generation
        weight = self.difference
        if left <= self.settling:
            weight *= left / self.settling_scale
        children = []
        for own, score, rng in zip(points, scores, rngs, strict=True):
            shape = (2, self.population, self.pairs)
            one, other = torch.randint(self.population, shape, generator=rng)
            moved = own + self.attraction * (own[score.argmax()] - own)
            moved = moved + weight * (own[one] - own[other]).sum(1)
            crossed = torch.rand(own.shape, generator=rng) < self.crossover
            children.append(torch.where(crossed, moved, own))
        return torch.stack(children)


class _Inverse(nn.Module):
    """Answers (n, K) -> points (n, D): two hidden layers, and dropout where a generator is given."""

    def __init__(
        self, classes: int, hidden: int, width: int, dropout: float, rng: torch.Generator
    ) -> None:
        super().__init__()
        sizes = (classes, hidden, hidden, width)
        layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
        for layer in layers:
            nn.init.kaiming_uniform_(layer.weight, a=5**0.5, generator=rng)
            nn.init.zeros_(layer.bias)
        self.body = nn.Sequential(layers[0], nn.LeakyReLU(0.2), layers[1], nn.LeakyReLU(0.2))
        self.last = layers[2]
        self.dropout = dropout

    def forward(self, x: Tensor, rng: torch.Generator | None = None) -> Tensor:
        x = self.body(x)
        if rng is not None and self.dropout > 0:
            kept = torch.rand(x.shape, generator=rng) >= self.dropout
            x = x * kept / (1.0 - self.dropout)
        found: Tensor = self.last(x)
        return found
