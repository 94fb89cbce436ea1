"""Puts distances of all classes on one scale, private and holdout images by one rule.

Classes differ in how near and how widely spread their images lie, so that distances of two classes do
not compare. Each image is measured by *other* holdout images of its class, equally many for every
image: a holdout image by all but itself, a private image by all but one, each left out in turn. If an
image were among those it is measured by, holdout images would look more ordinary than private ones
and harmless audits would raise alarms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

SHARED = 2.0
"""Images of its own class that the spread of all other classes counts as. With a few holdout images a
class its own spread is little more than noise; with many this no longer matters."""


@dataclass(frozen=True)
class Yardstick:
    """What images of one class are measured by, one entry for each of its n holdout images left out.

    centre: (n,) float64, mean of the others. scale: (n,) float64 >= 0, by how much one more image
    typically differs from it. freedom: degrees of freedom of that scale, > 0.
    """

    centre: Tensor
    scale: Tensor
    freedom: float

    def scores(self, values: Tensor) -> Tensor:
        """Standard scores of ``values``, which broadcast against (n,); lower is nearer.

        Deviations over scale follow Student's t if values are normal. They are brought to normal
        scores (Wallace 1959), so that classes with few and with many holdout images compare. Where
        the others are all equal, a value that differs from them is infinitely far from them.
        """
        away = (values - self.centre) / self.scale
        away = away.where(values != self.centre, torch.zeros_like(away))
        f = self.freedom
        size = ((away.square() / f).log1p() * f).sqrt() * (8.0 * f + 1.0) / (8.0 * f + 3.0)
        return size.copysign(away)


def yardsticks(holdout: Mapping[int, Tensor]) -> dict[int, Yardstick]:
    """The yardstick of each class from its holdout images' values (n,), float64.

    Its scale joins the class's own variance with the pooled variance of the *other* classes, which
    counts as much as ``SHARED`` images do (an empirical Bayes estimate, Smyth 2004, with fixed
    weight). What treats every image of the class alike is left alike by it. Classes that cannot be
    measured, of one image or, where there is no other class to learn the spread from, of two, have no
    yardstick.
    """
    squares = {c: float((y - y.mean()).square().sum()) for c, y in holdout.items()}
    freedoms = sum(len(y) - 1 for y in holdout.values())
    everything = sum(squares.values())
    found = {}
    for label, y in holdout.items():
        n = len(y)
        others = freedoms - (n - 1)
        shared = SHARED if others else 0.0
        freedom = shared + n - 2
        if n < 2 or freedom <= 0:
            continue
        pooled = max(0.0, everything - squares[label]) / max(1, others)
        away = y - y.mean()
        # Sums of squares around the others' mean, one image left out at a time.
        rest = (squares[label] - away.square() * n / (n - 1)).clamp_min(0.0)
        variance = (shared * pooled + rest) / freedom
        found[label] = Yardstick(
            centre=y.mean() - away / (n - 1),
            scale=(variance * (1.0 + 1.0 / (n - 1))).sqrt(),
            freedom=freedom,
        )
    return found
