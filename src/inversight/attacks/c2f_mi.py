"""C2FMI (Ye et al., IEEE TDSC 2023): from coarse to fine, by the target's scores alone.

Threat model: scores. The attacker sends images and reads probabilities, and has a prior trained on
public images. Coarse: a network learns to invert the target's answers, and predicts the image of a
confident answer. Fine: differential evolution on the target's confidence. Constants are those of the
published code. Differences from it:

- The inverse network maps answers to latents. The published one maps answers to features of a face
  network, to which latents are then fitted by gradients. Here a prior's samples already are pairs of
  latent and answer, so no second network trained on faces is needed.
- The search starts from the pool's most confident samples. Each is moved by the difference between the
  network's predictions for a confident answer and for its own, if the target is more confident then. The
  published search starts from many latents fitted to the same features.
- It returns several reconstructions of a class, the best of the last generation.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, ClassVar

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from inversight.attacks.base_attack import Problem
from inversight.attacks.constraints import PoolSpace
from inversight.attacks.score_search import ScoreSearch, Search
from inversight.attacks.workload import Workload
from inversight.core.config import Fraction, settings
from inversight.core.seeding import generator
from inversight.priors.base import Prior


@settings
class C2fMi(ScoreSearch):
    """C2FMI: an inverse network's coarse latents, refined by differential evolution on scores."""

    ascending: ClassVar[tuple[str, ...]] = ("keep", "population", "pool")

    pool: PositiveInt = 5000
    """Latents sampled and classified once, for all classes together: the inverse network learns from
    them, and the search starts from the most confident ones (published: 150,000 public images)."""
    hidden: PositiveInt = 512
    """Width of the inverse network's two hidden layers (published: 4,096, for 10,575 classes)."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.25
    """Dropout before its last layer (published: 0.25)."""
    epochs: PositiveInt = 20
    """Epochs of its training, over the pool (published: 20)."""
    learning_rate: PositiveFloat = 1e-3
    """Adam's step size in its training (published: 1e-3)."""
    training_batch: PositiveInt = 128
    """Answers in a training step (published: 128)."""
    least: PositiveFloat = 1e-4
    """Lower bound of probabilities in answers, and the probability of all other classes in the confident
    answer that is inverted."""
    population: Annotated[int, Field(ge=2)] = 32
    """Individuals of a class (published: 32)."""
    generations: PositiveInt = 300
    """Generations of a class (published: 300)."""
    attraction: Fraction = 0.02
    """Fraction of the way to the best that a child moves (published: 0.02)."""
    difference: PositiveFloat = 0.1
    """Weight of each difference that is added to a child (published: 0.1)."""
    pairs: PositiveInt = 4
    """Differences of two individuals that are added to a child (published: 4)."""
    crossover: Fraction = 0.5
    """Probability that a coordinate is changed in a child (published: 0.5)."""
    settling: NonNegativeInt = 30
    """Last generations, in which the weight of differences decreases (published: 30)."""
    settling_scale: PositiveFloat = 50.0
    """In those, the weight is multiplied by the generations left over this number (published: 50)."""
    keep: PositiveInt = 32
    """Reconstructions kept for each class."""

    def workload(self, prior: Prior) -> Workload:
        return self.limited_workload(self.population * (1 + self.generations + self.crops))

    def begin(self, problem: Problem) -> Search:
        return _Evolution(self, problem)

    def invert(
        self, space: PoolSpace, scores: Tensor, labels: Tensor, rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Train the inverse network on the pool's answers (P, K); return its predictions.

        They are points (P, D) for the pool's answers, and points (L, D) for a confident answer of each
        class.
        """
        answers = scores.clamp(min=math.log(self.least))
        mean, deviation = answers.mean(0), answers.std(0).clamp_min(1e-3)
        answers = (answers - mean) / deviation
        points = space.points.float()
        sizes = (scores.shape[1], self.hidden, self.hidden, space.width)
        one, two, last = layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
        for layer in layers:
            nn.init.kaiming_uniform_(layer.weight, a=5**0.5, generator=rng)
            nn.init.zeros_(layer.bias)
        relu, dropout = nn.LeakyReLU(0.2), _Dropout(self.dropout, rng)
        network = nn.Sequential(one, relu, two, relu, dropout, last)
        optimiser = torch.optim.Adam(network.parameters(), lr=self.learning_rate)
        for _ in range(self.epochs):
            for index in torch.randperm(len(points), generator=rng).split(self.training_batch):
                loss = F.mse_loss(network(answers[index]), points[index])
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
        confident = torch.full((len(labels), scores.shape[1]), math.log(self.least))
        confident[torch.arange(len(labels)), labels] = 0.0
        network.eval()
        with torch.no_grad():
            return network(answers).double(), network((confident - mean) / deviation).double()

    def children(
        self, points: Tensor, scores: Tensor, generation: int, rngs: list[torch.Generator]
    ) -> Tensor:
        """Return one child of each individual, (classes, population, D)."""
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


class _Evolution(Search):
    """One population for each class: points (L, population, D), and scores (L, population)."""

    def __init__(self, attack: C2fMi, problem: Problem) -> None:
        super().__init__(problem, 1 + attack.generations)
        self.attack = attack
        pool = attack.classified_pool(problem)
        self.space = PoolSpace(pool.latents)
        inverse_rng = generator(problem.seed, "inverse")
        inverted, confident = attack.invert(self.space, pool.scores, problem.labels, inverse_rng)
        rows = pool.best(problem.labels, attack.population)
        self.points = self.space.points[rows]
        self.scores = pool.scores[rows, problem.labels[:, None]]
        self.coarse = self.points + confident[:, None] - inverted[rows]
        self.rngs = problem.rngs("search")

    def advance(self, step: int) -> bool:
        children = self.coarse
        if step > 0:
            children = self.attack.children(self.points, self.scores, step - 1, self.rngs)
        # Beyond the range a step would change nothing.
        children = self.space.clipped(children)
        scores = self.problem.log_confidence(self.space.latents(children)).view(self.scores.shape)
        # A child replaces its parent if the target is more confident in it.
        better = scores > self.scores
        self.points = torch.where(better[:, :, None], children, self.points)
        self.scores = scores.maximum(self.scores)
        return True

    def candidates(self) -> tuple[Tensor, Tensor]:
        return self.space.latents(self.points), self.scores.flatten()


class _Dropout(nn.Module):
    """Dropout that draws from a generator of its own."""

    def __init__(self, probability: float, rng: torch.Generator) -> None:
        super().__init__()
        self.probability, self.rng = probability, rng

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.probability == 0.0:
            return x
        kept = torch.rand(x.shape, generator=self.rng) >= self.probability
        return x * kept / (1.0 - self.probability)
