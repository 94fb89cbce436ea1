"""The verdict on a run: a headline, and the facts behind it. It never calls a target safe.

The first test that the run has decides the headline, in a fixed order that does not depend on the
results: exposure of the set, the distance gap (the leakage gap in runs of earlier versions, which have no
distance gap), then the flags of single images. The other tests are listed below it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr

from inversight.report.contents import ReportData, nearest_first, worst_first
from inversight.report.formatting import finite, get_interval, get_number, mapping
from inversight.report.templating import render_lines

Level = Literal["leak", "unclear", "none-seen"]
Metrics = Mapping[str, Mapping[str, Any]]

SIGNIFICANCE = 0.05
"""An exposure above 1 or a gap above 0 counts as shown up to this p-value."""

COMPARABLE_SIZES = (0.8, 1.25)
"""Ratios of the images a shadow model was trained on to those of the target, without a warning."""

_TAIL = 0.05
"""Fraction of the holdout images, the nearest ones, whose distance private images are compared with."""


_ANSWERS = {"leak": "leakage shown", "none-seen": "no leakage shown", "unclear": "unclear"}


@dataclass(frozen=True)
class Verdict:
    """A headline, and the facts behind it: one sentence or two each.

    level: "leak" (leakage was shown), "none-seen" (this attack showed none) or "unclear". tested: whether
    the run has a test.
    """

    level: Level
    sentence: str
    facts: tuple[str, ...] = ()
    tested: bool = True

    @property
    def answer(self) -> str:
        """Return the verdict in a few words."""
        return _ANSWERS[self.level] if self.tested or self.level == "leak" else "not tested"


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


@dataclass(frozen=True)
class Tests:
    """The tests of metrics.json, each an empty mapping where a run has none."""

    mean: Mapping[str, Any]
    exposed: Mapping[str, Any]
    nearer: Mapping[str, Any]
    gap: Mapping[str, Any]
    flagged: Mapping[str, Any]

    @classmethod
    def of(cls, metrics: Metrics) -> Tests:
        """Return the tests in ``metrics``."""
        names = ("exposure_mean", "exposed", "distance_gap", "leakage_gap", "flagged")
        return cls(*(mapping(metrics.get(name)) for name in names))

    @property
    def has_exposure(self) -> bool:
        """Whether exposure of the set was tested."""
        return _is_tested(self.mean)

    @property
    def of_holdout(self) -> tuple[str, Mapping[str, Any]] | None:
        """Return the name and the numbers of the gap to the holdout that decides, if the run tested one."""
        gaps = (("distance gap", self.nearer), ("leakage gap", self.gap))
        return next((one for one in gaps if _is_tested(one[1])), None)


def headline(metrics: Metrics) -> Verdict:
    """Return the result of the first test that ``metrics`` (metrics.json) has a value for, without facts."""
    tests = Tests.of(metrics)
    test: Literal["exposure", "gap", "flags", "none"]
    level: Level
    if tests.has_exposure:
        test, level = "exposure", _level(tests.mean, 1.0, tests.exposed)
    elif tests.of_holdout is not None:
        test, level = "gap", _level(tests.of_holdout[1], 0.0, tests.flagged)
    elif tests.flagged.get("value") is not None:
        test, level = "flags", "leak" if tests.flagged["count"] else "none-seen"
    else:
        test, level = "none", "unclear"
    [sentence] = render_lines(
        "headline.txt", test=test, level=level, decides=tests.of_holdout, **vars(tests)
    )
    return Verdict(level, sentence, tested=test != "none")


def _is_tested(found: Mapping[str, Any]) -> bool:
    return get_number(found, "value") is not None and get_number(found, "p_value") is not None


def _level(of_set: Mapping[str, Any], none: float, of_images: Mapping[str, Any]) -> Level:
    """Return what the test of a set says. none: its value without an effect. of_images: that of images."""
    if of_set["value"] > none and of_set["p_value"] <= SIGNIFICANCE:
        return "leak"
    return "unclear" if of_images.get("count") else "none-seen"


def summary(metrics: Metrics) -> str:
    """Return the headline and what the tests of single images say, for a terminal."""
    tests = Tests.of(metrics)
    names = ["exposed.txt", "flags.txt"] if tests.has_exposure else ["flags.txt"]
    lines = [line for name in names for line in render_lines(name, **vars(tests))]
    return "\n\n".join([headline(metrics).sentence, *lines])


def verdict(data: ReportData) -> Verdict:
    """Return the headline of a run and the facts behind it: tests first, descriptions last."""
    samples = nearest_first(data.samples)
    first = headline(data.metrics)
    tests = Tests.of(data.metrics)
    reached = finite(samples["nearest_distance"])
    # The evaluator has seen the private images and not the holdout.
    unseen = finite(() if data.embedding == "evaluator" else data.holdout_nearest)
    exact = int(samples["exact_hit"].sum()) if len(reached) and "exact_hit" in samples else 0
    bar = float(np.quantile(unseen, _TAIL)) if len(unseen) >= 1 / _TAIL else None
    sentence, *facts = render_lines(
        "verdict.txt",
        data=data,
        headline=first.sentence,
        **vars(tests),
        **_of_shadows(data),
        exposure=tests.has_exposure,
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
    return Verdict("leak" if exact else first.level, sentence, tuple(facts), first.tested)


def _shown_without_interval(metrics: Metrics) -> bool:
    """Return whether exposure of the set is shown although its interval contains 1, or the reverse."""
    mean = Tests.of(metrics).mean
    bounds = get_interval(mean)
    if bounds is None or not _is_tested(mean):
        return False
    return (_level(mean, 1.0, {}) == "leak") != (bounds[0] > 1.0)


def _of_shadows(data: ReportData) -> dict[str, Any]:
    """Return what the facts say of the shadow models and of the most exposed images."""
    sizes = [get_number(data.shadows, name) for name in ("train_images", "target_images")]
    ratio = sizes[0] / sizes[1] if sizes[0] is not None and sizes[1] else None
    exposed = worst_first(data.samples)
    if "exposed" in exposed:
        exposed = exposed[exposed["exposed"].fillna(False).astype(bool)]
    looks = data.shadows.get("looks")
    return {
        "shadows": data.shadows,
        "given": data.settings.get("target") is not None,
        "apart": _shown_without_interval(data.metrics),
        "looks": len(looks) if isinstance(looks, list) else looks or 1,
        "ratio": ratio,
        "smallest_ratio": COMPARABLE_SIZES[0],
        "largest_ratio": COMPARABLE_SIZES[1],
        "most_exposed": exposed.head(3).to_dict("records") if "exposed" in exposed else [],
    }
