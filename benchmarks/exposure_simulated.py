"""Which test of an image's exposure holds its rate, and which sees most? Simulated distances, exact truth.

uv run python benchmarks/exposure_simulated.py            8 to 48 models, 200 simulations of each row
uv run python benchmarks/exposure_simulated.py --small    8 models, 40

Log distances of 200 images in K shadow models (pairs of complementary halves) are simulated with the spread
of the digits: 0.18 between models, of which a part is common to images of a class. All tests see the same
differences; BH at 10 % over the 100 private images unless said otherwise.

null       no effects: the share of simulations with any flag
affected   some images have an effect, or classmates of either sign act on an image: the mean share of
           false alarms among the flagged (images without an effect of their own)
digits     effects of mean 0.063 and standard deviation 0.06: the share of private images flagged
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import t as student

from common import finish, parser
from inversight.risk.calibration import benjamini_hochberg
from inversight.risk.design import StratifiedHalves
from inversight.risk.moderation import moderate

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

RATE = 0.1
NOISE = 0.18
SIZES = {"10 x 20": [20] * 10, "ragged": [4, 5, 6, 7, 8, 10, 20, 30, 40, 70], "40 x 5": [5] * 40}
REDRAWS = 60


def main() -> None:
    options = parser(__doc__ or "").parse_args()
    times = 4 if options.tiny else 40 if options.small else 200
    counts = (8,) if options.small else (8, 16, 24, 48)
    rows: list[dict[str, Any]] = []
    for models in counts:
        for name, setting in _settings().items():
            kind = name.partition(":")[0]
            if kind != "digits" and models in (16, 48):
                continue
            repeats = times if kind != "digits" else max(4, times // 4)
            found = [_simulate(seed, models, **setting) for seed in range(repeats)]
            row: dict[str, Any] = {"models": models, "setting": name}
            for method in METHODS:
                values = [_outcome(kind, one[method], one["effect"]) for one in found]
                row[method] = float(np.mean(values))
            rows.append(row)
    figures = {}
    for method in METHODS:
        for kind in ("null", "affected"):
            values = [r[method] for r in rows if r["setting"].startswith(kind)]
            figures[f"most_{kind}_{method.replace(' ', '_')}"] = max(values)
        values = [r[method] for r in rows if r["setting"].startswith("digits")]
        figures[f"flagged_{method.replace(' ', '_')}"] = values
    finish(f"exposure, {times} simulations a row, models {counts}", figures, rows, options)


def _settings() -> dict[str, dict[str, Any]]:
    few = {"share": 0.1, "size": 0.25}
    half = {"share": 0.5, "size": 0.25}
    return {
        "null: normal": {},
        "null: heavy tails": {"noise": "heavy"},
        "null: skewed": {"noise": "skewed"},
        "null: dependent images": {"common": 0.7},
        "null: ragged classes": {"sizes": "ragged"},
        "null: classes of 5, heavy tails": {"sizes": "40 x 5", "noise": "heavy"},
        "affected: a tenth": few,
        "affected: half": half,
        "affected: half of each class of 5": {"sizes": "40 x 5", **half},
        "affected: a tenth, heavy tails": {"noise": "heavy", **few},
        "affected: a tenth, skewed": {"noise": "skewed", **few},
        "affected: a tenth, and by classmates": {"between": 0.03, **few},
        "affected: a tenth, dependent, ragged": {"common": 0.7, "sizes": "ragged", **few},
        "digits: normal": {"spread": True},
        "digits: heavy tails": {"spread": True, "noise": "heavy"},
    }


def _simulate(
    seed: int,
    models: int,
    *,
    sizes: str = "10 x 20",
    noise: str = "normal",
    common: float = 0.3,
    between: float = 0.0,
    share: float = 0.0,
    size: float = 0.0,
    spread: bool = False,
) -> dict[str, Any]:
    """Return which private images (100) each method flags, and their effects."""
    rng = np.random.default_rng([seed, models])
    label = np.repeat(np.arange(len(SIZES[sizes])), SIZES[sizes])
    n, pairs = len(label), models // 2
    same = label[:, None] == label
    halves = StratifiedHalves(torch.from_numpy(label))
    inside = halves.draw(rng, pairs)
    effect = np.where(rng.random(n) < share, size, 0.0)
    if spread:
        effect = rng.gamma((0.063 / 0.06) ** 2, 0.06**2 / 0.063, size=n)
    others = between * rng.normal(size=(n, n)) * same * (1 - np.eye(n))
    loadings = rng.normal(size=(3, n))
    # What all images of a class have in common goes by centring; loadings do not.
    factors = rng.normal(size=(2 * pairs, len(SIZES[sizes]), 3))
    shared = (factors[:, label] * loadings.T).sum(2) / 3**0.5
    draw = {
        "normal": lambda: rng.normal(size=shared.shape),
        "heavy": lambda: rng.standard_t(4, size=shared.shape) / 2**0.5,
        "skewed": lambda: -np.log(rng.gamma(2.0, size=shared.shape)) / 0.8,
    }[noise]
    scale = NOISE * np.exp(0.3 * rng.normal(size=n))
    values = scale * (common**0.5 * shared + (1 - common) ** 0.5 * draw())
    member = np.empty((2 * pairs, n))
    member[0::2], member[1::2] = inside, ~inside
    values += member @ others - effect * member
    for c in range(len(SIZES[sizes])):
        values[:, label == c] -= values[:, label == c].mean(1, keepdims=True)
    raw = values[0::2] - values[1::2]
    private = rng.permutation(n) < n // 2
    sign = 1.0 - 2.0 * halves.draw(rng, REDRAWS * pairs).reshape(REDRAWS, pairs, n)
    problem = Problem(np.where(inside, -raw, raw), raw, sign, private)
    found: dict[str, Any] = {name: method(problem) for name, method in METHODS.items()}
    return {**found, "effect": effect[private]}


class Problem:
    """Differences (P, N) of pairs, unsigned ones, signs of redraws (R, P, N), private images (N,)."""

    def __init__(self, differences: Floats, raw: Floats, sign: Floats, private: Bools) -> None:
        self.differences, self.raw, self.sign, self.private = differences, raw, sign, private

    @functools.cached_property
    def moderated(self) -> tuple[Floats, Floats]:
        """Moderated t (N,) and its degrees of freedom."""
        return _moderated(self.differences.mean(0), self.raw)

    @functools.cached_property
    def redrawn(self) -> Floats:
        """Moderated t (R, N) of all redraws."""
        means = (self.sign * self.raw).mean(1)
        return np.stack([_moderated(mean, self.raw)[0] for mean in means])

    @functools.cached_property
    def p(self) -> Floats:
        """p-values of the moderated t of private images."""
        value, freedom = self.moderated
        return np.asarray(student.sf(value, np.minimum(freedom, 1e12))[self.private])


def _moderated(mean: Floats, raw: Floats) -> tuple[Floats, Floats]:
    # Signs leave the sum of squares as it is.
    pairs = len(raw)
    variance = ((raw**2).sum(0) - pairs * mean**2) / (pairs - 1)
    joined = moderate(variance, np.full(len(mean), pairs - 1.0))
    return mean / np.sqrt(joined.variance / pairs), joined.freedom


def _bh(p: Floats) -> Bools:
    found: Bools = (benjamini_hochberg(torch.from_numpy(np.asarray(p))) <= RATE).numpy()
    return found


def _own_variance(problem: Problem) -> Bools:
    d = problem.differences
    value = d.mean(0) / (d.std(0, ddof=1) / len(d) ** 0.5)
    return _bh(student.sf(value, len(d) - 1)[problem.private])


def _one_variance(problem: Problem) -> Bools:
    d = problem.differences
    value = d.mean(0) / (d.var(0, ddof=1).mean() / len(d)) ** 0.5
    return _bh(student.sf(value, 1e12)[problem.private])


def _flips(problem: Problem) -> Bools:
    d = problem.differences[:, problem.private]
    if len(d) <= 12:
        codes = np.arange(2 ** len(d))[:, None] >> np.arange(len(d)) & 1
        sums = (1.0 - 2.0 * codes) @ d
        return _bh((sums >= d.sum(0) - 1e-12).mean(0))
    signs = 1.0 - 2.0 * np.random.default_rng(0).integers(0, 2, size=(4095, len(d)))
    return _bh((1 + (signs @ d >= d.sum(0)).sum(0)) / 4096)


def _pooled(problem: Problem) -> Bools:
    """Where the moderated t lies among those of all images in all redraws."""
    null = np.sort(problem.redrawn[:, problem.private].ravel())
    value = problem.moderated[0][problem.private]
    return _bh((1 + len(null) - np.searchsorted(null, value)) / (1 + len(null)))


def _by(problem: Problem) -> Bools:
    m = len(problem.p)
    return _bh(np.minimum(1.0, problem.p * (1.0 / np.arange(1, m + 1)).sum()))


def _step_down(problem: Problem) -> Bools:
    """Westfall and Young's step-down on the largest t: any false alarm in at most 10 %."""
    value = problem.moderated[0][problem.private]
    null = problem.redrawn[:, problem.private]
    order = value.argsort()
    largest = np.maximum.accumulate(null[:, order], axis=1)
    p = (1 + (largest >= value[order]).sum(0)) / (1 + len(null))
    flagged = np.zeros(len(value), dtype=bool)
    flagged[order] = np.maximum.accumulate(p[::-1])[::-1] <= RATE
    return flagged


METHODS: dict[str, Callable[[Problem], Bools]] = {
    "moderated t": lambda problem: _bh(problem.p),
    "own variance": _own_variance,
    "one variance": _one_variance,
    "sign flips": _flips,
    "redraws": _pooled,
    "moderated t BY": _by,
    "step-down": _step_down,
}


def _outcome(kind: str, flagged: Bools, effect: Floats) -> float:
    if kind == "null":
        return float(flagged.any())
    if kind == "affected":
        return float((flagged & (effect == 0)).sum() / max(1, flagged.sum()))
    return float(flagged.mean())


if __name__ == "__main__":
    main()
