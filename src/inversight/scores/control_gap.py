"""What a target's guidance gained over samples of the prior: DDCS by both, image by image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from inversight.scores.assignment import Assignment
from inversight.scores.bootstrap import interval_of_means
from inversight.scores.ddcs import ddcs_of
from inversight.scores.result import Summary


def gap_to_control(
    guided: Assignment,
    control: Assignment,
    *,
    labels: Tensor,
    ids: Sequence[str],
    reconstruction_ids: Sequence[str],
    control_ids: Sequence[str],
    bootstrap: int = 1000,
    rng: torch.Generator,
) -> Summary:
    """DDCS best by guided reconstructions less that by as many unguided ones, in (-inf, inf).

    Higher: the guidance brought reconstructions closer to more of the private images. It holds what
    images of a class have in common as well as what single ones leaked, and tells the two apart
    nowhere: there is no p-value. The interval (95 %) resamples private images within their classes,
    each with both of its scores; it leaves out the randomness of attack and control themselves.

    Args:
        guided, control: the assignment of either to the same private images, with as many images of
            each class (not checked). Owner and distance are all that is used of them.
        labels, ids: (N,) of the private images. reconstruction_ids, control_ids: names of either.
        bootstrap: number of resamples; 0 for no interval.
    """

    def best(assignment: Assignment, names: Sequence[str]) -> Tensor:
        unknown = replace(
            assignment,
            nearest=torch.full_like(assignment.nearest, float("inf")),
            nearest_row=torch.full_like(assignment.nearest_row, -1),
        )
        found = ddcs_of(unknown, labels=labels, ids=ids, reconstruction_ids=names, bootstrap=0)
        return found.per_sample["ddcs_best"]

    scores = best(guided, reconstruction_ids), best(control, control_ids)
    order = torch.tensor(sorted(range(len(ids)), key=lambda i: (int(labels[i]), ids[i])))
    _, sizes = labels.cpu()[order].unique_consecutive(return_counts=True)
    with_target, without = (one[order] for one in scores)
    gap = with_target - without
    [(low, high)] = interval_of_means(gap[:, None], sizes, resamples=bootstrap, rng=rng)
    return Summary(
        float(gap.mean()),
        low,
        high,
        extra={
            "attack": float(with_target.mean()),
            "control": float(without.mean()),
            "covered": float((with_target > 0).double().mean()),
            "control_covered": float((without > 0).double().mean()),
            "private_images": len(ids),
            "reconstructions": len(reconstruction_ids),
        },
    )


def first_of_each(labels: Tensor, counts: Tensor) -> Tensor:
    """Rows of the first ``counts[c]`` of each label c among ``labels`` (M,), in their order.

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
