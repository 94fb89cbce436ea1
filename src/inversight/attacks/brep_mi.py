"""BREP-MI (Kahla et al., CVPR 2022): away from the boundary of a class, by the target's labels alone.

Threat model: label. The attacker sends images and reads the predicted class, and has a prior trained
on public images. Points are drawn on a sphere around a latent of the class; the latent moves away
from those that the target classifies as another class (eq. 4-5). When all of them are in the class, the
sphere grows. The latent ends where the class extends farthest around it. Differences from the paper:

- Distances are in standard deviations of the prior's samples times sqrt(coordinates / 100). For the
  paper's 100 standard normal coordinates these are its own, and they suit any prior.
- Each class has several searches, each of which gives one reconstruction; the paper has one.
- A search ends after ``iterations`` at the latest; the published code has no such limit.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from inversight.attacks.base import NoSampleError
from inversight.attacks.base_attack import Problem
from inversight.attacks.constraints import PoolSpace
from inversight.attacks.queries import QueriesSpentError
from inversight.attacks.score_search import QuerySearch, Search
from inversight.attacks.workload import Workload
from inversight.core.config import Fraction, settings
from inversight.models.target import Access
from inversight.priors.base import Prior

_PUBLISHED_WIDTH = 100
"""Coordinates of the paper's latents, for which its radius and step are published."""


@settings
class BrepMi(QuerySearch):
    """BREP-MI: latents repelled by the boundary of their class, by the target's labels alone.

    ``losses`` of the reconstructions are the negative radii of the last spheres inside the class, in
    standard deviations; 0 if there was none. A class without a sample of the prior is left out.
    """

    access: ClassVar[Access] = Access.LABEL
    ascending: ClassVar[tuple[str, ...]] = ("keep", "searches")

    pool: PositiveInt = 5000
    """Latents sampled and labelled at once, for all classes together. The searches start from them, and
    coordinates are measured in their standard deviations."""
    pools: PositiveInt = 10
    """Pools drawn at most until every class has a start; a class without one is left out."""
    truncation: Fraction = 1.0
    """Truncation of the pool towards the mean latent (paper: none, 1)."""
    searches: PositiveInt = 50
    """Searches of a class, from different starts where there are as many (paper: 1)."""
    points: PositiveInt = 32
    """Points drawn on the sphere in each iteration (paper: 32)."""
    radius: PositiveFloat = 2.0
    """First radius of the sphere (paper: 2)."""
    growth: PositiveFloat = 1.3
    """Factor by which it grows (paper: 1.3)."""
    inside: Fraction = 1.0
    """Fraction of the points that must be in the class for the sphere to grow (paper: 1; published code:
    more than 7/8)."""
    step_share: PositiveFloat = 1.0 / 3.0
    """Step size as a fraction of the radius (paper: 1/3)."""
    longest_step: PositiveFloat = 3.0
    """Largest step size (paper: 3)."""
    bound: PositiveFloat = 1.5
    """Standard deviations from the mean beyond which latents are clipped (paper: 1.5)."""
    patience: PositiveInt = 1000
    """Iterations without growth after which a search ends (paper: 1,000)."""
    iterations: PositiveInt = 3000
    """Iterations of a search at most."""

    def workload(self, prior: Prior) -> Workload:
        return self.limited_workload(self.searches * self.iterations * (self.points + 1))

    @torch.no_grad()
    def begin(self, problem: Problem) -> Search:
        return _Spheres(self, problem, *self._starts(problem))

    def _starts(self, problem: Problem) -> tuple[PoolSpace, Tensor, Tensor]:
        """Find starts of each class in as many pools as it takes, clipped before labelling.

        Returns the space, points (classes x searches, D), class by class, and the classes that have any.
        """
        space = PoolSpace(problem.sample(self.pool, self.truncation, "pool", 0))
        labels = problem.labels.tolist()
        found: dict[int, Tensor] = {}
        for number in range(self.pools):
            points = space.points
            if number > 0:
                pool = problem.sample(self.pool, self.truncation, "pool", number)
                points = space.points_of(pool)
            points = points.clamp(-self.bound, self.bound)
            try:
                predicted = problem.predicted_classes(space.latents(points, clip=False))
            except QueriesSpentError:
                if number == 0:
                    raise
                break
            for label in labels:
                # From the first pool that has any, whichever other classes are missing.
                if label not in found and bool((predicted == label).any()):
                    found[label] = points[predicted == label]
            if len(found) == len(labels):
                break
        known = [label for label in labels if label in found]
        if not known:
            raise NoSampleError(
                f"BrepMi: the target puts none of {self.pool * (number + 1):,} samples of the prior "
                "in the classes to reconstruct; raise pools, or take a prior nearer to them"
            )
        # With fewer starts than searches, some start from the same point and take different ways.
        rows = [found[y][torch.arange(self.searches) % len(found[y])] for y in known]
        return space, torch.cat(rows), torch.tensor(known)


class _Spheres(Search):
    """All searches of all classes, side by side.

    points: (S, D). radius: (S,), of the next sphere. inside: (S,), the radius of the last sphere inside
    the class, 0 at first.
    """

    def __init__(
        self, attack: BrepMi, problem: Problem, space: PoolSpace, points: Tensor, labels: Tensor
    ) -> None:
        super().__init__(replace(problem, labels=labels), attack.iterations)
        self.attack, self.space, self.points = attack, space, points
        self._unit = math.sqrt(space.width / _PUBLISHED_WIDTH)
        self.radius = torch.full((len(points),), attack.radius * self._unit, dtype=torch.float64)
        self.inside = torch.zeros_like(self.radius)
        self._idle = torch.zeros(len(self.points), dtype=torch.int64)
        self._rngs = self.problem.rngs("search")
        missing = len(problem.labels) - len(labels)
        self.note = f", {missing} classes without a start" if missing else ""

    def advance(self, step: int) -> bool:
        if bool((self._idle >= self.attack.patience).all()):
            return False
        self.iterate(torch.cat([self._directions(rng) for rng in self._rngs]))
        return True

    def _directions(self, rng: torch.Generator) -> Tensor:
        """Draw unit vectors (searches, points, D), uniform on the sphere."""
        shape = (self.attack.searches, self.attack.points, self.space.width)
        return F.normalize(torch.randn(shape, generator=rng, dtype=torch.float64), dim=2)

    def iterate(self, directions: Tensor) -> None:
        """Try a sphere around the point of each unfinished search: it grows, or the point moves.

        directions: (S, points, D), unit vectors.
        """
        attack = self.attack
        rows = (self._idle < attack.patience).nonzero().squeeze(1)
        directions = directions[rows]
        at, radius = self.points[rows], self.radius[rows]
        labels = self.problem.labels_of(self.points)[rows]
        around = at[:, None] + radius[:, None, None] * directions
        hit = self._predicted(around).view(len(rows), -1) == labels[:, None]
        grows = hit.double().mean(1) >= attack.inside
        # Eq. 5: the mean direction of the points, -1 for those outside and 0 for those inside.
        push = -(directions * ~hit[:, :, None]).mean(1)
        size = (attack.step_share * radius).clamp(max=attack.longest_step * self._unit)
        moved = (at + size[:, None] * push).clamp(-attack.bound, attack.bound)
        stays = grows.clone()
        if not bool(grows.all()):
            tried = ~grows
            stays[tried] = self._predicted(moved[tried]) != labels[tried]
        self.points[rows] = torch.where(stays[:, None], at, moved)
        self.inside[rows] = torch.where(grows, radius, self.inside[rows])
        self.radius[rows] = torch.where(grows, attack.growth * radius, radius)
        self._idle[rows] = torch.where(grows, 0, self._idle[rows] + 1)

    def _predicted(self, points: Tensor) -> Tensor:
        return self.problem.predicted_classes(self.space.latents(points, clip=False))

    def candidates(self) -> tuple[Tensor, Tensor]:
        return self.space.latents(self.points, clip=False), self.inside
