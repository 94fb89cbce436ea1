"""MIRROR's black-box attack (An et al., NDSS 2022): a genetic search in W.

Threat model: scores. The attacker sends images and reads probabilities, and has a prior trained on
public images. The constants are those of the published code. What differs from it, and why:

- A coordinate comes from the first parent with probability c1 / (c1 + c2), c the parents' confidences.
  The published code has their logarithms there, so that the less sure parent gives more.
- Every child is mutated with noise of its own; the published code draws one noise a generation.
- It returns several reconstructions of a class, the best distinct individuals of all generations, and
  so does not stop at the first one of 0.95 confidence.
- The pool is smaller (published: 100,000 samples).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from inversight.attacks.base import Reconstructions
from inversight.attacks.constraints import PSpace
from inversight.attacks.queries import QueriesSpentError, admitted
from inversight.attacks.selection import ScoreSearch, classified_pool, end_search, log_confidence
from inversight.core.config import Fraction, settings
from inversight.core.errors import InputError
from inversight.core.progress import Progress, silent
from inversight.core.seeding import draw_seed, generator
from inversight.models.target import Target
from inversight.priors.base import Prior


@settings
class MirrorGenetic(ScoreSearch):
    """MIRROR, black box: populations of latents, one a class, bred by the target's scores alone."""

    pool: PositiveInt = 5000
    """Latents sampled and classified once, for all classes together; also W's statistics are theirs
    (published: 100,000)."""
    truncation: Fraction = 0.7
    """Truncation of the pool towards the mean latent (published: 0.7)."""
    population: PositiveInt = 100
    """Individuals of a class; at first the surest of the pool (published: 100)."""
    generations: PositiveInt = 100
    """Generations bred after the first (published: at most 100)."""
    mutation_probability: Fraction = 0.1
    """Share of a child's coordinates that are mutated (published: 0.1)."""
    mutation_scale: PositiveFloat = 0.1
    """Largest mutation, in standard deviations of the coordinate in P (published: 0.1)."""
    bound: PositiveFloat = 1.0
    """Standard deviations from the mean beyond which coordinates are clipped in P (published: 1)."""
    slope: PositiveFloat = 0.2
    """Negative slope of the leaky rectifier that made W out of P (StyleGAN: 0.2); 1 for latents
    that are no W, which are then clipped and mutated as they are."""
    candidates: PositiveInt = 100
    """Best distinct individuals of a class that the final selection tries with crops."""

    def planned_queries(self, prior: Prior, classes: int) -> int:
        """Images that the attack sends for so many classes if nothing limits it."""
        children = self.generations * (self.population - 1)
        return self.pool + classes * (children + self.candidates * self.crops)

    def check(self, target: Target, prior: Prior) -> None:
        """Refuse settings that contradict each other, before the first query.

        Raises:
            InputError: they do.
        """
        if not self.keep <= self.candidates <= self.population <= self.pool:
            raise InputError(
                "MirrorGenetic: expected keep <= candidates <= population <= pool, found "
                f"keep={self.keep}, candidates={self.candidates}, population={self.population}, "
                f"pool={self.pool}"
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
            InputError: the target gives labels alone, or the settings contradict each other.
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
        space = PSpace.of(pool.latents, slope=self.slope, bound=self.bound)
        populations = []
        for rows, label in zip(pool.best(labels, self.population), labels.tolist(), strict=True):
            first = _Individuals(pool.latents[rows], pool.scores[rows, label])
            populations.append(_Population(first, first.best(self.candidates)))
        rngs = [generator(seed, "search", label) for label in labels.tolist()]
        wanted = labels.repeat_interleave(self.population - 1)
        try:
            for generation in range(self.generations if self.population > 1 else 0):
                children = [
                    self._children(one.living, space, own)
                    for one, own in zip(populations, rngs, strict=True)
                ]
                scores = log_confidence(
                    target, prior, torch.cat(children), wanted, batch_size=self.batch_size
                ).split(self.population - 1)
                for one, born, score in zip(populations, children, scores, strict=True):
                    one.succeed(_Individuals(born, score), self.candidates)
                progress(generation + 2, total, f"generations, {meter.used:,} queries")
        except QueriesSpentError:
            pass  # The best so far is what there is.
        made = end_search(
            target,
            prior,
            labels,
            torch.stack([one.best.latents for one in populations]),
            torch.stack([one.best.scores for one in populations]),
            self.crop_draws,
            keep=self.keep,
            batch_size=self.batch_size,
            rng=generator(seed, "crops"),
        )
        progress(total, total, f"reconstructions selected, {meter.used:,} queries")
        return replace(made, queries=meter.used)

    def _children(self, parents: _Individuals, space: PSpace, rng: torch.Generator) -> Tensor:
        """One child less than there are parents: drawn by confidence, crossed, mutated, clipped."""
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
class _Individuals:
    """latents (n, ...); scores (n,), the logarithms of the target's confidence, on the CPU."""

    latents: Tensor
    scores: Tensor

    def joined(self, other: _Individuals) -> _Individuals:
        return _Individuals(
            torch.cat([self.latents, other.latents]), torch.cat([self.scores, other.scores])
        )

    def best(self, count: int) -> _Individuals:
        """The ``count`` surest that differ from each other, the surest first."""
        seen: dict[bytes, int] = {}
        order = self.scores.argsort(descending=True, stable=True)
        rows = self.latents[order].flatten(1).cpu().numpy()
        for i, row in enumerate(rows):
            seen.setdefault(row.tobytes(), i)
        kept = order[torch.tensor(list(seen.values())[:count])]
        return _Individuals(self.latents[kept], self.scores[kept])


@dataclass
class _Population:
    """One class's individuals, and the best distinct ones that there ever were."""

    living: _Individuals
    best: _Individuals

    def succeed(self, children: _Individuals, candidates: int) -> None:
        """The children take over; of the parents the surest one stays."""
        self.best = self.best.joined(children).best(candidates)
        first = self.living.scores.argmax()
        elite = _Individuals(self.living.latents[first][None], self.living.scores[first][None])
        self.living = elite.joined(children)
