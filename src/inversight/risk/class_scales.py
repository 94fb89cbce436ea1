"""Scales that make distances of all classes comparable, by one rule for private and holdout images.

Classes differ in how near and how widely spread their images lie. Each image is measured by *other*
holdout images of its class, equally many for every image: a holdout image by all but itself, a private
image by all but one, each left out in turn. If an image were among those it is measured by, holdout
images would look more ordinary than private ones, and audits without leakage would raise alarms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

SHARED = 2.0
"""Weight of the spread of all other classes, in images of the own class. With a few holdout images in a
class, its own spread is little more than noise; with many, this weight no longer matters."""


@dataclass(frozen=True)
class ClassScale:
    """The scale of one class, with one entry for each of its n holdout images left out.

    centre: (n,) float64, mean of the others. scale: (n,) float64 >= 0, the typical deviation of one more
    image from it. freedom: degrees of freedom of that scale, > 0.
    """

    centre: Tensor
    scale: Tensor
    freedom: float

    def scores(self, values: Tensor) -> Tensor:
        """Return standard scores of ``values``, which broadcast against (n,); lower is nearer.

        Deviations over scale follow Student's t if values are normal. They are converted to normal
        scores (Wallace 1959), so that classes with few and with many holdout images are comparable.
        Where the others are all equal, a value that differs from them is infinitely far from them.
        """
        away = (values - self.centre) / self.scale
        away = away.where(values != self.centre, torch.zeros_like(away))
        f = self.freedom
        size = ((away.square() / f).log1p() * f).sqrt() * (8.0 * f + 1.0) / (8.0 * f + 3.0)
        return size.copysign(away)


def class_scales(holdout: Mapping[int, Tensor]) -> dict[int, ClassScale]:
    """Return the scale of each class from its holdout images' values (n,), float64.

    It joins the class's own variance with the pooled variance of the *other* classes, which has the
    weight of ``SHARED`` images (an empirical Bayes estimate, Smyth 2004, with fixed weight). Classes of
    one image have no scale, nor have classes of two if there is no other class to pool with.
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
        found[label] = ClassScale(
            centre=y.mean() - away / (n - 1),
            scale=(variance * (1.0 + 1.0 / (n - 1))).sqrt(),
            freedom=freedom,
        )
    return found
