"""Single images' signals in a first layer: how the weights show at which neurons an image is on.

The first layer of a network trained with weight decay, its bias as the last column, is sum_i d_i [x_i, 1]^T
over the training images x_i (:mod:`inversight.attacks.stationarity`). The signal d_i of an image has a value
for each neuron:

- 0, exactly, where the neuron is off for the image;
- lambda_i times the gradient of the margin at the neuron, where it is on;
- something between these where the image lies on the kink of the neuron's ReLU. Training puts about a tenth of
  all pairs of images and neurons there, exactly.

A selector of image i is a vector q in the span of the images with q . [x_j, 1] = 0 for all others, so the
first layer times q is d_i alone: selectors are the vectors that the first layer maps to many zeros. Here they
are written in coordinates in which the layer's columns are orthonormal, so that all directions of the span
count alike, however small they are in the weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

from inversight.attacks.mlp import Mlp
from inversight.attacks.stationarity import Span

ZERO = 3e-5
"""A value below this, relative to the root mean square of a signal, is a zero."""
_TOLERANCES = (3e-3, 1e-3, 3e-4, 1e-4, ZERO, 1e-5)
_ALIVE = 1e-3
"""Neurons with shorter rows, relative to the longest, are dead."""
_ON = 1e-3
_COPY = 1e-6
"""Neurons whose rows have this much less than a cosine of 1 are copies, and no evidence beside each other."""
_NORMAL = 1.4826
"""Standard deviations of a normal distribution in its median absolute deviation."""
_REFITS = 15
_SIGNS = 0.94
"""Least share of a signal whose sign is that of its class's margin."""
_AGREES = 1.4
"""Least sum of two shares of the neurons that are on: those whose value the upper layers explain, and those
whose value is between 0 and that."""
_DIRECTIONS, _STRONG = 15, 0.01
"""Most directions of the second layer that explain the values of a signal, and their least singular value,
relative to the largest."""


class FirstLayer:
    """The first layer of a network, for signals.

    rows: (H, n), of the H neurons that are not dead, in the coordinates of the span. outputs: the same, of unit
    length. columns: (H, n), orthonormal, of the same span as those of ``rows``. scales: (H,), the lengths of
    its rows. distinct: (H,), which neurons are no copies of earlier ones. explaining: (H, R), orthonormal: the
    second layer's directions, of which a signal is made where neurons are on.
    """

    columns: Tensor
    _values: Tensor
    _turn: Tensor

    def __init__(self, mlp: Mlp, span: Span) -> None:
        lengths = span.rows.norm(dim=1)
        alive = lengths > _ALIVE * lengths.max()
        self.mlp, self.span = mlp, span
        self.rows, self._alive = span.rows[alive], alive
        self.outputs = self.rows / lengths[alive, None]
        self.distinct = _distinct(self.outputs)
        self.columns, self._values, self._turn = torch.linalg.svd(self.rows, full_matrices=False)
        self.scales = self.columns.norm(dim=1).clamp_min(1e-300)
        path = mlp.weights[-1]
        for weight in reversed(mlp.weights[1:-1]):
            path = path @ weight
        classes = len(path)
        margins = torch.eye(classes, dtype=torch.float64)
        margins = margins - (1.0 - margins) / max(1, classes - 1)
        self.margins = margins @ path[:, alive]
        """(K, H): what a logit gains from a neuron, less the mean of the others."""
        second, strength, _ = torch.linalg.svd(mlp.weights[1].T[alive], full_matrices=False)
        strong = int((strength > _STRONG * strength[0]).sum())
        self.explaining = second[:, : min(strong, _DIRECTIONS, len(self.rows) // 4)]

    @property
    def images(self) -> int:
        """Number n of images in the span."""
        return self.rows.shape[1]

    @property
    def many(self) -> bool:
        """Whether the layer has the neurons that signals need: clearly more than images."""
        return int(self.distinct.sum()) >= 2 * self.images

    def zeros(self, vectors: Tensor) -> Tensor:
        """Return which neurons (F, H) the signals of ``vectors`` (F, n) are 0 at."""
        values = (vectors @ self.columns.T / self.scales).abs()
        small: Tensor = values < ZERO * _size(values)
        return small

    def counts(self, zeros: Tensor) -> Tensor:
        """Return the number (...) of zeros (..., H), in which neurons that are copies count once."""
        return (zeros & self.distinct).sum(dim=-1)

    def polished(self, signals: Tensor) -> Tensor:
        """Return the unit vectors (F, n) whose signals vanish where ``signals`` (F, H) nearly do."""
        for tolerance in _TOLERANCES:
            values: Tensor = (signals / self.scales).abs()
            rank = min(self.images + 2, values.shape[1])
            least = values.kthvalue(rank, dim=1, keepdim=True).values
            near = (values <= (tolerance * _size(values)).maximum(least)).double()
            scaled = (self.columns / self.scales[:, None]) * near[:, :, None]
            vectors: Tensor = torch.linalg.eigh(scaled.mT @ scaled).eigenvectors[:, :, 0]
            signals = vectors @ self.columns.T
        return vectors

    def columns_without(self, selectors: Tensor, images: Tensor) -> Tensor:
        """Return the layer's columns (H, n - F), orthonormal, once F images' parts are taken away.

        selectors: (F, n), of the images (F, n), in the coordinates of the span.
        """
        if len(images) == 0:
            return self.columns
        signals = self.span.signals(selectors, images)[self._alive]
        rest: Tensor = torch.linalg.svd(self.rows - signals @ images, full_matrices=False).U
        return rest[:, : self.images - len(images)]

    def selectors(self, vectors: Tensor) -> Tensor:
        """Return ``vectors`` (F, n) in the coordinates of the span, (F, n) of unit length."""
        found: Tensor = (vectors / self._values) @ self._turn
        return unit(found)

    def shares(self, signal: Tensor) -> tuple[Tensor, Tensor]:
        """Return at which neurons (H,) a signal (H,) is not 0, and its share (H,) of what it would be if on.

        The latter is a combination of the second layer's directions, fitted with the least absolute
        differences. A share is about 1 where the neuron is on, and between 0 and 1 at a kink.
        """
        size = _size(signal)
        on = signal.abs() > _ON * size
        shares = torch.zeros_like(signal)
        fitted = _robust_fit(self.explaining[on], signal[on], 1e-2 * size)
        shares[on] = signal[on] / fitted
        return on, shares

    def firm_shares(self, signal: Tensor, firm: float = 6.0) -> tuple[Tensor, Tensor]:
        """Return what :meth:`shares` does, with 1 for shares that differ from it by no more than noise.

        That is ``firm`` standard deviations of the signal around what the second layer's directions give.
        Training that has not quite ended makes such noise, since weights are sums over the last steps.
        """
        size = _size(signal)
        on = signal.abs() > _ON * size
        columns, values = self.explaining[on], signal[on]
        fitted = _robust_fit(columns, values, 1e-2 * size)
        for _ in range(_REFITS):  # kinks are on one side: those found have no weight
            differences = (values - fitted).abs()
            spread = _NORMAL * differences.median()
            spread = _NORMAL * differences[differences < 3.0 * spread].median()
            weights = (1.0 + (differences / (3.0 * spread)).square()).reciprocal()
            solution = torch.linalg.lstsq(columns * weights[:, None], (values * weights)[:, None])
            fitted = (columns @ solution.solution).squeeze(1)
        shares = torch.zeros_like(signal)
        near = (values - fitted).abs() < firm * spread
        shares[on] = torch.where(near, 1.0, values / fitted)
        return on, shares

    def output_vectors(self, images: Tensor) -> Tensor:
        """Return the coordinates (N, n), in :attr:`columns`, of what the neurons give for images (N, n)."""
        return (images @ self._turn.T) * self._values

    def images_of(self, outputs: Tensor) -> Tensor:
        """Return the images (N, n) of such coordinates (N, n): the inverse of :meth:`output_vectors`."""
        return (outputs / self._values) @ self._turn

    def class_of(self, vector: Tensor) -> int | None:
        """Return the class of a signal; None if it is not the signal of a single image.

        A sum or difference of several images' signals has many zeros too, but its other values are not
        those that the upper layers give to an image.
        """
        signal = self.columns @ vector
        size = _size(signal)
        on, shares = self.shares(signal)
        along = self.margins[:, on] * signal[on]
        positive = along.clamp_min(0.0).sum(1) / along.abs().sum(1)
        agree = torch.maximum(positive, 1.0 - positive)
        small = signal[on].abs() < 0.05 * size
        share = shares[on]
        fits = ((signal[on] - signal[on] / share).abs() < 0.05 * size).double().mean()
        between = ((share > -0.05) & (share < 1.05) | small).double().mean()
        if float(agree.max()) < _SIGNS or float(fits + between) < _AGREES:
            return None
        # Of the classes whose signs agree, the one whose margin the values follow best.
        follows = (along.sum(1) / self.margins[:, on].norm(dim=1)).abs()
        return int(follows.masked_fill(agree < _SIGNS, -1.0).argmax())


def _distinct(rows: Tensor) -> Tensor:
    """Return which unit rows (H, n) are no copy of an earlier one, nor its negative, (H,)."""
    first = torch.ones(len(rows), dtype=torch.bool)
    for start in range(0, len(rows), 1000):
        part = rows[start : start + 1000]
        copies = (part @ rows[: start + len(part)].T).abs() > 1.0 - _COPY
        first[start : start + len(part)] = ~copies.tril(start - 1).any(dim=1)
    return first


def unit(vectors: Tensor) -> Tensor:
    """Return vectors (..., n) of unit length in the directions of ``vectors``."""
    length: Tensor = vectors.norm(dim=-1, keepdim=True)
    return vectors / length


def _size(values: Tensor) -> Tensor:
    """Return the root mean square of values (..., H), (..., 1)."""
    return values.square().mean(dim=-1, keepdim=True).sqrt()


def _robust_fit(columns: Tensor, values: Tensor, floor: Tensor) -> Tensor:
    """Return the combination of ``columns`` (N, R) with the least absolute differences from values (N,)."""
    weights = torch.ones_like(values)
    fitted = torch.zeros_like(values)
    for step in range(40):
        root = weights.sqrt()
        solution = torch.linalg.lstsq(columns * root[:, None], (values * root)[:, None]).solution
        fitted = (columns @ solution).squeeze(1)
        weights = 1.0 / ((values - fitted).abs() + floor * max(1.0, 20 * 0.8**step))
    return fitted
