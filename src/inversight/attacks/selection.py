"""What attacks share: the pool that they start from and the selection that they end with.

Both are Plug & Play's (Struppek et al., ICML 2022): one pool classified once for all classes, and
the candidates whose confidence survives random crops. Neither needs more than scores.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from inversight.attacks.base import Reconstructions
from inversight.attacks.queries import QueriesSpentError, check_queries
from inversight.core.config import settings
from inversight.models.target import Access, Target
from inversight.priors.base import Pivoted, Prior, Truncatable


@dataclass(frozen=True)
class Pool:
    """Samples of the prior and what the target makes of them.

    latents (P, ...); confidence (P, K), the target's probabilities, and scores (P, K), their
    logarithms, which still tell apart what rounds to 1: both on the CPU.
    """

    latents: Tensor
    confidence: Tensor
    scores: Tensor

    def best(self, labels: Tensor, count: int) -> Tensor:
        """Rows (len(labels), count) of the surest samples of each class, the surest first."""
        return self.confidence[:, labels].topk(count, dim=0).indices.T


@torch.no_grad()
def classified_pool(
    target: Target, prior: Prior, size: int, *, truncation: float, batch_size: int,
    rng: torch.Generator,
) -> Pool:  # fmt: skip
    """``size`` samples of the prior, truncated where it can be, classified once: ``size`` queries.

    A prior's pivots take the places of the first samples, of at most half of them.
    """
    check_queries(target, size)
    latents = truncated(prior, truncation).sample(size, rng=rng)
    pivots = prior.pivots if isinstance(prior, Pivoted) else None
    if pivots is not None:
        rows = torch.randperm(len(pivots), generator=rng)[: size // 2]
        known = pivots[rows.to(pivots.device)].to(latents)
        if latents.dim() > known.dim():  # truncated in some layers only: a latent for each layer
            known = known[:, None].expand(-1, *latents.shape[1:])
        latents = torch.cat([known, latents[len(known) :]])
    found = [target(prior(w)) for w in latents.split(batch_size)]
    return Pool(
        latents,
        confidence=torch.cat([answer.softmax(1).cpu() for answer in found]),
        scores=torch.cat([answer.log_softmax(1).cpu() for answer in found]),
    )


def truncated(prior: Prior, psi: float) -> Prior:
    """The prior with truncation ``psi``, or itself where it knows none."""
    return prior.truncated(psi) if isinstance(prior, Truncatable) else prior


@torch.no_grad()
def log_confidence(
    target: Target, prior: Prior, latents: Tensor, labels: Tensor, *, batch_size: int
) -> Tensor:
    """Logarithm (M,) of the target's confidence in each latent's label, on the CPU: M queries."""
    check_queries(target, len(latents))
    parts = []
    for w, label in zip(latents.split(batch_size), labels.split(batch_size), strict=True):
        scores = target(prior(w)).log_softmax(1).cpu()
        parts.append(scores.gather(1, label[:, None]).squeeze(1))
    return torch.cat(parts)


@torch.no_grad()
def predicted_classes(target: Target, prior: Prior, latents: Tensor, *, batch_size: int) -> Tensor:
    """The class (M,) int64 that the target puts each latent's image in, on the CPU: M queries."""
    check_queries(target, len(latents))
    return torch.cat([target(prior(w)).argmax(1).cpu() for w in latents.split(batch_size)])


@dataclass(frozen=True)
class Crops:
    """Random crops that a candidate's confidence is averaged over.

    count: how many. scale: smallest and largest share of the area; ratio: of the aspect ratio. flip:
    whether half of them are mirrored.
    """

    count: int
    scale: tuple[float, float]
    ratio: tuple[float, float]
    flip: bool


@torch.no_grad()
def robust_confidence(
    target: Target, prior: Prior, latents: Tensor, labels: Tensor, crops: Crops, *,
    batch_size: int, rng: torch.Generator,
) -> Tensor:  # fmt: skip
    """Mean confidence (M,) in each latent's label over the same random crops: M x count queries."""
    check_queries(target, len(latents) * crops.count)
    height, width = prior.image_shape[1:]
    boxes = [crop_box(height, width, crops.scale, crops.ratio, rng) for _ in range(crops.count)]
    mirrored = torch.rand(crops.count, generator=rng) < (0.5 if crops.flip else 0.0)
    results = []
    for w, label in zip(latents.split(batch_size), labels.split(batch_size), strict=True):
        images = prior(w)
        confidence = torch.zeros(len(w))
        for (top, left, h, w_), mirror in zip(boxes, mirrored, strict=True):
            crop = F.interpolate(
                images[..., top : top + h, left : left + w_],
                (height, width),
                mode="bilinear",
                antialias=True,
            )
            crop = crop.flip(3) if mirror else crop
            probability = target(crop).softmax(1).cpu()
            confidence += probability.gather(1, label[:, None]).squeeze(1)
        results.append(confidence / crops.count)
    return torch.cat(results)


def surest(confidence: Tensor, classes: int, keep: int) -> Tensor:
    """Rows of the ``keep`` surest candidates of each class, class by class, the surest first.

    confidence: (classes x candidates,), class by class. Equal ones keep their order.
    """
    by_class = confidence.view(classes, -1)
    order = by_class.argsort(dim=1, descending=True, stable=True)[:, :keep]
    return (order + torch.arange(classes)[:, None] * by_class.shape[1]).flatten()


@torch.no_grad()
def pictures(prior: Prior, latents: Tensor, *, batch_size: int) -> Tensor:
    """Images of the latents on the CPU, in the latents' own precision."""
    with torch.autocast(latents.device.type, enabled=False):
        return torch.cat([prior(w).cpu() for w in latents.split(batch_size)])


def end_search(
    target: Target, prior: Prior, labels: Tensor, latents: Tensor, scores: Tensor, crops: Crops, *,
    keep: int, batch_size: int, rng: torch.Generator,
) -> Reconstructions:  # fmt: skip
    """The ``keep`` best of each class's candidates, after random crops if queries are left for them.

    latents (len(labels), candidates, ...); scores (len(labels), candidates), the logarithms of their
    confidences without crops, by which they are chosen where the queries are spent.
    """
    flat = latents.flatten(0, 1)
    wanted = labels.repeat_interleave(latents.shape[1])
    try:
        confidence = robust_confidence(
            target, prior, flat, wanted, crops, batch_size=batch_size, rng=rng
        )
        ranked = confidence
    except QueriesSpentError:
        ranked, confidence = scores.flatten(), scores.exp().flatten()
    index = surest(ranked, len(labels), keep)
    return _chosen(prior, flat, wanted, confidence, index, batch_size)


@dataclass(frozen=True)
class Selected:
    """Reconstructions, and the rows of the candidates (M,) that they were."""

    reconstructions: Reconstructions
    rows: Tensor


@settings
class CropSettings:
    """How many random crops the final selection averages over, and of what shape."""

    crops: PositiveInt = 100
    """Random crops a candidate's confidence is averaged over (Plug & Play: 100)."""
    crop_scale: tuple[PositiveFloat, PositiveFloat] = (0.5, 0.9)
    """Smallest and largest share of the area in a crop (Plug & Play: 0.5, 0.9)."""
    crop_ratio: tuple[PositiveFloat, PositiveFloat] = (0.8, 1.2)
    """Smallest and largest aspect ratio of a crop (Plug & Play: 0.8, 1.2)."""
    crop_flip: bool = True
    """Mirror half of the crops; switch off where left and right matter, as for digits."""
    batch_size: PositiveInt = 200
    """Images that go through prior and target at once; changes memory, not results."""

    @property
    def crop_draws(self) -> Crops:
        return Crops(self.crops, self.crop_scale, self.crop_ratio, self.crop_flip)


@settings
class ScoreSearch(CropSettings):
    """A search by scores alone: a limit of queries, and a selection by crops if any are left."""

    keep: PositiveInt = 50
    """Reconstructions kept for each class."""
    most_queries: PositiveInt | None = None
    """Images sent to the target at most, over all classes; the search then ends with the best it has,
    chosen by crops only if queries are left for them. None: as many as the other settings ask for."""

    @property
    def access(self) -> Access:
        return Access.SCORES


@settings
class FinalSelection(CropSettings):
    """The candidates whose confidence survives random crops are kept (Plug & Play, section 3.4)."""

    candidates: PositiveInt = 200
    """Candidates of each class (Plug & Play: 200)."""
    keep: PositiveInt = 50
    """Reconstructions kept for each class (Plug & Play: 50)."""

    @property
    def crop_images(self) -> int:
        """Crops that are looked at for a class, each sent to the target."""
        return self.candidates * self.crops

    def select(
        self, target: Target, prior: Prior, latents: Tensor, wanted: Tensor, *, rng: torch.Generator
    ) -> Selected:
        """The best of latents (M, ...), class by class and as many of each; wanted (M,): their labels."""
        confidence = robust_confidence(
            target, prior, latents, wanted, self.crop_draws, batch_size=self.batch_size, rng=rng
        )
        index = surest(confidence, len(wanted.unique()), self.keep)
        made = _chosen(prior, latents, wanted, confidence, index, self.batch_size)
        return Selected(made, index)


def _chosen(
    prior: Prior,
    latents: Tensor,
    wanted: Tensor,
    confidence: Tensor,
    index: Tensor,
    batch_size: int,
) -> Reconstructions:
    chosen = latents[index.to(latents.device)]
    return Reconstructions(
        images=pictures(prior, chosen, batch_size=batch_size),
        labels=wanted[index].clone(),
        latents=chosen.cpu(),
        losses=1.0 - confidence[index],
    )


def crop_box(
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: torch.Generator,
) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a random crop, drawn as torchvision's RandomResizedCrop does."""
    u = torch.rand(4, generator=rng).tolist()
    area = height * width * (scale[0] + u[0] * (scale[1] - scale[0]))
    aspect = math.exp(math.log(ratio[0]) + u[1] * (math.log(ratio[1]) - math.log(ratio[0])))
    w = max(1, min(width, round(math.sqrt(area * aspect))))
    h = max(1, min(height, round(math.sqrt(area / aspect))))
    return int(u[2] * (height - h + 1)), int(u[3] * (width - w + 1)), h, w
