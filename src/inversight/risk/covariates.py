"""Covariates of nearest distances: what is known of an image without the target.

How near reconstructions come to an image depends most of all on how typical it is. Distances to public
images measure that. A regression takes away what they explain, so that the rest, where leakage shows, varies
less. It is fitted on private and holdout images alike, without using which is which: images that are
exchangeable stay so.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from inversight.core.errors import InputError
from inversight.core.progress import Progress, silent
from inversight.core.seeding import generator
from inversight.data import ImageSet
from inversight.embeddings import Embedding, Workspace, image_pairs
from inversight.scores.checks import as_array

NEAREST = (1, 5, 20)
"""Numbers of nearest public images whose mean distance is a covariate."""

MOST_PUBLIC = 2000
"""Public images that are compared; of more, a random part. Each goes through the embedding."""

PENALTY = 1.0
"""Ridge penalty of standardised covariates, in images. Nothing but a safeguard where images are few."""

_CLIP = 3.0
"""Standard deviations from the class's median at which values are clipped for the fit, so that a few
images that leaked do not decide it."""

CovariatesLike = tuple[Tensor | ArrayLike, Tensor | ArrayLike]
"""(N, P) of the private and (M, P) of the holdout images, finite, as tensors, NumPy arrays or lists."""


def public_covariates(
    images: ImageSet, public: ImageSet, embedding: Embedding, *, memory: int, seed: int = 0,
    floor: float = 1e-6, workspace: Workspace | None = None, progress: Progress = silent,
) -> Tensor:  # fmt: skip
    """Return covariates (N, 3) float64: the log of the mean distance to the nearest 1, 5 and 20 public images.

    To all of them where there are fewer; classes do not matter. Each image goes through the embedding
    once more, and so do up to ``MOST_PUBLIC`` public images.

    Args:
        images: N private and holdout images.
        public: at least one image; its row order does not matter.
        memory: bytes of features, see :func:`inversight.embeddings.image_pairs`.
        seed: draws the public images that are compared, of more than ``MOST_PUBLIC``.
        floor: distance below which all distances count as equal, > 0.

    Raises:
        StageError: the embedding returned a NaN or an infinity.
    """
    order = sorted(range(len(public)), key=public.ids.__getitem__)
    drawn = torch.randperm(len(order), generator=generator(seed, "risk/public"))[:MOST_PUBLIC]
    kept = public.select(torch.tensor(order)[drawn])
    most = min(max(NEAREST), len(kept))
    nearest = torch.full((len(images), most), float("inf"), dtype=torch.float64)
    passed, total = 0, len(images) + len(kept)

    def seen(count: int) -> None:
        nonlocal passed
        passed = min(passed + count, total)
        progress(passed, total, f"{embedding.name}, public images")

    for tile in image_pairs(
        embedding, images.images, kept.images, memory=memory, workspace=workspace,
        names=(images.ids, kept.ids), seen=seen,
    ):  # fmt: skip
        both = torch.cat([nearest[tile.left], tile.distances], dim=1)
        nearest[tile.left] = both.topk(most, dim=1, largest=False).values
    means = [nearest[:, :k].mean(1) for k in NEAREST]
    return torch.stack(means, dim=1).clamp_min(floor).log()


@dataclass(frozen=True)
class Adjusted:
    """Values less what covariates explain.

    private: (N,) float64, holdout: (M,) float64, NaN kept. explained: the fraction of the variance within
    classes that the covariates explain, in [0, 1].
    """

    private: Tensor
    holdout: Tensor
    explained: float


def adjust(
    values: tuple[Tensor, Tensor], labels: tuple[Tensor, Tensor], units: tuple[Tensor, Tensor],
    covariates: CovariatesLike,
) -> Adjusted:  # fmt: skip
    """Return values less a ridge regression on covariates within classes, one for all classes.

    Args:
        values: (N,) and (M,) float64 of private and holdout images; NaN: unknown, left out.
        labels: (N,) and (M,) int64.
        units: (N,) and (M,) int64, each numbered from 0. Images of a unit have the weight of one.
        covariates: of either side, not NaN.

    Raises:
        InputError: covariates of another shape, or not finite.
    """
    given = [
        _checked(part, role, len(known))
        for part, role, known in zip(covariates, ("private", "holdout"), values, strict=True)
    ]
    if given[0].shape[1] != given[1].shape[1]:
        raise InputError(
            f"covariates: expected as many of private as of holdout images, found "
            f"{given[0].shape[1]} and {given[1].shape[1]}"
        )
    y, x, label = torch.cat(values), torch.cat(given), torch.cat(labels)
    counts = [1.0 / unit.bincount()[unit].double() for unit in units]
    known = y.isfinite()
    rest, explained = _residuals(y[known], x[known], label[known], torch.cat(counts)[known])
    y = y.clone()
    y[known] = rest
    private, holdout = y.split([len(values[0]), len(values[1])])
    return Adjusted(private, holdout, explained)


def _residuals(y: Tensor, x: Tensor, labels: Tensor, weight: Tensor) -> tuple[Tensor, float]:
    """Return residuals (N,) of y (N,) on x (N, P) within classes, and the fraction explained."""
    _, label = labels.unique(return_inverse=True)
    classes = int(label.max()) + 1 if len(label) else 0

    def centred(values: Tensor) -> Tensor:
        mass = torch.zeros(classes, dtype=torch.float64).index_add(0, label, weight)
        total = torch.zeros(classes, values.shape[1], dtype=torch.float64)
        return values - (total.index_add(0, label, values * weight[:, None]) / mass[:, None])[label]

    away = torch.empty_like(y)
    for c in range(classes):
        rows = label == c
        away[rows] = y[rows] - y[rows].median()
    bound = _CLIP * 1.4826 * away.abs().median() if len(y) else y.sum()
    target = centred(away.clamp(-bound, bound)[:, None])
    inside = centred(x)
    scale = (weight[:, None] * inside.square()).sum(0).div(weight.sum()).sqrt()
    # A covariate that is the same for all images of a class explains nothing.
    inside = inside / scale.where(scale > 1e-9, torch.inf)
    gram = inside.T @ (weight[:, None] * inside) + PENALTY * torch.eye(x.shape[1]).double()
    slopes = torch.linalg.solve(gram, inside.T @ (weight[:, None] * target))
    before, after = (
        float((weight[:, None] * part.square()).sum())
        for part in (target, target - inside @ slopes)
    )
    explained = max(0.0, 1.0 - after / before) if before > 0 else 0.0
    return y - (inside @ slopes).squeeze(1), explained


def _checked(given: Tensor | ArrayLike, role: str, images: int) -> Tensor:
    values = as_array(given, f"{role} covariates").cpu().double()
    if values.ndim != 2 or len(values) != images:
        raise InputError(
            f"{role} covariates: expected one row for each of {images} images, found shape "
            f"{tuple(values.shape)}"
        )
    if not bool(values.isfinite().all()):
        raise InputError(f"{role} covariates: expected finite numbers")
    return values
