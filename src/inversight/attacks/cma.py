"""CMA-ES in the prior's latents: evolution strategies that adapt where and how far to step.

Threat model: scores. The attacker sends images and reads probabilities, and has a prior trained on
public images. Each class has several independent searches (Hansen 2016, "The CMA Evolution Strategy: A
Tutorial"; with a diagonal covariance for wide latents: Ros and Hansen 2008). They start from the most
confident samples of the prior, and each gives one candidate, so that the candidates of a class differ.
They only use the target's confidence. The strategy itself is the library `cmaes`.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from inversight.attacks.base_attack import Problem
from inversight.attacks.pool_space import PoolSpace
from inversight.attacks.score_search import ScoreSearch, Search
from inversight.attacks.workload import Workload
from inversight.core.config import settings
from inversight.core.errors import InputError
from inversight.core.seeding import derive_seed, generator
from inversight.priors.base import Prior

_WIDE = 64
"""From this number of coordinates on the covariance is diagonal: learning a full one would take more
generations than an attack has, and each would decompose a large matrix."""


@settings
class CmaEs(ScoreSearch):
    """CMA-ES: independent searches in latent space by the target's scores alone."""

    ascending: ClassVar[tuple[str, ...]] = ("keep", "searches", "pool")

    pool: PositiveInt = 5000
    """Latents sampled and classified once, for all classes together. Coordinates are measured in
    standard deviations from their mean, and clipped to the range that they have in the pool."""
    searches: PositiveInt = 60
    """Independent searches of a class, each from another of the pool's most confident samples."""
    population: Annotated[int, Field(ge=4)] | None = None
    """Latents that a search tries in a generation; None: 4 + 3 log(coordinates) (Hansen 2016)."""
    generations: PositiveInt = 40
    """Generations of a search at most; a search that has converged ends earlier."""
    step: PositiveFloat = 0.3
    """First step size, in standard deviations of the pool (Hansen 2016: about 0.3 of the range in
    which the optimum is expected)."""

    def workload(self, prior: Prior) -> Workload:
        width = prior.sample(1, rng=generator(0)).numel()
        tried = self.generations * self.population_size(width)
        return self.limited_workload(self.searches * (tried + self.crops))

    def population_size(self, width: int) -> int:
        """Return the latents that a search tries in a generation, for ``width`` coordinates."""
        return self.population or 4 + math.floor(3 * math.log(width))

    def begin(self, problem: Problem) -> Search:
        return _Strategies(self, problem)


class _Strategies(Search):
    """All strategies of all classes, class by class."""

    def __init__(self, attack: CmaEs, problem: Problem) -> None:
        super().__init__(problem, attack.generations)
        self.attack = attack
        pool = attack.classified_pool(problem)
        self.space = PoolSpace(pool.latents)
        if self.space.width < 2:
            raise InputError(
                "CmaEs: the prior's latents have one coordinate, and a search needs two or more; "
                "choose another --attack"
            )
        self.population = attack.population_size(self.space.width)
        self.strategies = [
            _Strategy(
                self.space.points[row].numpy(), float(pool.scores[row, label]), label,
                self.population, attack.step, derive_seed(problem.seed, "search", label, number),
            )
            for label, rows in zip(
                problem.labels.tolist(), pool.best(problem.labels, attack.searches), strict=True
            )
            for number, row in enumerate(rows.tolist())
        ]  # fmt: skip

    def advance(self, step: int) -> bool:
        active = [strategy for strategy in self.strategies if not strategy.ended]
        if not active:
            return False
        points = [strategy.ask() for strategy in active]
        labels = torch.tensor([strategy.label for strategy in active])
        scores = self.problem.log_confidence(
            self.space.latents(torch.from_numpy(np.concatenate(points))),
            labels.repeat_interleave(self.population),
        ).split(self.population)
        for strategy, tried, score in zip(active, points, scores, strict=True):
            strategy.tell(tried, score.double().numpy())
        return True

    def candidates(self) -> tuple[Tensor, Tensor]:
        best = torch.from_numpy(np.stack([strategy.best for strategy in self.strategies]))
        scores = torch.tensor([strategy.score for strategy in self.strategies])
        return self.space.latents(best), scores


class _Strategy:
    """One CMA-ES with its own randomness, and the best point that it has evaluated."""

    def __init__(
        self, start: NDArray[np.float64], score: float, label: int, population: int,
        step: float, seed: int,
    ) -> None:  # fmt: skip
        from cmaes import CMA, SepCMA  # brings scipy.stats, which takes seconds

        self.best, self.score, self.label = start, score, label
        kind = SepCMA if len(start) >= _WIDE else CMA
        self._strategy: Any = kind(
            mean=start.copy(), sigma=step, population_size=population, seed=seed % 2**32
        )
        self.ended = False

    def ask(self) -> NDArray[np.float64]:
        """Return the next generation's points, (population, D)."""
        return np.stack([self._strategy.ask() for _ in range(self._strategy.population_size)])

    def tell(self, points: NDArray[np.float64], scores: NDArray[np.float64]) -> None:
        """Update the strategy with the scores (population,) of its points, higher is better.

        The points are those drawn, although their scores are those of the clipped ones: moved points
        would distort the strategy's statistics, and nothing is gained beyond the range.
        """
        first = int(scores.argmax())
        if scores[first] > self.score:
            self.best, self.score = points[first].copy(), float(scores[first])
        self._strategy.tell(list(zip(points, -scores, strict=True)))
        self.ended = bool(self._strategy.should_stop())
