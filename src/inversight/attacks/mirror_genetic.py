"""MIRROR's black-box attack (An et al., NDSS 2022): a genetic search in W.

Threat model: scores. The attacker sends images and reads probabilities, and has a prior trained on
public images. The constants are those of the published code. Differences from it:

- A coordinate comes from the first parent with probability c1 / (c1 + c2), where c are the parents'
  confidences. The published code has their logarithms there, so that the less confident parent
  contributes more.
- Every child is mutated with its own noise; the published code draws one noise for each generation.
- It returns several reconstructions of a class, the best distinct individuals of all generations, and
  does not stop at the first one of 0.95 confidence.
- The pool is smaller (published: 100,000 samples).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from inversight.attacks.base_attack import Problem
from inversight.attacks.constraints import PSpace
from inversight.attacks.score_search import ScoreSearch, Search
from inversight.attacks.workload import Workload
from inversight.core.config import Fraction, settings
from inversight.priors.base import Prior


@settings
class MirrorGenetic(ScoreSearch):
    """MIRROR, black box: a population of latents for each class, bred by the target's scores alone."""

    ascending: ClassVar[tuple[str, ...]] = ("keep", "candidates", "population", "pool")

    pool: PositiveInt = 5000
    """Latents sampled and classified once, for all classes together; they also give the statistics of W
    (published: 100,000)."""
    truncation: Fraction = 0.7
    """Truncation of the pool towards the mean latent (published: 0.7)."""
    population: PositiveInt = 100
    """Individuals of a class; the first are the pool's most confident ones (published: 100)."""
    generations: PositiveInt = 100
    """Generations bred after the first (published: at most 100)."""
    mutation_probability: Fraction = 0.1
    """Fraction of a child's coordinates that are mutated (published: 0.1)."""
    mutation_scale: PositiveFloat = 0.1
    """Largest mutation, in standard deviations of the coordinate in P (published: 0.1)."""
    bound: PositiveFloat = 1.0
    """Standard deviations from the mean beyond which coordinates are clipped in P (published: 1)."""
    slope: PositiveFloat = 0.2
    """Negative slope of the leaky rectifier from P to W (StyleGAN: 0.2); 1 for latents that are not W,
    which are then clipped and mutated as they are."""
    candidates: PositiveInt = 100
    """Best distinct individuals of a class that are tried with crops at the end."""

    def workload(self, prior: Prior) -> Workload:
        children = self.generations * (self.population - 1)
        return self.limited_workload(children + self.candidates * self.crops)

    def begin(self, problem: Problem) -> Search:
        return _Populations(self, problem)

    def children(self, parents: Individuals, space: PSpace, rng: torch.Generator) -> Tensor:
        """Return one child less than parents: drawn by confidence, crossed, mutated, clipped."""
        count = len(parents.scores) - 1
        weights = (parents.scores - parents.scores.max()).exp()
        drawn = torch.multinomial(weights, 2 * count, replacement=True, generator=rng)
        first, second = drawn.view(2, count)
        # c1 / (c1 + c2) of the logarithms of c1 and c2.
        share = torch.sigmoid(parents.scores[first] - parents.scores[second])
        shape = (count, *parents.latents.shape[1:])
        device = parents.latents.device
        from_first = torch.rand(shape, generator=rng) < share.view(-1, *[1] * (len(shape) - 1))
        mutated = torch.rand(shape, generator=rng) < self.mutation_probability
        noise = self.mutation_scale * (2.0 * torch.rand(shape, generator=rng) - 1.0)
        crossed = torch.where(
            from_first.to(device), parents.latents[first], parents.latents[second]
        )
        return space.moved(crossed, (noise * mutated).to(device))


@dataclass(frozen=True)
class Individuals:
    """latents: (n, ...). scores: (n,), the logarithms of the target's confidence, on the CPU."""

    latents: Tensor
    scores: Tensor

    def joined(self, other: Individuals) -> Individuals:
        """Return these and the others."""
        return Individuals(
            torch.cat([self.latents, other.latents]), torch.cat([self.scores, other.scores])
        )

    def best(self, count: int) -> Individuals:
        """Return the ``count`` most confident distinct individuals, in order."""
        seen: dict[bytes, int] = {}
        order = self.scores.argsort(descending=True, stable=True)
        rows = self.latents[order].flatten(1).cpu().numpy()
        for i, row in enumerate(rows):
            seen.setdefault(row.tobytes(), i)
        kept = order[torch.tensor(list(seen.values())[:count])]
        return Individuals(self.latents[kept], self.scores[kept])


class _Populations(Search):
    """One population for each class, and the best distinct individuals of all its generations."""

    def __init__(self, attack: MirrorGenetic, problem: Problem) -> None:
        super().__init__(problem, attack.generations if attack.population > 1 else 0)
        self.attack = attack
        pool = attack.classified_pool(problem)
        self.space = PSpace.of(pool.latents, slope=attack.slope, bound=attack.bound)
        rows_by_class = pool.best(problem.labels, attack.population)
        self.living = [
            Individuals(pool.latents[rows], pool.scores[rows, label])
            for rows, label in zip(rows_by_class, problem.labels.tolist(), strict=True)
        ]
        self.best = [population.best(attack.candidates) for population in self.living]
        self.rngs = problem.rngs("search")

    def advance(self, step: int) -> bool:
        children = [
            self.attack.children(parents, self.space, rng)
            for parents, rng in zip(self.living, self.rngs, strict=True)
        ]
        scores = self.problem.log_confidence(torch.cat(children)).split(len(children[0]))
        for number, (latents, score) in enumerate(zip(children, scores, strict=True)):
            born, parents = Individuals(latents, score), self.living[number]
            self.best[number] = self.best[number].joined(born).best(self.attack.candidates)
            first = parents.scores.argmax()[None]
            # Of the parents only the most confident one survives.
            elite = Individuals(parents.latents[first], parents.scores[first])
            self.living[number] = elite.joined(born)
        return True

    def candidates(self) -> tuple[Tensor, Tensor]:
        latents = torch.stack([one.latents for one in self.best])  # as many of each class
        return latents.flatten(0, 1), torch.cat([one.scores for one in self.best])
