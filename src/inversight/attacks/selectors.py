"""The search for selectors: vectors that read a single image's signal out of a first layer.

Selectors are the vectors that a first layer maps to many zeros (:mod:`inversight.attacks.signals`). They are
found as sparse vectors of a subspace, one at a time, by iteratively reweighted least squares that starts from
the neurons that are off for some candidate image. The same structure lets SPEAR (Dimitrov et al., NeurIPS
2024) read a small batch out of a gradient, by drawing neurons at random; to start from candidates, and to use
trained weights in place of a gradient, is this project's own.

A sum of an image's signal and a little of another's can have as many zeros as the signal alone. So several
alternatives of one signal are kept, until one of them leads to an image.
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
_SPARE = 12
"""Zeros that a signal has at least beyond those that any vector can be given."""
_SAME, _ALTERNATIVE = 0.9999, 0.98
"""Cosines from which two signals are the same, and alternatives of each other."""
_ALTERNATIVES = 3


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

    def search(self, starts: Tensor, columns: Tensor, rng: torch.Generator) -> None:
        """Add the signals found from ``starts`` (S, n), images in the coordinates of the span.

        columns: (H, r), orthonormal: the space in which they are sought.
        """
        found = [self.vectors]
        for part in starts.split(_AT_ONCE):
            vectors = self._layer.polished(self._sparse(part, columns, rng))
            vectors = vectors[self._counts(vectors) >= self._layer.images + _SPARE]
            if len(vectors):
                vectors = self._pruned(vectors, 0)
                found.append(vectors[[self._class_of(one) is not None for one in vectors]])
        self._keep(self._pruned(torch.cat(found), self.settled))

    def settle(self, numbers: Sequence[int]) -> None:
        """Move these signals behind those that are settled already, and drop their alternatives."""
        front = [*range(self.settled), *numbers]
        alike = self.alike[front].any(dim=0)
        alike[front] = True
        self.settled = len(front)
        self._keep(torch.cat([self.vectors[front], self.vectors[~alike]]))

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
            mixed |= (cosines > 0.9) & (counts[one] < 0.6 * counts[kept])
            if not (repeated or crowded or bool(mixed.any())):
                kept.append(one)
        return vectors[kept]

    def _sparse(self, start: Tensor, columns: Tensor, rng: torch.Generator) -> Tensor:
        """Return combinations (S, H) of ``columns`` that are small where neurons are off for ``start``."""
        layer = self._layer
        outputs = start @ layer.outputs.T
        margin = _MARGIN * torch.rand(len(start), 1, generator=rng, dtype=torch.float64)
        off = (outputs / outputs.std(dim=1, keepdim=True) < -margin).double() + 1e-6
        pixels = (layer.span.inputs(start) - layer.mlp.shift) / layer.mlp.scale
        predicted = layer.mlp.answers(pixels).argmax(1)
        # The direction of what the neurons that are on would get: the signal must not vanish there.
        towards = unit((layer.margins[predicted] * (outputs > 0)) @ columns)
        rows = columns / layer.scales[:, None]
        vectors: Tensor = towards
        for step in range(_ITERATIONS):
            values = vectors @ rows.T
            size = values.square().mean(dim=1, keepdim=True).sqrt()
            half = _ITERATIONS // 2
            if step < half:  # least absolute values, which has one minimum
                floor = size * max(0.01, 0.3 * 0.8**step)
                weights = off * (values.square() + floor.square()).rsqrt() + 1e-9
            else:  # then the logarithm, which lets go of the neurons that are on after all
                floor = size * max(3e-4, 0.02 * 0.8 ** (step - half))
                weights = off / (values.square() + floor.square()) + 1e-12
            scaled = rows * weights.sqrt()[:, :, None]
            found: Tensor = torch.linalg.solve(scaled.mT @ scaled, towards[:, :, None])
            vectors = found[:, :, 0]
            vectors = vectors / (vectors * towards).sum(dim=1, keepdim=True)
        return unit(vectors) @ columns.T
