"""How often do the 95 % intervals of scores hold the mean? Simulated scores of images.

uv run python benchmarks/intervals.py            500 simulations of each row
uv run python benchmarks/intervals.py --small    100

Classes have means of their own, and images are drawn anew within them, as the intervals assume.

normal   normal values
scores   half of the images uncovered (0), the rest log-normal, as 1 / distance is
heavy    the same with a spread of 1.5 in place of 1, so that a few images decide the mean

Besides the share of intervals that hold the mean: that of the same where classes of one image are not put
together, and that of bootstrap-t intervals, with the ratio of their median width to ours.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from common import finish, parser
from inversight.core.seeding import generator
from inversight.scores.bootstrap import interval_of_means

Floats = NDArray[np.float64]

SIZES = {
    "20 classes of 5": [5] * 20,
    "60 of 2": [2] * 60,
    "10 of 10": [10] * 10,
    "8 of 25": [25] * 8,
    "20 of 1, 10 of 5": [1] * 20 + [5] * 10,
    "40 of 1, 10 of 2": [1] * 40 + [2] * 10,
}
RESAMPLES = 400


def main() -> None:
    options = parser(__doc__ or "").parse_args()
    trials = 5 if options.tiny else 100 if options.small else 500
    rows, figures = [], {}
    for name, sizes in SIZES.items():
        for shape in ("normal", "scores", "heavy"):
            rng = np.random.default_rng([options.seed, len(sizes), sizes[0]])
            means = 1.0 + rng.random(len(sizes))
            held = np.zeros((trials, 3))
            width = np.zeros((trials, 2))
            for trial in range(trials):
                values, mean = _drawn(rng, np.array(sizes), means, shape)
                seed = generator(options.seed, name, shape, trial)
                [ours] = interval_of_means(
                    torch.from_numpy(values)[:, None],
                    torch.tensor(sizes),
                    resamples=RESAMPLES,
                    rng=seed,
                )
                others = _percentile(values, sizes, rng), _bootstrap_t(values, _joined(sizes), rng)
                for i, (low, high) in enumerate((ours, *others)):
                    held[trial, i] = low is not None and high is not None and low <= mean <= high
                width[trial] = (ours[1] or 0.0) - (ours[0] or 0.0), others[1][1] - others[1][0]
            middle = np.median(width, axis=0)
            rows.append(
                {
                    "classes": name,
                    "values": shape,
                    "held": held[:, 0].mean(),
                    "held, classes of one alone": held[:, 1].mean(),
                    "held, bootstrap-t": held[:, 2].mean(),
                    "width of bootstrap-t": middle[1] / middle[0],
                }
            )
    for shape in ("normal", "scores", "heavy"):
        own = [row["held"] for row in rows if row["values"] == shape]
        figures |= {f"{shape}_least_held": min(own), f"{shape}_most_held": max(own)}
    finish(f"coverage of 95 % intervals, {trials} simulations each", figures, rows, options)


def _drawn(
    rng: np.random.Generator, sizes: NDArray[np.int64], means: Floats, shape: str
) -> tuple[Floats, float]:
    """Return values (N,) of classes side by side, and the mean that they were drawn around."""
    own = np.repeat(means, sizes)
    if shape == "normal":
        return own + rng.normal(size=len(own)), float(own.mean())
    spread = 1.0 if shape == "scores" else 1.5
    scores = np.exp(spread * rng.normal(size=len(own))) * (rng.random(len(own)) < 0.5)
    return own * scores, float(own.mean()) * 0.5 * float(np.exp(spread**2 / 2))


def _joined(sizes: list[int]) -> list[int]:
    """Return sizes with classes of one image, which come first, as one class."""
    alone = sizes.count(1)
    return [alone, *sizes[alone:]] if alone > 1 else sizes


def _resampled(
    sizes: list[int], values: Floats, rng: np.random.Generator
) -> tuple[list[Floats], Floats]:
    """Return the classes' values, and (R, N) draws of them within classes."""
    parts = np.split(values, np.cumsum(sizes)[:-1])
    return parts, np.hstack([rng.choice(part, (RESAMPLES, len(part))) for part in parts])


def _percentile(values: Floats, sizes: list[int], rng: np.random.Generator) -> tuple[float, float]:
    """Return the percentile interval with deviations stretched, where classes of one image never vary."""
    parts = np.split(values, np.cumsum(sizes)[:-1])
    stretched = [
        part.mean() + (part - part.mean()) * (len(part) / max(1, len(part) - 1)) ** 0.5
        for part in parts
    ]
    _, drawn = _resampled(sizes, np.concatenate(stretched), rng)
    low, high = np.quantile(drawn.mean(1), [0.025, 0.975])
    return float(low), float(high)


def _bootstrap_t(values: Floats, sizes: list[int], rng: np.random.Generator) -> tuple[float, float]:
    """Return the bootstrap-t interval (Efron 1982, section 10.10)."""
    _, drawn = _resampled(sizes, values, rng)

    def error(rows: Floats) -> Floats:
        parts = np.split(rows, np.cumsum(sizes)[:-1], axis=1)
        squares = [
            ((part - part.mean(1, keepdims=True)) ** 2).sum(1)
            * part.shape[1]
            / max(1, part.shape[1] - 1)
            for part in parts
        ]
        return np.sqrt(np.sum(squares, axis=0)) / rows.shape[1]

    mean, own, errors = float(values.mean()), float(error(values[None])[0]), error(drawn)
    t = (drawn.mean(1) - mean) / np.where(errors > 0, errors, np.inf)
    low, high = np.quantile(t, [0.025, 0.975])
    return float(mean - high * own), float(mean - low * own)


if __name__ == "__main__":
    main()
