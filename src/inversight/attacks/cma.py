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
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from inversight.attacks.base_attack import Problem
from inversight.attacks.constraints import PoolSpace
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
    """All strategies of all classes, class by class, and the best point that each has evaluated.

    best: (S, D). scores: (S,), of the best.
    """

    def __init__(self, attack: CmaEs, problem: Problem) -> None:
        from cmaes import CMA, SepCMA  # brings scipy.stats, which takes seconds

        super().__init__(problem, attack.generations)
        pool = attack.classified_pool(problem)
        self.space = PoolSpace(pool.latents)
        width = self.space.width
        if width < 2:
            raise InputError(
                "CmaEs: the prior's latents have one coordinate, and a search needs two or more; "
                "choose another --attack"
            )
        self.population = attack.population_size(width)
        rows = pool.best(problem.labels, attack.searches).flatten()
        self.best, self.labels = self.space.points[rows], problem.labels_of(rows)
        self.scores = pool.scores[rows, self.labels]
        kind: Any = SepCMA if width >= _WIDE else CMA
        self._strategies = [
            kind(
                mean=start.copy(), sigma=attack.step, population_size=self.population,
                seed=derive_seed(problem.seed, "search", label, n % attack.searches) % 2**32,
            )
            for n, (start, label) in enumerate(
                zip(self.best.numpy(), self.labels.tolist(), strict=True)
            )
        ]  # fmt: skip
        self._active = list(range(len(rows)))

    def advance(self, step: int) -> bool:
        if not self._active:
            return False
        tried = np.stack(
            [[self._strategies[n].ask() for _ in range(self.population)] for n in self._active]
        )
        labels = self.labels[self._active].repeat_interleave(self.population)
        latents = self.space.latents(torch.from_numpy(tried))
        scores = self.problem.log_confidence(latents, labels).split(self.population)
        for n, points, score in zip(list(self._active), tried, scores, strict=True):
            first = score.argmax()
            if score[first] > self.scores[n]:
                self.best[n], self.scores[n] = torch.from_numpy(points[first]), score[first]
            # The points are those drawn, although their scores are those of the clipped ones: moved
            # points would distort the strategy's statistics, and nothing is gained beyond the range.
            self._strategies[n].tell(list(zip(points, -score.double().numpy(), strict=True)))
            if self._strategies[n].should_stop():
                self._active.remove(n)
        return True

    def candidates(self) -> tuple[Tensor, Tensor]:
        return self.space.latents(self.best), self.scores
