"""One word that describes each private image; a description, not a proof."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from inversight.risk.twins import Twins

KINDS: dict[str, str] = {
    "duplicate": "in a group of near-duplicates (twins)",
    "memorised": "far from its class in the scoring distance, which has not seen the private images, "
    "yet the target is right about it and at least as confident as on the median image of the class",
    "outlier": "far from its class in the scoring distance or in the target's own features",
    "typical": "none of these",
}
"""Every kind and its rule; the first rule that holds gives the kind."""


def kinds(
    labels: Tensor,
    values: Mapping[str, Tensor],
    twins: Twins,
    neighbour_distance: Tensor | None,
    *,
    seen: bool = False,
) -> tuple[str, ...]:
    """Return the kind of each of N images, by the rules in ``KINDS``.

    Args:
        labels: (N,).
        values: signals, each (N,) (:func:`inversight.risk.signals.signals`); rules whose signals are
            missing do not apply.
        neighbour_distance: (N,), mean scoring distance to the nearest images of the class, or None.
        seen: the distance's network was trained on the private images. Then nothing is called
            memorised, because the distance may have learnt the images too.

    "Far" is beyond the fence of :func:`is_far`.
    """
    unknown = torch.full((len(labels),), float("nan"))  # NaN fulfils no rule
    apart = is_far(unknown if neighbour_distance is None else neighbour_distance, labels)
    inside = is_far(values.get("centre_distance", unknown), labels)
    sure = torch.zeros_like(apart)
    if "loss" in values and "margin" in values and not seen:
        sure = (values["margin"] > 0) & (_less_class_median(values["loss"], labels) <= 0)
    rules = {"duplicate": twins.group >= 0, "memorised": apart & sure, "outlier": apart | inside}
    found = np.select([rule.numpy() for rule in rules.values()], list(rules), "typical")
    return tuple(map(str, found))


def is_far(distances: Tensor, labels: Tensor) -> Tensor:
    """Return (N,) bool: whether an image lies beyond the upper fence of all images (Tukey 1977).

    It does if the logarithm of its distance less its class's median exceeds the third quartile of all
    images by more than 1.5 times the interquartile range. Classes are pooled because a few images have
    no reliable quartiles; 0.35 % of normal values lie there. distances: (N,) >= 0; NaN is not far.
    """
    centred = _less_class_median(distances.double().clamp_min(1e-12).log(), labels)
    known = centred[centred.isfinite()]
    if len(known) < 4:
        return torch.zeros(len(labels), dtype=torch.bool)
    low, high = np.quantile(known.numpy(), (0.25, 0.75))
    far: Tensor = centred > high + 1.5 * (high - low)
    return far


def _less_class_median(values: Tensor, labels: Tensor) -> Tensor:
    """Return (N,) float64: values less the median of their class, which leaves out NaN."""
    series = pd.Series(values.double().numpy())
    medians = series.groupby(labels.numpy()).transform("median")
    return torch.tensor((series - medians).to_numpy())
