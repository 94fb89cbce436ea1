"""Training images from their signals: an image lies on the kinks of the neurons that its signal names.

The outputs of an image at its kinks are 0 (:mod:`inversight.attacks.signals`), those at neurons that are off
are not above 0, those at neurons that are on are not below it, and the selectors of all other images vanish
on it. Once enough selectors are known, this leaves a single image. It is found by iteratively reweighted
least squares from the likeliest image, if images are distributed like the candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from inversight.attacks.signals import FirstLayer

_STEPS = 60
_START, _DECAY, _END = 0.1, 0.85, 1e-6
"""Outputs count as 0 up to this, relative to the lengths of row and image: first, from step to step, last."""
_ZERO = 1e-5
_REFINED = (1e-3, 3e-4, 1e-4, 3e-5, _ZERO, _ZERO)
_KINK = (0.05, 0.85)
"""Shares of a signal between which a neuron is taken for a kink."""
_LIKELY = 0.03
"""Weight of how likely an image is, in the estimate of an image that is not known exactly."""
_SPARE = 12
"""Zeros that an image has at least beyond those that any image within the constraints can be given."""
_SURE = 40
"""With so many it is certain; with fewer it has to come out again under other constraints."""
_SIGNS = 0.984
"""Least share of neurons at which an image is on the side of the kink that its signal says."""
_RIDGE = 0.01


@dataclass(frozen=True)
class Solution:
    """An image in the coordinates of the span, (n,), with last coordinate 1, and how many zeros certify it."""

    image: Tensor
    zeros: int


class Likely:
    """A normal distribution of images with the mean and covariance of ``candidates`` (M, n)."""

    def __init__(self, candidates: Tensor) -> None:
        n = candidates.shape[1]
        self.covariance = candidates.T.cov()
        ridge = _RIDGE * self.covariance.diagonal().mean()
        self.covariance = self.covariance + ridge * torch.eye(n, dtype=torch.float64)
        self.precision: Tensor = torch.linalg.inv(self.covariance)
        self.mean = candidates.mean(dim=0)
        self.length = float(candidates.norm(dim=1).mean())

    def projected(self, images: Tensor, selectors: Tensor) -> Tensor:
        """Return ``images`` (S, n), changed as is likeliest so that ``selectors`` (F, n) vanish on them."""
        spread = self.covariance @ selectors.T
        back: Tensor = torch.linalg.pinv(spread.T @ selectors.T)
        return images - (images @ selectors.T) @ back @ spread.T


class ImageSolver:
    """Finds the image of a signal.

    Args:
        layer: the first layer.
        likely: the distribution of images.
        rng: draws which conditions are left out of a try.
    """

    def __init__(self, layer: FirstLayer, likely: Likely, rng: torch.Generator) -> None:
        self._layer, self._likely, self._rng = layer, likely, rng
        self._last = layer.span.basis[:, -1]

    def estimate(self, signal: Tensor, selectors: Tensor) -> Tensor:
        """Return the likeliest image (n,) of ``signal`` (H,), on which the ``selectors`` (F, n) vanish."""
        on, shares = self._layer.shares(signal)
        everything = torch.ones_like(on)
        return self._fitted(on, shares, selectors, _KINK, _LIKELY, everything)

    def image(self, signal: Tensor, selectors: Tensor, chances: Tensor) -> Solution | None:
        """Return the image of ``signal`` (H,), on which ``selectors`` (F, n) vanish; None if none is certain.

        chances: (F,), of each selector to be right. Later tries leave out some of the others.
        """
        on, shares = self._layer.shares(signal)
        found = self._solved(on, shares, selectors, tries=1)
        for more in range(5):
            if found is not None:
                break
            found = self._solved(on, shares, selectors[self._drawn(chances)], tries=1 + (more > 1))
        if found is None or found.zeros >= _SURE:
            return found
        others = selectors[self._drawn(torch.full_like(chances, 0.85))]
        again = self._solved(on, shares, others, tries=3)
        if again is None or float(torch.cosine_similarity(again.image, found.image, dim=0)) < 0.999:
            return None
        return found

    def _drawn(self, chances: Tensor) -> Tensor:
        return torch.rand(len(chances), generator=self._rng, dtype=torch.float64) < chances

    def _uniform(self, low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=self._rng))

    def _solved(self, on: Tensor, shares: Tensor, selectors: Tensor, tries: int) -> Solution | None:
        free = self._layer.images - len(selectors)
        for one in range(tries):
            kink, likely = _KINK, 0.01
            used = torch.ones_like(on)
            if one > 0:
                kink = (self._uniform(0.02, 0.17), self._uniform(0.6, 0.95))
                likely = 10 ** self._uniform(-3.0, -1.0)
                used = self._drawn(torch.full_like(shares, 0.85))
            fitted = self._fitted(on, shares, selectors, kink, likely, used)
            found = self._certified(self._refined(fitted, selectors), on, shares, free)
            if found is None:
                at_kink = on & (shares > kink[0]) & (shares < kink[1])
                rows = torch.cat([self._layer.outputs[at_kink], selectors])
                closer = self._refined(self._vanishing(fitted, rows), selectors)
                found = self._certified(closer, on, shares, free)
            if found is not None:
                return found
        return None

    def _fitted(
        self, on: Tensor, shares: Tensor, selectors: Tensor, kink: tuple[float, float], likely: float,
        used: Tensor,
    ) -> Tensor:  # fmt: skip
        """Return the image (n,) that meets the conditions of the neurons ``used`` (H,) best."""
        fixed = torch.cat([self._last[None], selectors])
        aim = torch.zeros(len(fixed), dtype=torch.float64)
        aim[0] = 1.0
        start: Tensor = torch.linalg.pinv(fixed) @ aim
        open_: Tensor = torch.linalg.svd(fixed, full_matrices=True).Vh[len(fixed) :].T
        precision = open_.T @ self._likely.precision @ open_
        pull = open_.T @ self._likely.precision @ (start - self._likely.mean)
        free: Tensor = torch.linalg.solve(precision, -pull)
        at_kink = on & (shares > kink[0]) & (shares < kink[1]) & used
        over = on & (shares >= kink[1]) & used
        under = ~on & used
        rows, outputs = self._layer.outputs @ open_, self._layer.outputs @ start
        for step in range(_STEPS):
            floor = self._likely.length * max(_START * _DECAY**step, _END)
            values = outputs + rows @ free
            wrong = at_kink | (over & (values < 0)) | (under & (values > 0))
            weights = wrong / (values.square() + floor**2)
            weighted = rows * weights[:, None]
            free = torch.linalg.solve(
                weighted.T @ rows + likely * precision, -(weighted.T @ outputs) - likely * pull
            )
        return start + open_ @ free

    def _vanishing(self, image: Tensor, rows: Tensor) -> Tensor:
        """Return the unit vector (n,) near ``image`` at which most ``rows`` (R, n) vanish."""
        image = image / image.norm()
        for step in range(30):
            floor = max(3e-3 * 0.7**step, _END)
            weights = 1.0 / ((rows @ image).square() + floor**2)
            image = _least(rows * weights.sqrt()[:, None], image)
        return image

    def _refined(self, image: Tensor, selectors: Tensor) -> Tensor:
        """Return the unit vector (n,) that vanishes best where ``image`` (n,) nearly does."""
        image = image / image.norm()
        for tolerance in _REFINED:
            near = (self._layer.outputs @ image).abs() < tolerance
            agreeing = (selectors @ image).abs() < 3 * tolerance + _ZERO
            image = _least(torch.cat([self._layer.outputs[near], selectors[agreeing]]), image)
        return image

    def _certified(self, image: Tensor, on: Tensor, shares: Tensor, free: int) -> Solution | None:
        """Return the image if its zeros and signs are those that its signal says."""
        outputs = self._layer.outputs @ image
        if float(outputs[on & (shares > 0.9)].sum()) < 0:
            outputs = -outputs
        zeros = outputs.abs() < _ZERO
        over, under = on & (shares >= 0.9) & ~zeros, ~on & ~zeros
        right = (outputs[over] > 0).sum() + (outputs[under] < 0).sum()
        counted = int(self._layer.counts(zeros & (~on | (shares < 0.97))))
        last = float(self._last @ image)
        if right < _SIGNS * (over.sum() + under.sum()) or counted < free + _SPARE or last == 0.0:
            return None
        return Solution(image / last, counted - free)


def _least(rows: Tensor, towards: Tensor) -> Tensor:
    """Return the unit vector (n,) with the least sum of squared products with ``rows`` (R, n)."""
    vectors: Tensor = torch.linalg.eigh(rows.T @ rows).eigenvectors
    found = vectors[:, 0]
    return found if float(found @ towards) >= 0 else -found
