"""BREP-MI (Kahla et al., CVPR 2022): away from the border of a class, by the target's labels alone.

Threat model: label. The attacker sends images and reads the predicted class, and has a prior trained
on public images. Around a latent of the class points are drawn on a sphere; the latent moves away
from those that the target puts elsewhere (eq. 4-5). Once all of them are in the class, the sphere
grows. In the end the latent lies where the class reaches farthest around it. What differs from the
paper, and why:

- Distances are in standard deviations of the prior's samples times sqrt(coordinates / 100), which
  are the paper's own for its 100 standard normal coordinates, so that they suit any prior.
- Several searches a class, each giving one reconstruction; the paper makes one.
- A search ends after ``iterations`` at the latest; the published code has no such end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from inversight.attacks.base import NoSampleError, Reconstructions
from inversight.attacks.pool_space import PoolSpace
from inversight.attacks.queries import QueriesSpentError, admitted
from inversight.attacks.selection import pictures, predicted_classes, truncated
from inversight.core.config import Fraction, settings
from inversight.core.errors import InputError
from inversight.core.progress import Progress, silent
from inversight.core.seeding import draw_seed, generator
from inversight.models.target import Access, Target
from inversight.priors.base import Prior

_PUBLISHED_WIDTH = 100
"""PoolSpace of the paper's latents, which its radius and step belong to."""


@settings
class BrepMi:
    """BREP-MI: latents repelled by the border of their class, by the target's labels alone."""

    pool: PositiveInt = 5000
    """Latents sampled and labelled at once, for all classes together; the starts are among them, and
    coordinates are measured in their standard deviations."""
    pools: PositiveInt = 10
    """Pools drawn at most until every class has a start; a class that has none then is left out."""
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
    """Share of the points that must be in the class for the sphere to grow (paper: 1)."""
    step_share: PositiveFloat = 1.0 / 3.0
    """Step size as a share of the radius (paper: 1/3)."""
    longest_step: PositiveFloat = 3.0
    """Largest step size (paper: 3)."""
    bound: PositiveFloat = 1.5
    """Standard deviations from the mean beyond which latents are clipped (paper: 1.5)."""
    patience: PositiveInt = 1000
    """Iterations without growth after which a search ends (paper: 1,000)."""
    iterations: PositiveInt = 3000
    """Iterations of a search at most."""
    keep: PositiveInt = 50
    """Reconstructions kept for each class: those that ended with the largest spheres."""
    most_queries: PositiveInt | None = None
    """Images sent to the target at most, over all classes; the searches then end where they are.
    None: as many as the other settings ask for."""
    batch_size: PositiveInt = 200
    """Images that go through prior and target at once; changes memory, not results."""

    @property
    def access(self) -> Access:
        return Access.LABEL

    def planned_queries(self, prior: Prior, classes: int) -> int:
        """Images that the attack sends for so many classes if the first pool has them all."""
        return self.pool + classes * self.searches * self.iterations * (self.points + 1)

    def check(self, target: Target, prior: Prior) -> None:
        """Refuse settings that contradict each other, before the first query.

        Raises:
            InputError: they do.
        """
        if self.keep > self.searches:
            raise InputError(
                f"BrepMi: expected keep <= searches, found keep={self.keep}, "
                f"searches={self.searches}"
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
        """Reconstruct each class in ``labels`` (distinct class indices) that a sample falls into.

        ``losses`` are the negative radii of the last spheres that lay within the class, in standard
        deviations; 0 where there was none.

        Raises:
            InputError: the settings contradict each other.
            QueriesSpentError: ``most_queries`` does not even cover the pool.
            NoSampleError: no sample of the prior is in any of the classes.
        """
        target, meter = admitted(self, target, prior, self.most_queries)
        seed = draw_seed(rng)
        total = self.iterations + 2
        starts = self._starts(target, prior, labels, seed)
        missing = len(labels) - len(starts.labels)
        note = f", {missing} classes without a start" if missing else ""
        progress(1, total, f"pool labelled{note}")
        search = _Searches(starts.points, starts.labels.repeat_interleave(self.searches), self)
        rngs = [generator(seed, "search", label) for label in starts.labels.tolist()]
        try:
            for iteration in range(self.iterations):
                if not bool(search.going.any()):
                    break
                directions = torch.cat([self._directions(search.width, own) for own in rngs])
                search.iterate(target, prior, starts.space, directions)
                progress(iteration + 2, total, f"iterations, {meter.used:,} queries{note}")
        except QueriesSpentError:
            pass  # Where the searches are is what there is.
        made = self._best(search, prior, starts, len(starts.labels))
        progress(total, total, f"reconstructions selected, {meter.used:,} queries{note}")
        return replace(made, queries=meter.used)

    def _directions(self, width: int, rng: torch.Generator) -> Tensor:
        """Unit vectors (searches, points, D), uniform on the sphere."""
        x = torch.randn(self.searches, self.points, width, generator=rng, dtype=torch.float64)
        unit: Tensor = x / x.norm(dim=2, keepdim=True)
        return unit

    def _starts(self, target: Target, prior: Prior, labels: Tensor, seed: int) -> _Starts:
        """Points of each class out of as many pools as it takes, clipped before they are labelled."""
        source = truncated(prior, self.truncation)
        first = source.sample(self.pool, rng=generator(seed, "pool", 0))
        space = PoolSpace(first)
        found: dict[int, Tensor] = {}
        number = 0
        for number in range(self.pools):
            latents = first
            if number > 0:
                latents = source.sample(self.pool, rng=generator(seed, "pool", number))
            points = space.points_of(latents).clamp(-self.bound, self.bound)
            try:
                seen = predicted_classes(
                    target, prior, space.latents(points, clip=False), batch_size=self.batch_size
                )
            except QueriesSpentError:
                if number == 0:
                    raise
                break
            for label in labels.tolist():
                # Of the first pool that has any, so that it does not matter which others are missing.
                if label not in found and bool((seen == label).any()):
                    found[label] = points[seen == label]
            if len(found) == len(labels):
                break
        known = [label for label in labels.tolist() if label in found]
        if not known:
            raise NoSampleError(
                f"BrepMi: the target puts none of {self.pool * (number + 1):,} samples of the prior "
                "in the classes to reconstruct; raise pools, or take a prior nearer to them"
            )
        # Fewer starts than searches: some set out from the same one and go different ways.
        rows = [found[y][torch.arange(self.searches) % len(found[y])] for y in known]
        return _Starts(space, torch.cat(rows), torch.tensor(known))

    def _best(
        self, search: _Searches, prior: Prior, starts: _Starts, classes: int
    ) -> Reconstructions:
        order = search.within.view(classes, -1).argsort(dim=1, descending=True, stable=True)
        rows = order[:, : self.keep] + torch.arange(classes)[:, None] * self.searches
        index = rows.flatten()
        latents = starts.space.latents(search.points[index], clip=False)
        return Reconstructions(
            images=pictures(prior, latents, batch_size=self.batch_size),
            labels=search.labels[index],
            latents=latents.cpu(),
            losses=-search.within[index].float(),
        )


@dataclass(frozen=True)
class _Starts:
    """points (classes x searches, D), class by class; labels: the classes that have any."""

    space: PoolSpace
    points: Tensor
    labels: Tensor


class _Searches:
    """All searches of all classes, side by side.

    points (S, D); labels (S,); radius (S,); within (S,): the radius of the last sphere in the class.
    """

    def __init__(self, points: Tensor, labels: Tensor, how: BrepMi) -> None:
        self.how = how
        self.points = points.clone()
        self.labels = labels
        self.width = points.shape[1]
        self._unit = math.sqrt(self.width / _PUBLISHED_WIDTH)
        self.radius = torch.full((len(points),), how.radius * self._unit, dtype=torch.float64)
        self.within = torch.zeros_like(self.radius)
        self._idle = torch.zeros(len(points), dtype=torch.int64)

    @property
    def going(self) -> Tensor:
        """(S,): which searches have not ended."""
        return self._idle < self.how.patience

    def iterate(self, target: Target, prior: Prior, space: PoolSpace, directions: Tensor) -> None:
        """One sphere around each point that is still going: it grows, or the point moves."""
        rows = self.going.nonzero().squeeze(1)
        directions = directions[rows]
        at, radius, label = self.points[rows], self.radius[rows], self.labels[rows]
        around = at[:, None] + radius[:, None, None] * directions
        hit = self._classes(target, prior, space, around).view(len(rows), -1) == label[:, None]
        grows = hit.double().mean(1) >= self.how.inside
        # Eq. 5: the mean direction of the points, -1 for those outside and 0 for those inside.
        push = -(directions * ~hit[:, :, None]).mean(1)
        step = (self.how.step_share * radius).clamp(max=self.how.longest_step * self._unit)
        moved = (at + step[:, None] * push).clamp(-self.how.bound, self.how.bound)
        stays = grows.clone()
        if not bool(grows.all()):
            tried = ~grows
            still = self._classes(target, prior, space, moved[tried]) == label[tried]
            stays[tried] = ~still
        self.points[rows] = torch.where(stays[:, None], at, moved)
        self.within[rows] = torch.where(grows, radius, self.within[rows])
        self.radius[rows] = torch.where(grows, self.how.growth * radius, radius)
        self._idle[rows] = torch.where(grows, 0, self._idle[rows] + 1)

    def _classes(self, target: Target, prior: Prior, space: PoolSpace, points: Tensor) -> Tensor:
        latents = space.latents(points, clip=False)
        return predicted_classes(target, prior, latents, batch_size=self.how.batch_size)
