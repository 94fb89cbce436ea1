"""Intervals from resampling images within their classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from inversight.core.errors import ConfigError
from inversight.scores.result import Extra, Summary

# Numbers held at once in each temporary: 8 MiB of float64, so that they stay in cache.
_SCRATCH = 1 << 20


def interval_of_means(
    values: Tensor,
    sizes: Tensor,
    *,
    resamples: int,
    rng: torch.Generator | None,
    collapse: bool = True,
) -> list[tuple[float | None, float | None]]:
    """Return 95 % percentile bootstrap intervals of the S column means; None where there are none.

    Each class is resampled to its own size, so the interval is about other images of the same classes.
    A class's deviations from its mean are first multiplied by sqrt(n / (n - 1)): drawn from its own n
    images they are too small by this factor (Efron 1982, section 4), which matters for classes of a few
    images. Classes of a single image are resampled together as one class, since one image tells nothing
    of how much it could differ (collapsed strata: Cochran 1977, section 5A.12). There is no interval
    without resamples, or where no class has two images to draw from.

    Skewed values, such as scores 1 / distance, make it too short. Simulated, it holds the mean in 93 to
    96 % of cases for normal values, in 87 to 95 % for scores with many zeros and a log-normal rest, and in
    78 to 89 % where a few images decide the mean (``benchmarks/intervals.py``, docs/scoring.md).

    Args:
        values: (N, S), rows of one class side by side.
        sizes: (number of classes,) int64, rows of each class in the same order, summing to N.
        rng: CPU generator; None for one with seed 0.
        collapse: put classes of a single image together; not for values whose classes differ in sign.

    Raises:
        ConfigError: ``resamples`` is negative.
    """
    if resamples < 0:
        raise ConfigError(f"bootstrap: expected 0 or more resamples, found {resamples}")
    if collapse:
        values, sizes = _collapsed(values, sizes)
    if resamples == 0 or int(sizes.max()) < 2:
        return [(None, None)] * values.shape[1]
    rng = rng or default_rng()
    lowest, highest = _extremes(values.double(), sizes)
    values = _stretched(values.double(), sizes)
    means = [
        values.index_select(0, index.flatten()).view(*index.shape, values.shape[1]).mean(1)
        for index in resampled(sizes, resamples, _SCRATCH // values.numel(), rng)
    ]
    levels = torch.tensor([0.025, 0.975], dtype=torch.float64)
    # Stretched deviations can leave the range of possible means, such as [0, 1] for fractions.
    bounds = torch.cat(means).quantile(levels, dim=0).clamp(lowest, highest)
    return list(zip(*bounds.tolist(), strict=True))


def resampled(
    sizes: Tensor, resamples: int, at_once: int, rng: torch.Generator
) -> Iterator[Tensor]:
    """Yield rows (R, N) int64 drawn within classes, each to its own size, R up to ``at_once`` (or 1)."""
    start = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    size = sizes.repeat_interleave(sizes)
    at_once = max(1, at_once)
    for done in range(0, resamples, at_once):
        shape = min(at_once, resamples - done), len(size)
        # A float64 below 1 times a whole number stays below that number.
        yield torch.rand(shape, generator=rng, dtype=torch.float64).mul_(size).long().add_(start)


def _collapsed(values: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Return values (N, S) and sizes with all classes of a single image as one class, the last."""
    alone = sizes == 1
    if int(alone.sum()) < 2:
        return values, sizes
    single = alone.repeat_interleave(sizes)
    return (
        torch.cat([values[~single], values[single]]),
        torch.cat([sizes[~alone], alone.sum()[None]]),
    )


def _extremes(values: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the smallest and the largest mean (S,) that drawing within classes can give."""
    owner = torch.arange(len(sizes)).repeat_interleave(sizes)[:, None].expand_as(values)
    weight = sizes[:, None].double() / len(values)
    start = values.new_zeros(len(sizes), values.shape[1])
    lowest, highest = (
        (start.scatter_reduce(0, owner, values, how, include_self=False) * weight).sum(0)
        for how in ("amin", "amax")
    )
    return lowest, highest


def _stretched(values: Tensor, sizes: Tensor) -> Tensor:
    """Return the values with each class's deviations from its mean times sqrt(n / (n - 1))."""
    owner = torch.arange(len(sizes)).repeat_interleave(sizes)
    mean = values.new_zeros(len(sizes), values.shape[1]).index_add_(0, owner, values)
    mean = (mean / sizes[:, None])[owner]
    factor = (sizes / (sizes - 1).clamp_min(1)).double().sqrt()[owner]
    return mean + (values - mean) * factor[:, None]


def mean_summary(
    values: Tensor, sizes: Tensor, *, resamples: int, rng: torch.Generator | None, extra: Extra,
    collapse: bool = True,
) -> Summary:  # fmt: skip
    """Return the mean of values (N,) with its interval (see :func:`interval_of_means`)."""
    [interval] = interval_of_means(
        values[:, None], sizes, resamples=resamples, rng=rng, collapse=collapse
    )
    return Summary(float(values.mean()), *interval, extra=extra)


def class_order(labels: Tensor, ids: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return the rows class by class in the order of their ids, and the size of each class."""
    order = torch.tensor(sorted(range(len(ids)), key=lambda i: (int(labels[i]), ids[i])))
    _, sizes = labels.cpu()[order].unique_consecutive(return_counts=True)
    return order, sizes


def equal_classes(sizes: Tensor) -> Tensor:
    """Return weights (N,) for rows, so that their mean is the mean of the classes' means."""
    weight = sizes.sum().double() / (len(sizes) * sizes.double())
    return weight.repeat_interleave(sizes)


def default_rng() -> torch.Generator:
    """Return the default generator, of seed 0, so that intervals are reproducible."""
    return torch.Generator().manual_seed(0)
