"""Training images from their signals: an image lies on the kinks of the neurons that its signal names.

The outputs of an image at its kinks are 0 (:mod:`inversight.attacks.signals`), those at neurons that are off
are not above 0, those at neurons that are on are not below it, and the selectors of all other images vanish
on it. Once enough selectors are known, this leaves a single image, which is found by iteratively reweighted
least squares. Where it is not certain, it is estimated as the likeliest image that meets most conditions, if
images are distributed like the candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from inversight.attacks.signals import FirstLayer, unit

_STEPS = 60
_START, _DECAY, _END = 0.1, 0.85, 1e-6
"""Outputs count as 0 up to this, relative to the lengths of row and image: first, from step to step, last."""
_ZERO = 1e-5
_REFINED = (1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 3e-5)
_ABSOLUTE, _LOGARITHMIC = 40, 60
"""Steps with the least absolute violations, and with the least sum of logarithms."""
_SIDE = 0.3
"""Weight of an output on the wrong side, beside 1 of an output that should be 0."""
_FIRM = (6.0, 9.0, 13.0)
"""Differences of a share from 1, in standard deviations, that show a kink, from try to try."""
_FIRM_KINK = (0.003, 0.99)
"""Shares of a signal between which a neuron is a kink, if noise is set to 1."""
_KINK = (0.05, 0.85)
"""Shares of a signal between which a neuron is taken for a kink."""
_LIKELY = 0.03
"""Weight of how likely an image is, in the estimate of an image that is not known exactly."""
_SPARE = 12
"""Zeros that an image has at least beyond those that any image within the constraints can be given."""
_SURE = 40
"""With so many it is certain; with fewer it has to come out again under other constraints."""
_SIGNS = 0.975
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

    def image(self, signal: Tensor, selectors: Tensor, surer: Tensor) -> Solution:
        """Return the image of ``signal`` (H,), on which most ``selectors`` (F, n) vanish.

        Where none is certain it is an estimate, without zeros: the likeliest image that meets most conditions
        and on which the selectors ``surer`` (F,) vanish.
        """
        tries = [self._layer.firm_shares(signal, firm) for firm in _FIRM]
        estimate = self._fitted(*tries[0], selectors[surer])
        found = self._solved(tries, selectors, estimate)
        if found is not None and found.zeros < _SURE:
            others = self._drawn(torch.full((len(selectors),), 0.85, dtype=torch.float64))
            again = self._solved(tries, selectors[others], estimate)
            if (
                again is None
                or float(torch.cosine_similarity(again.image, found.image, dim=0)) < 0.999
            ):
                found = None
        return Solution(estimate, 0) if found is None else found

    def _drawn(self, chances: Tensor) -> Tensor:
        return torch.rand(len(chances), generator=self._rng, dtype=torch.float64) < chances

    def _solved(
        self, tries: Sequence[tuple[Tensor, Tensor]], selectors: Tensor, estimate: Tensor
    ) -> Solution | None:
        """Return the image that most zeros certify, if there is one.

        It is sought from the signal alone, and from an ``estimate`` (n,). tries: where the signal is not 0, and
        its shares.
        """
        near = self._layer.output_vectors(estimate[None])[0]
        best: Solution | None = None
        for start in (None, near):
            for on, shares in tries:
                kinks = on & (shares > _FIRM_KINK[0]) & (shares < _FIRM_KINK[1])
                found = self._outputs(on & ~kinks, kinks, ~on, selectors, start)
                if found is None:
                    continue
                outputs, agreeing = found
                free = self._layer.images - agreeing
                certain = self._certified(self._layer.images_of(outputs), on, shares, free)
                if certain is not None and (best is None or certain.zeros > best.zeros):
                    best = certain
        return best

    def _outputs(
        self, over: Tensor, kinks: Tensor, under: Tensor, selectors: Tensor, start: Tensor | None
    ) -> tuple[Tensor, int] | None:
        """Return the image's outputs (n,), in the layer's columns, that meet most conditions.

        They are 0 at the neurons ``kinks`` (H,) and by ``selectors`` (F, n), not below 0 at ``over``, not above
        it at ``under``. Least absolute violations come first, then the least sum of their logarithms, which
        lets go of wrong conditions. With ``start`` (n,) the latter alone. Second is how many selectors agree.
        None if too few conditions do.
        """
        layer = self._layer
        # A selector's product with an image, by the image's outputs.
        back = layer.images_of(torch.eye(layer.images, dtype=torch.float64))
        chosen = unit((back @ selectors.T).T)
        rows = torch.cat([layer.columns / layer.scales[:, None], chosen])
        none = torch.zeros(len(chosen), dtype=torch.bool)
        zero = torch.cat([kinks, ~none])
        over, under = torch.cat([over, none]), torch.cat([under, none])
        towards = (over.double() - under.double()) @ rows
        found = towards if start is None else start
        found = found / (found @ towards)
        small = torch.eye(rows.shape[1], dtype=torch.float64)
        first, floor_first = (0, 0.3) if start is None else (_ABSOLUTE, 0.03)
        for step in range(first, _ABSOLUTE + _LOGARITHMIC):
            values = rows @ found
            size = values[over | under].abs().mean()
            wrong = (over & (values < 0)) | (under & (values > 0))
            if step < _ABSOLUTE:
                floor = size * 1e-3 ** (step / _ABSOLUTE)
                weights = (values.square() + floor.square()).rsqrt()
            else:
                done = (step - _ABSOLUTE) / _LOGARITHMIC
                floor = size * floor_first * (_END / floor_first) ** done
                weights = 1.0 / (values.square() + floor.square())
            weights = weights * (zero.double() + _SIDE * wrong.double())
            weighted = rows.T @ (rows * weights[:, None])
            found = torch.linalg.solve(
                weighted + 1e-9 * weighted.diagonal().mean() * small, towards
            )
            found = found / (found @ towards)
        for tolerance in _REFINED:
            values = (rows @ found).abs()
            near = zero & (values < tolerance * values.square().mean().sqrt())
            if int(near.sum()) < layer.images - 1:
                return None
            found = _least(rows[near], found)
        return found, int(near[len(kinks) :].sum())

    def _fitted(self, on: Tensor, shares: Tensor, selectors: Tensor) -> Tensor:
        """Return the likeliest image (n,) that meets most conditions, and on which ``selectors`` vanish."""
        fixed = torch.cat([self._last[None], selectors])
        aim = torch.zeros(len(fixed), dtype=torch.float64)
        aim[0] = 1.0
        start: Tensor = torch.linalg.pinv(fixed) @ aim
        open_: Tensor = torch.linalg.svd(fixed, full_matrices=True).Vh[len(fixed) :].T
        precision = open_.T @ self._likely.precision @ open_
        pull = open_.T @ self._likely.precision @ (start - self._likely.mean)
        free: Tensor = torch.linalg.solve(precision, -pull)
        at_kink = on & (shares > _KINK[0]) & (shares < _KINK[1])
        over, under = on & (shares >= _KINK[1]), ~on
        rows, outputs = self._layer.outputs @ open_, self._layer.outputs @ start
        for step in range(_STEPS):
            floor = self._likely.length * max(_START * _DECAY**step, _END)
            values = outputs + rows @ free
            wrong = at_kink | (over & (values < 0)) | (under & (values > 0))
            weights = wrong / (values.square() + floor**2)
            weighted = rows * weights[:, None]
            free = torch.linalg.solve(
                weighted.T @ rows + _LIKELY * precision, -(weighted.T @ outputs) - _LIKELY * pull
            )
        return start + open_ @ free

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
        if not self._layer.mlp.are_pixels(self._layer.span.inputs(image[None] / last)):
            return None
        return Solution(image / last, counted - free)


def _least(rows: Tensor, towards: Tensor) -> Tensor:
    """Return the unit vector (n,) with the least sum of squared products with ``rows`` (R, n)."""
    vectors: Tensor = torch.linalg.eigh(rows.T @ rows).eigenvectors
    found = vectors[:, 0]
    return found if float(found @ towards) >= 0 else -found
