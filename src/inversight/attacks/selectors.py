"""The search for selectors: vectors that read a single image's signal out of a first layer.

Selectors are the vectors that a first layer maps to many zeros (:mod:`inversight.attacks.signals`). They are
found as sparse vectors of a subspace, one at a time, by iteratively reweighted least squares that starts from
the neurons that are off for some candidate image. The same structure lets SPEAR (Dimitrov et al., NeurIPS
2024) read a small batch out of a gradient, by drawing neurons at random; to start from candidates, and to use
trained weights in place of a gradient, is this project's own.

A sum of an image's signal and a little of another's can have as many zeros as the signal alone. So several
alternatives of one signal are kept, until one of them leads to an image. Then the image's part is taken away
from the layer and from the sums, and the search goes on in what is left, which has one dimension less.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from inversight.attacks.signals import FirstLayer, unit

_AT_ONCE = 50
_ITERATIONS = 50
_MARGIN = 0.7
"""Neurons count as off for a candidate below up to this many standard deviations of its outputs."""
_ON_WEIGHTS = (0.0, 0.03, 0.1)
"""Weights of a neuron that is on for a candidate, beside 1 of one that is off."""
_NOISE = 0.02
"""Differences of values from what the second layer explains, relative to their size, that are noise."""
_RIDGE = 1e-9
_SPARE = 12
"""Zeros that a signal has at least beyond those that any vector can be given."""
_SAME, _NEARLY, _ALTERNATIVE = 0.9999, 0.9995, 0.985
"""Cosines from which two signals are the same, the same but for errors, and alternatives of each other."""
_ALTERNATIVES = 3
_AGAIN = 3
"""Times that the signal of an exact image is sought again."""


class SignalSearch:
    """The search for signals of one first layer.

    vectors: (F, n), in the coordinates of the layer's columns, of unit length; the first ``settled`` of them
    are known to be right. labels: (F,), the images' classes.
    """

    def __init__(self, layer: FirstLayer) -> None:
        self._layer = layer
        self.vectors = torch.zeros(0, layer.images, dtype=torch.float64)
        self.labels = torch.zeros(0, dtype=torch.int64)
        self.settled = 0
        self._columns = layer.columns
        self._seen: dict[tuple[float, ...], int | None] = {}

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def signals(self) -> Tensor:
        """The signals (F, H), of unit length."""
        return self.vectors @ self._layer.columns.T

    @property
    def alike(self) -> Tensor:
        """Whether two signals (F, F) are the same or alternatives of each other."""
        signals = self.signals
        return (signals @ signals.T).abs() > _ALTERNATIVE

    def search(self, starts: Tensor, rng: torch.Generator) -> None:
        """Add the signals found from ``starts`` (S, n), images in the coordinates of the span."""
        found = [self.vectors]
        for part in starts.split(_AT_ONCE):
            found.append(self._single(self._sparse(part, rng)))
        self._keep(self._pruned(torch.cat(found), self.settled))

    def settle(self, numbers: Sequence[int], images: Tensor, rng: torch.Generator) -> None:
        """Move these signals behind those that are settled already, and drop their alternatives.

        The search goes on in what is left of the layer without their images, where the signals that are not
        settled are found anew.

        images: (F, n), of all signals that are settled then, in the coordinates of the span.
        """
        layer = self._layer
        front = [*range(self.settled), *numbers]
        alike = self.alike[front].any(dim=0)
        alike[front] = True
        settled, others = self.vectors[front], self.vectors[~alike]
        for _ in range(_AGAIN):  # an exact image shows its signal more surely than a candidate
            surer = layer.polished(self._sparse(images, rng))
            better = self._counts(surer) > self._counts(settled)
            better &= (surer * settled).sum(dim=1).abs() > _NEARLY
            better &= torch.tensor([self._class_of(one) is not None for one in surer])
            settled = torch.where(better[:, None], surer, settled)
        self.settled = len(front)
        self._columns = layer.columns_without(layer.selectors(settled), images)
        # Other signals are sums of one in these columns and of those that are settled.
        left = self._columns.T @ layer.columns
        both = torch.cat([left, settled]).T
        shares = (torch.linalg.pinv(both) @ others.T)[: len(left)]
        found = self._single((self._columns @ shares).T) if len(left) else others[:0]
        self._keep(self._pruned(torch.cat([settled, found]), self.settled))

    def _single(self, signals: Tensor) -> Tensor:
        """Return the vectors (F, n) of single images' signals among about ``signals`` (S, H)."""
        if signals.numel() == 0:
            return self.vectors[:0]
        vectors = self._layer.polished(signals)
        vectors = vectors[self._counts(vectors) >= self._layer.images + _SPARE]
        if len(vectors):
            vectors = self._pruned(vectors, 0)
        return vectors[[self._class_of(one) is not None for one in vectors]]

    def _keep(self, vectors: Tensor) -> None:
        self.vectors = vectors
        self.labels = torch.tensor([self._class_of(one) for one in vectors], dtype=torch.int64)

    def _class_of(self, vector: Tensor) -> int | None:
        key = tuple(vector.tolist())
        if key not in self._seen:
            self._seen[key] = self._layer.class_of(vector)
        return self._seen[key]

    def _counts(self, vectors: Tensor) -> Tensor:
        return self._layer.counts(self._layer.zeros(vectors))

    def _pruned(self, vectors: Tensor, settled: int) -> Tensor:
        """Return vectors without repetitions and without most sums of signals, most zeros first.

        The first ``settled`` stay, and none that is like them is kept beside.
        """
        zeros = self._layer.zeros(vectors)
        counts = self._layer.counts(zeros)
        signals = vectors @ self._layer.columns.T
        kept = list(range(settled))
        for one in counts.argsort(descending=True, stable=True).tolist():
            cosines = (signals[kept] @ signals[one]).abs()
            shared = self._layer.counts(zeros[kept] & zeros[one]) / counts[one]
            repeated = bool((cosines > _SAME).any() | (cosines[:settled] > _ALTERNATIVE).any())
            crowded = int((cosines > _ALTERNATIVE).sum()) >= _ALTERNATIVES
            # The zeros of a sum are those that its signals share.
            mixed = (cosines > 0.7) & (shared >= 0.93)
            mixed |= (cosines > 0.9) & (shared >= 0.8) & (counts[one] < 0.6 * counts[kept])
            mixed[:settled] = False  # their parts have been taken away
            if not (repeated or crowded or bool(mixed.any())):
                kept.append(one)
        return vectors[kept]

    def _sparse(self, start: Tensor, rng: torch.Generator) -> Tensor:
        """Return combinations (S, H) of the columns that are about the signals of the images ``start``.

        They are small where neurons are off for an image, and where neurons are on nearly what the second
        layer explains. How much the latter counts is drawn, since each weight finds other signals.
        """
        layer, columns, distinct = self._layer, self._columns, self._layer.distinct
        outputs = start @ layer.outputs.T
        pixels = (layer.span.inputs(start) - layer.mlp.shift) / layer.mlp.scale
        predicted = layer.mlp.answers(pixels).argmax(1)
        # The direction of what the neurons that are on would get: the signal must not vanish there.
        towards = unit((layer.margins[predicted] * (outputs > 0)) @ columns)
        margin = _MARGIN * torch.rand(len(start), 1, generator=rng, dtype=torch.float64)
        weight = torch.tensor(_ON_WEIGHTS, dtype=torch.float64)
        weight = weight[torch.randint(len(weight), (len(start), 1), generator=rng)]
        outputs = (outputs / outputs.std(dim=1, keepdim=True))[:, distinct]
        off, on = (outputs < -margin).double(), (outputs > 0) * weight
        rows = columns[distinct] / layer.scales[distinct, None]
        explaining = layer.explaining[distinct] / layer.scales[distinct, None]
        vectors, explained = towards, torch.zeros_like(outputs)
        for step in range(_ITERATIONS):
            values = vectors @ rows.T
            size = values.square().mean(dim=1, keepdim=True).sqrt()
            differences = (values - explained) / size
            values = values / size
            late = step - _ITERATIONS // 2
            if late < 0:  # least absolute values, which has one minimum
                floor = max(0.01, 0.3 * 0.8**step)
                zero = off * (values.square() + floor**2).rsqrt()
                same = on * (differences.square() + max(_NOISE, floor) ** 2).rsqrt()
            else:  # then the logarithm, which lets go of neurons that are on the other side after all
                zero = off / (values.square() + max(3e-4, 0.02 * 0.8**late) ** 2)
                same = on / (differences.square() + max(_NOISE, 0.05 * 0.8**late) ** 2)
            vectors, combined = _least(rows, explaining, zero + 1e-9, same + 1e-12, towards)
            explained = combined @ explaining.T
        return unit(vectors) @ columns.T


def _least(
    rows: Tensor, explaining: Tensor, zero: Tensor, same: Tensor, towards: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the vectors (S, r) with product 1 with ``towards`` (S, r) and the least values on ``rows``.

    That is the sum of squares of values with the weights ``zero`` (S, H), and of their differences from a
    combination of ``explaining`` (H, R) with the weights ``same`` (S, H). Second are the combinations (S, R).
    """
    values = (rows.T * (zero + same)[:, None]) @ rows
    shared = (rows.T * same[:, None]) @ explaining
    own = (explaining.T * same[:, None]) @ explaining
    own = own + _RIDGE * torch.eye(own.shape[-1], dtype=torch.float64)
    combining = torch.linalg.solve(own, shared.mT)
    found = torch.linalg.solve(values - shared @ combining, towards[:, :, None])
    found = found / (towards[:, None] @ found)
    return found[:, :, 0], (combining @ found)[:, :, 0]
