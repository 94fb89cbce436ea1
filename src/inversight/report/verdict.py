"""The verdict on a run: a headline, and the facts behind it. It never calls a target safe.

The first test that the run has decides the headline, in a fixed order that does not depend on the
results: the leakage gap, then the flags of single images. The other tests are listed below it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr

from inversight.report.contents import ReportData, nearest_first
from inversight.report.formatting import finite, get_number, mapping
from inversight.report.templating import render_lines

Level = Literal["leak", "unclear", "none-seen"]
Metrics = Mapping[str, Mapping[str, Any]]

SIGNIFICANCE = 0.05
"""A leakage gap above 0 counts as shown up to this p-value."""

_TAIL = 0.05
"""Fraction of the holdout images, the nearest ones, whose distance private images are compared with."""


@dataclass(frozen=True)
class Verdict:
    """A headline, and the facts behind it: one sentence or two each.

    level: "leak" (leakage was shown), "none-seen" (this attack showed none) or "unclear".
    """

    level: Level
    sentence: str
    facts: tuple[str, ...] = ()


def median_interval(values: Sequence[float] | NDArray[np.float64]) -> dict[str, float | None]:
    """Return the median of at least one finite value and its 95 % interval as value, low and high.

    The interval is that of order statistics: the k-th smallest and k-th largest value, k the
    largest with P(Binomial(n, 1/2) < k) <= 0.025. It makes no assumption about the distribution but
    takes the values for independent. low and high are None for fewer than 6 values.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    n = len(ordered)
    k = int((bdtr(np.arange(n), n, 0.5) <= 0.025).sum())
    low, high = (float(ordered[k - 1]), float(ordered[n - k])) if k else (None, None)
    return {"value": float(np.median(ordered)), "low": low, "high": high}


def headline(metrics: Metrics) -> Verdict:
    """Return the result of the first test that ``metrics`` (metrics.json) has a value for, without facts."""
    gap, flagged = _tests(metrics)
    value, p = get_number(gap, "value"), get_number(gap, "p_value")
    test: Literal["gap", "flags", "none"]
    level: Level
    # Exposure of the set belongs first, once an audit measures it.
    if value is not None and p is not None:
        shown = value > 0 and p <= SIGNIFICANCE
        test, level = "gap", "leak" if shown else "unclear" if flagged.get("count") else "none-seen"
    elif flagged.get("value") is not None:
        test, level = "flags", "leak" if flagged["count"] else "none-seen"
    else:
        test, level = "none", "unclear"
    [sentence] = render_lines("headline.txt", test=test, level=level, gap=gap, flagged=flagged)
    return Verdict(level, sentence)


def summary(metrics: Metrics) -> str:
    """Return the headline and what the flags say, for a terminal."""
    [flags] = render_lines("flags.txt", flagged=_tests(metrics)[1])
    return f"{headline(metrics).sentence}\n\n{flags}"


def verdict(data: ReportData) -> Verdict:
    """Return the headline of a run and the facts behind it: tests first, descriptions last."""
    samples = nearest_first(data.samples)
    first = headline(data.metrics)
    gap, flagged = _tests(data.metrics)
    reached = finite(samples["nearest_distance"])
    # The evaluator has seen the private images and not the holdout.
    unseen = finite(() if data.embedding == "evaluator" else data.holdout_nearest)
    exact = int(samples["exact_hit"].sum()) if len(reached) and "exact_hit" in samples else 0
    bar = float(np.quantile(unseen, _TAIL)) if len(unseen) >= 1 / _TAIL else None
    sentence, *facts = render_lines(
        "verdict.txt",
        data=data,
        headline=first.sentence,
        gap=gap,
        flagged=flagged,
        control=mapping(data.metrics.get("control_gap")),
        significance=SIGNIFICANCE,
        images=len(samples),
        exact=exact,
        nearest=samples.head(3).to_dict("records"),
        covered=int((samples["ddcs_best"] > 0).sum()),
        reached=len(reached),
        unseen=len(unseen),
        median=median_interval(reached) if len(reached) else None,
        unseen_median=median_interval(unseen) if len(unseen) else None,
        tail=_TAIL,
        bar=bar,
        below=None if bar is None else int((reached < bar).sum()),
    )
    return Verdict("leak" if exact else first.level, sentence, tuple(facts))


def _tests(metrics: Metrics) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the leakage gap and the flags, empty where a run has none."""
    return mapping(metrics.get("leakage_gap")), mapping(metrics.get("flagged"))
