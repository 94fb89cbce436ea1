"""What attacks share: the pool of samples that they start from, and the selection at their end.

Both are Plug & Play's (Struppek et al., ICML 2022): one pool, classified once for all classes, and
the candidates whose confidence survives random crops. Neither needs more than scores. The most confident
candidates are often near-copies of each other, so candidates can also be selected for variety, by
farthest-point choice among the more confident half (Gonzalez, 1985).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from inversight.attacks.base import Reconstructions, truncated
from inversight.attacks.base_attack import BaseAttack, Problem
from inversight.attacks.queries import check_queries
from inversight.core.config import settings
from inversight.core.seeding import generator
from inversight.priors.base import Pivoted, Prior


@dataclass(frozen=True)
class Pool:
    """P samples of the prior and the target's answers to them.

    latents: (P, ...). confidence: (P, K), the target's probabilities. scores: (P, K), their logarithms,
    which still differ where probabilities round to 1. Both on the CPU.
    """

    latents: Tensor
    confidence: Tensor
    scores: Tensor

    def best(self, labels: Tensor, count: int) -> Tensor:
        """Return the rows (len(labels), count) of the most confident samples of each class, in order."""
        return self.confidence[:, labels].topk(count, dim=0).indices.T


@torch.no_grad()
def classified_pool(problem: Problem, size: int, *, truncation: float) -> Pool:
    """Draw ``size`` samples of the prior, truncated if it can be, and classify them: ``size`` queries.

    Pivots of the prior replace the first samples, at most half of them.
    """
    prior, rng = problem.prior, generator(problem.seed, "pool")
    latents = truncated(prior, truncation).sample(size, rng=rng)
    pivots = prior.pivots if isinstance(prior, Pivoted) else None
    if pivots is not None:
        rows = torch.randperm(len(pivots), generator=rng)[: size // 2]
        known = pivots[rows.to(pivots.device)].to(latents)
        if latents.dim() > known.dim():  # truncated in some layers only: a latent for each layer
            known = known[:, None].expand(-1, *latents.shape[1:])
        latents = torch.cat([known, latents[len(known) :]])
    answers = problem.answers(
        latents, lambda logits: torch.stack([logits.softmax(1), logits.log_softmax(1)], dim=1)
    )
    return Pool(latents, confidence=answers[:, 0], scores=answers[:, 1])


def most_confident(confidence: Tensor, classes: int, keep: int) -> Tensor:
    """Return the rows of the ``keep`` most confident candidates of each class, in order, class by class.

    confidence: (classes x candidates,), class by class. Ties keep their order.
    """
    by_class = confidence.view(classes, -1)
    order = by_class.argsort(dim=1, descending=True, stable=True)[:, :keep]
    return (order + torch.arange(classes)[:, None] * by_class.shape[1]).flatten()


def farthest_points(points: Tensor, count: int) -> Tensor:
    """Return the rows of ``count`` points far from each other (greedy k-centre), in order of choice.

    The first point is chosen, then always the one whose nearest chosen point is farthest away (Euclidean
    distance); of equally far ones the first. points: (n, D) with n >= count.
    """
    chosen = torch.zeros(count, dtype=torch.int64)
    nearest = torch.full((len(points),), math.inf, device=points.device)
    for number in range(1, count):
        last = chosen[number - 1]
        nearest = nearest.minimum((points - points[last]).square().sum(1))
        nearest[last] = -1.0  # a chosen point is not chosen again, even among identical ones
        chosen[number] = nearest.argmax()
    return chosen


@torch.no_grad()
def render(prior: Prior, latents: Tensor, *, batch_size: int) -> Tensor:
    """Return the images of the latents on the CPU, computed in the latents' own precision."""
    with torch.autocast(latents.device.type, enabled=False):
        return torch.cat([prior(w).cpu() for w in latents.split(batch_size)])


@settings
class Selection(BaseAttack):
    """An attack that keeps some of its candidates."""

    keep: PositiveInt = 50
    """Reconstructions kept for each class (Plug & Play: 50)."""
    selection: Literal["confident", "diverse"] = "confident"
    """Which candidates are kept: confident, the most confident ones (papers); diverse, those that are
    farthest from each other in pixels, among the more confident half of a class or, if that is more, among
    the ``2 * keep`` most confident ones. Use many candidates with diverse, such as ten times ``keep``."""

    def selected(self, problem: Problem, latents: Tensor, ranking: Tensor) -> Tensor:
        """Return the rows of the candidates kept, class by class, the highest ranked first.

        latents: (M, ...), class by class and as many of each. ranking: (M,), the higher the better.
        """
        classes, count = len(problem.labels), len(ranking) // len(problem.labels)
        if self.selection == "confident" or count <= self.keep:
            return most_confident(ranking, classes, self.keep)
        among = min(count, max(2 * self.keep, math.ceil(count / 2)))
        rows = []
        for own in most_confident(ranking, classes, among).view(classes, -1):
            chosen = latents[own.to(latents.device)]
            images = render(problem.prior, chosen, batch_size=problem.batch_size)
            rows.append(own[farthest_points(images.flatten(1), self.keep).sort().values])
        return torch.cat(rows)

    def best_of(
        self, problem: Problem, latents: Tensor, losses: Tensor, *, ranking: Tensor
    ) -> tuple[Reconstructions, Tensor]:
        """Return the candidates kept of each class as reconstructions, and their rows.

        latents: (M, ...), class by class and as many of each. losses: (M,). ranking: (M,), the higher the
        better.
        """
        rows = self.selected(problem, latents, ranking)
        chosen = latents[rows.to(latents.device)]
        images = render(problem.prior, chosen, batch_size=problem.batch_size)
        labels = problem.labels_of(latents)[rows].clone()
        return Reconstructions(images, labels, chosen.cpu(), losses[rows]), rows


@settings
class CropSelection(Selection):
    """Selection of the candidates whose confidence survives random crops (Plug & Play, section 3.4)."""

    crops: PositiveInt = 100
    """Random crops over which a candidate's confidence is averaged (Plug & Play: 100)."""
    crop_scale: tuple[PositiveFloat, PositiveFloat] = (0.5, 0.9)
    """Smallest and largest fraction of the area in a crop (Plug & Play: 0.5, 0.9)."""
    crop_ratio: tuple[PositiveFloat, PositiveFloat] = (0.8, 1.2)
    """Smallest and largest aspect ratio of a crop (Plug & Play: 0.8, 1.2)."""
    crop_flip: bool = True
    """Mirror half of the crops; switch off where left and right matter, as for digits."""

    @torch.no_grad()
    def robust_confidence(
        self, problem: Problem, latents: Tensor, labels: Tensor, *, rng: torch.Generator,
        crops: int | None = None,
    ) -> Tensor:  # fmt: skip
        """Return the mean confidence (M,) in each latent's label over the same random crops.

        This takes M x crops queries; crops: their number, by default the setting.
        """
        count = crops or self.crops
        check_queries(problem.target, len(latents) * count)
        size = problem.prior.image_shape[1:]
        boxes = [crop_box(*size, self.crop_scale, self.crop_ratio, rng) for _ in range(count)]
        mirrored = torch.rand(count, generator=rng) < (0.5 if self.crop_flip else 0.0)
        results = []
        parts = (x.split(self.batch_size) for x in (latents, labels))
        for w, label in zip(*parts, strict=True):
            images = problem.prior(w)
            confidence = torch.zeros(len(w))
            for (top, left, h, w_), mirror in zip(boxes, mirrored, strict=True):
                crop = images[..., top : top + h, left : left + w_]
                crop = F.interpolate(crop, size, mode="bilinear", antialias=True)
                crop = crop.flip(3) if mirror else crop
                probability = problem.target(crop).softmax(1).cpu()
                confidence += probability.gather(1, label[:, None]).squeeze(1)
            results.append(confidence / count)
        return torch.cat(results)


def crop_box(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float],
    rng: torch.Generator,
) -> tuple[int, int, int, int]:  # fmt: skip
    """Draw (top, left, height, width) of a random crop, as torchvision's RandomResizedCrop does."""
    u = torch.rand(4, generator=rng).tolist()
    area = height * width * (scale[0] + u[0] * (scale[1] - scale[0]))
    aspect = math.exp(math.log(ratio[0]) + u[1] * (math.log(ratio[1]) - math.log(ratio[0])))
    w = max(1, min(width, round(math.sqrt(area * aspect))))
    h = max(1, min(height, round(math.sqrt(area / aspect))))
    return int(u[2] * (height - h + 1)), int(u[3] * (width - w + 1)), h, w
