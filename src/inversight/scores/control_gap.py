"""The gain of an attack over samples of the prior that no target guided, image by image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from inversight.scores.assignment import Assignment
from inversight.scores.bootstrap import class_order, mean_summary
from inversight.scores.ddcs import best_scores
from inversight.scores.result import Summary


def gap_to_control(
    guided: Assignment, control: Assignment, *, labels: Tensor, ids: Sequence[str],
    bootstrap: int = 1000, rng: torch.Generator,
) -> Summary:  # fmt: skip
    """In (-inf, inf), higher is more leakage: DDCS best of guided less that of unguided reconstructions.

    Higher means that the guidance brought reconstructions closer to more of the private images. It
    cannot separate class similarity from per-image leakage, so there is no p-value. The interval (95 %)
    resamples private images within their classes, each with both of its scores; it leaves out the
    randomness of attack and control themselves.

    Args:
        guided: the assignment of the guided reconstructions to the private images. Only owner and
            distance are used.
        control: that of the unguided ones, with as many images of each class (not checked).
        labels: (N,) of the private images.
        ids: their N names.
        bootstrap: number of resamples; 0 for no interval.
    """
    with_target, without = (best_scores(a, floor=1e-6) for a in (guided, control))
    order, sizes = class_order(labels, ids)
    extra = {
        "attack": float(with_target[order].mean()), "control": float(without[order].mean()),
        "covered": float((with_target > 0).double().mean()),
        "control_covered": float((without > 0).double().mean()),
        "private_images": len(ids), "reconstructions": len(guided.owner),
    }  # fmt: skip
    gap = (with_target - without)[order]
    return mean_summary(gap, sizes, resamples=bootstrap, rng=rng, extra=extra)


def first_of_each(labels: Tensor, counts: Tensor) -> Tensor:
    """Return the rows of the first ``counts[c]`` of each label c in ``labels`` (M,), in their order.

    Raises:
        ValueError: a label has fewer.
    """
    kept = []
    for label, count in enumerate(counts.tolist()):
        rows = (labels == label).nonzero().squeeze(1)
        if len(rows) < count:
            raise ValueError(f"class {label}: {count} rows wanted, {len(rows)} there")
        kept.append(rows[:count])
    return torch.cat(kept).sort().values
