"""Attack accuracy: does an independent evaluator recognise the reconstructions?"""

from __future__ import annotations

import torch
from torch import Tensor

from inversight.core.errors import InputError
from inversight.scores.checks import as_labels
from inversight.scores.result import ScoreResult, Summary

# Two-sided 95 % point of the standard normal distribution.
_Z = 1.959963984540054


def accuracy(logits: Tensor, labels: Tensor) -> ScoreResult:
    """In [0, 1], higher is more leakage: the fraction of reconstructions an evaluator recognises.

    ``accuracy_top1`` and ``accuracy_top5``, with Wilson's 95 % interval (Wilson 1927). Equal logits
    rank in the order of their classes, so a constant evaluator is right about one class only. With
    5 classes or fewer top-5 is None with its reason. per_sample ``top1`` and, with more classes,
    ``top5``: (M,) bool for each reconstruction.

    It does not show whether any single private image was recovered: a typical face of the class is
    enough. It depends on the evaluator's own mistakes. The interval assumes independent reconstructions,
    so it is too narrow if a class has collapsed to one image.

    Args:
        logits: (M, K), the evaluator's on the reconstructions.
        labels: (M,) int64 in [0, K).

    Raises:
        InputError: shapes that do not match, no row, a label outside [0, K), a NaN or infinity.
    """
    if logits.ndim != 2 or len(logits) == 0:
        found = tuple(logits.shape)
        raise InputError(f"logits: expected shape (M, K) with at least one row, found {found}")
    classes = logits.shape[1]
    labels = as_labels(labels, len(logits), "reconstructions").to(logits.device)
    outside = (labels < 0) | (labels >= classes)
    if bool(outside.any()):
        raise InputError(
            f"labels: expected classes 0 to {classes - 1}, as the evaluator has, "
            f"found {int(labels[outside][0])}"
        )
    if not bool(logits.isfinite().all()):
        row = int((~logits.isfinite()).any(1).nonzero()[0])
        raise InputError(f"logits: expected finite numbers, found NaN or infinity in row {row}")

    own = logits.gather(1, labels[:, None])
    before = torch.arange(classes, device=logits.device) < labels[:, None]
    rank = ((logits > own) | ((logits == own) & before)).sum(1).cpu()
    right = {"top1": rank < 1}
    if classes > 5:
        right["top5"] = rank < 5
    summary = {f"accuracy_{key}": _fraction(hits) for key, hits in right.items()}
    if classes <= 5:
        reason = f"the evaluator has {classes} classes, so any answer is in the top 5"
        summary["accuracy_top5"] = Summary(None, reason=reason)
    return ScoreResult("higher", "reconstructions", summary, right)


def _fraction(hits: Tensor) -> Summary:
    """Return the fraction of true entries with Wilson's interval."""
    n = len(hits)
    value = int(hits.sum()) / n
    centre = (value + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * (value * (1 - value) / n + _Z**2 / (4 * n**2)) ** 0.5
    # At 0 or 1 the bound on that side equals the value, except for rounding.
    low = min(value, max(0.0, centre - half))
    high = max(value, min(1.0, centre + half))
    return Summary(value, low, high, extra={"reconstructions": n})
