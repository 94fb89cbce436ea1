"""CMA-ES in the prior's latents: evolution strategies that learn where and how far to step.

Threat model: scores. The attacker sends images and reads probabilities, and has a prior trained on
public images. Several independent searches a class (Hansen 2016, "The CMA Evolution Strategy: A
Tutorial"; with a diagonal covariance where latents are wide: Ros and Hansen 2008) set out from the
surest samples of the prior; each gives one candidate, so that the candidates of a class differ. The
target's confidence is all that they see. The strategy itself is the library `cmaes`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from inversight.attacks.base import Reconstructions
from inversight.attacks.pool_space import PoolSpace
from inversight.attacks.queries import QueriesSpentError, admitted
from inversight.attacks.selection import ScoreSearch, classified_pool, end_search, log_confidence
from inversight.core.config import Fraction, settings
from inversight.core.errors import InputError
from inversight.core.progress import Progress, silent
from inversight.core.seeding import derive_seed, draw_seed, generator
from inversight.models.target import Target
from inversight.priors.base import Prior

_WIDE = 64
"""Latents of so many coordinates are searched with a diagonal covariance: a full one would take more
generations to learn than an attack has, and a decomposition of such a matrix each."""


@settings
class CmaEs(ScoreSearch):
    """CMA-ES: independent searches in latent space by the target's scores alone."""

    pool: PositiveInt = 5000
    """Latents sampled and classified once, for all classes together; coordinates are measured in
    their standard deviations from their mean, and clipped to the range that they have in it."""
    truncation: Fraction = 0.5
    """Truncation of the pool towards the mean latent (as Plug & Play: 0.5)."""
    searches: PositiveInt = 60
    """Independent searches of a class, each from another of the pool's surest; one candidate each."""
    population: Annotated[int, Field(ge=4)] | None = None
    """Latents that a search tries in a generation; None: 4 + 3 log(coordinates) (Hansen 2016)."""
    generations: PositiveInt = 40
    """Generations of a search at most; it ends earlier where it has come to rest."""
    step: PositiveFloat = 0.3
    """First step size, in standard deviations of the pool (Hansen 2016: about 0.3 of the range in
    which the best is expected)."""

    def planned_queries(self, prior: Prior, classes: int) -> int:
        """Images that the attack sends for so many classes if no search ends early."""
        width = prior.sample(1, rng=generator(0)).numel()
        tried = self.generations * self._population(width)
        return self.pool + classes * self.searches * (tried + self.crops)

    def check(self, target: Target, prior: Prior) -> None:
        """Refuse settings that contradict each other, before the first query.

        Raises:
            InputError: they do.
        """
        if not self.keep <= self.searches <= self.pool:
            raise InputError(
                "CmaEs: expected keep <= searches <= pool, found "
                f"keep={self.keep}, searches={self.searches}, pool={self.pool}"
            )

    @torch.no_grad()
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
            InputError: the target gives labels alone, the prior has one coordinate, or the settings
                contradict each other.
            QueriesSpentError: ``most_queries`` does not even cover the pool.
        """
        target, meter = admitted(self, target, prior, self.most_queries)
        seed = draw_seed(rng)
        total = self.generations + 2
        pool = classified_pool(
            target, prior, self.pool, truncation=self.truncation,
            batch_size=self.batch_size, rng=generator(seed, "pool"),
        )  # fmt: skip
        progress(1, total, "pool classified")
        space = PoolSpace(pool.latents)
        if space.width < 2:
            raise InputError(
                "CmaEs: the prior's latents have one coordinate, and a search needs two or more; "
                "choose another --attack"
            )
        population = self._population(space.width)
        searches = []
        for rows, label in zip(pool.best(labels, self.searches), labels.tolist(), strict=True):
            for number, row in enumerate(rows.tolist()):
                own = derive_seed(seed, "search", label, number)
                score = float(pool.scores[row, label])
                start = space.points[row].numpy().copy()
                searches.append(_Search(start, score, label, population, self.step, own))
        try:
            for generation in range(self.generations):
                going = [one for one in searches if not one.ended]
                if not going:
                    break
                tried = [one.ask() for one in going]
                latents = space.latents(torch.from_numpy(np.concatenate(tried)))
                wanted = torch.tensor([one.label for one in going]).repeat_interleave(population)
                scores = log_confidence(
                    target, prior, latents, wanted, batch_size=self.batch_size
                ).split(population)
                for search, points, score in zip(going, tried, scores, strict=True):
                    search.tell(points, score.double().numpy())
                progress(generation + 2, total, f"generations, {meter.used:,} queries")
        except QueriesSpentError:
            pass  # The best so far is what there is.
        best = space.latents(torch.from_numpy(np.stack([one.best for one in searches])))
        made = end_search(
            target,
            prior,
            labels,
            best.view(len(labels), self.searches, *pool.latents.shape[1:]),
            torch.tensor([one.score for one in searches]).view(len(labels), -1),
            self.crop_draws,
            keep=self.keep,
            batch_size=self.batch_size,
            rng=generator(seed, "crops"),
        )
        progress(total, total, f"reconstructions selected, {meter.used:,} queries")
        return replace(made, queries=meter.used)

    def _population(self, width: int) -> int:
        return self.population or 4 + math.floor(3 * math.log(width))


class _Search:
    """One CMA-ES with randomness of its own, and the best point that it has seen."""

    def __init__(
        self, start: NDArray[np.float64], score: float, label: int, population: int,
        step: float, seed: int,
    ) -> None:  # fmt: skip
        from cmaes import CMA, SepCMA  # brings scipy.stats, which takes seconds

        self.label = label
        self.best = start.copy()
        self.score = score
        kind = SepCMA if len(start) >= _WIDE else CMA
        self._strategy: Any = kind(
            mean=start, sigma=step, population_size=population, seed=seed % 2**32
        )
        self.ended = False

    def ask(self) -> NDArray[np.float64]:
        """The next generation's points, (population, D)."""
        return np.stack([self._strategy.ask() for _ in range(self._strategy.population_size)])

    def tell(self, points: NDArray[np.float64], scores: NDArray[np.float64]) -> None:
        """Their scores (population,), higher is better.

        Told as they were drawn, although they are judged as clipped: the strategy's own statistics
        would suffer from moved points, and beyond the range nothing is gained.
        """
        first = int(scores.argmax())
        if scores[first] > self.score:
            self.best, self.score = points[first].copy(), float(scores[first])
        self._strategy.tell(list(zip(points, -scores, strict=True)))
        self.ended = bool(self._strategy.should_stop())
