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
from inversight.report.formatting import number, percent, visible, with_interval

Level = Literal["leak", "unclear", "none-seen"]
Metrics = Mapping[str, Mapping[str, Any]]

SIGNIFICANCE = 0.05
"""A leakage gap above 0 counts as shown up to this p-value."""

_TAIL = 0.05
"""Share of the holdout images, the nearest ones, that private images are compared with."""


@dataclass(frozen=True)
class Verdict:
    """A headline, and the facts behind it: one sentence or two each.

    level: "leak" (leakage was shown), "none-seen" (this attack showed none) or "unclear".
    """

    level: Level
    sentence: str
    facts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Median:
    """A sample median >= 0 with a distribution-free 95 % interval, None for fewer than 6 values."""

    value: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        return with_interval(vars(self))


def median_interval(values: Sequence[float] | NDArray[np.float64]) -> Median:
    """Return the median of at least one finite value, with its 95 % interval.

    The interval is that of order statistics: the k-th smallest and k-th largest value, k the
    largest with P(Binomial(n, 1/2) < k) <= 0.025. It makes no assumption about the distribution but
    takes the values for independent.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    n = len(ordered)
    k = int((bdtr(np.arange(n), n, 0.5) <= 0.025).sum())
    middle = float(np.median(ordered))
    if k == 0:
        return Median(middle, None, None)
    return Median(middle, float(ordered[k - 1]), float(ordered[n - k]))


def headline(metrics: Metrics) -> Verdict:
    """Return the result of the first test that ``metrics`` (metrics.json) has a value for, without facts."""
    # Exposure of the set belongs first, once an audit measures it.
    for test in (_gap_headline, _flag_headline):
        found = test(metrics)
        if found is not None:
            return found
    reason = next(
        (metrics[k]["reason"] for k in ("leakage_gap", "flagged") if _get(metrics, k, "reason")),
        "no holdout images were compared",
    )
    return Verdict(
        "unclear",
        f"This run has no test of leakage ({reason}): it shows how near the reconstructions came, but "
        "not whether training on the images was the reason.",
    )


def _gap_headline(metrics: Metrics) -> Verdict | None:
    gap, p = _get(metrics, "leakage_gap", "value"), _get(metrics, "leakage_gap", "p_value")
    if gap is None or p is None:
        return None
    numbers = f"leakage gap {number(gap)}, p = {number(p)}"
    if gap > 0 and p <= SIGNIFICANCE:
        return Verdict(
            "leak",
            "The attack recovers something of the private images themselves: as a set they score "
            "higher than holdout images of the same classes, which the target never saw "
            f"({numbers}).",
        )
    flagged = _get(metrics, "flagged", "count")
    more = f" One by one, {flagged} images are flagged." if flagged else ""
    return Verdict(
        "unclear" if flagged else "none-seen",
        f"No leakage of the private images as a set was shown ({numbers}). This does not prove that "
        f"any image is safe.{more}",
    )


def _flag_headline(metrics: Metrics) -> Verdict | None:
    if _get(metrics, "flagged", "value") is None:
        return None
    flagged = metrics["flagged"]
    count, of = flagged["count"], flagged["private_images"]
    rate = f"at a false-discovery rate of {percent(flagged['fdr'])}"
    if count:
        return Verdict(
            "leak",
            f"{count} of {of} private images are flagged {rate}: they lie nearer to the "
            "reconstructions than holdout images of their class, which the target never saw.",
        )
    return Verdict(
        "none-seen",
        f"None of {of} private images is flagged {rate}. This does not prove that any image is safe.",
    )


def summary(metrics: Metrics) -> str:
    """Return the headline and what the flags say, for a terminal."""
    return f"{headline(metrics).sentence}\n\n{_flags(metrics.get('flagged') or {})}"


def _flags(flagged: Mapping[str, Any]) -> str:
    """Return how many images are flagged and the power of the test."""
    if flagged.get("value") is None:
        reason = flagged.get("reason") or "this run did not do it"
        return f"Single images were not tested against the holdout: {reason}."
    return (
        f"{flagged['count']} of {flagged['private_images']} images flagged at a false-discovery rate "
        f"of {percent(flagged['fdr'])}. With {flagged['holdout_images']} holdout images, "
        f"{flagged['smallest_possible']} or more have to stand out together before any is flagged."
    )


def verdict(data: ReportData) -> Verdict:
    """Return the headline of a run and the facts behind it: tests first, descriptions last."""
    samples = data.samples
    images = len(samples)
    nearest = samples["nearest_distance"].to_numpy(dtype=np.float64)
    reached = np.isfinite(nearest)
    first = headline(data.metrics)
    if not reached.any():
        return Verdict(
            first.level,
            f"No private image has a reconstruction of its class. {first.sentence}",
            tuple(_tests(data.metrics)),
        )
    level, sentence, facts = first.level, first.sentence, _tests(data.metrics)
    exact = int(samples["exact_hit"].sum()) if "exact_hit" in samples else 0
    if exact:
        level = "leak"
        closest = visible(str(nearest_first(samples)["id"].iloc[0]))
        sentence += (
            f" {exact} of {images} private images {'was' if exact == 1 else 'were'} reproduced "
            f"exactly, as far as the embedding can tell, among them {closest}."
        )
    holdout = _holdout_distances(data)
    if holdout is None:
        facts += [_no_comparison(data), *_control(data.metrics)]
    else:
        facts += _compared(nearest[reached], holdout)
    facts.append(_closest_three(data))
    if not reached.all():
        facts.append(
            f"{int((~reached).sum())} of {images} private images have no reconstruction of their "
            "class; nothing is known about them."
        )
    facts.append(
        f"{int((samples['ddcs_best'] > 0).sum())} of {images} private images are the nearest of their "
        "class to at least one reconstruction. The others score 0 in DDCS, which does not mean that "
        "they are safe: of two near-identical private images only one gets the reconstruction. Judge "
        "an image by its nearest distance."
    )
    return Verdict(level, sentence, tuple(facts))


def _holdout_distances(data: ReportData) -> NDArray[np.float64] | None:
    if data.holdout_nearest is None or data.embedding == "evaluator":
        return None
    values = np.asarray(data.holdout_nearest, dtype=np.float64)
    values = values[np.isfinite(values)]
    return values if len(values) else None


def _no_comparison(data: ReportData) -> str:
    if data.holdout_nearest is not None and data.embedding == "evaluator":
        return (
            "Private and holdout distances cannot be compared in the evaluator's features, because "
            "the evaluator was trained on the private images and not on the holdout. Use another "
            "embedding."
        )
    if data.holdout_nearest is not None:
        return "No holdout image has a reconstruction of its class, so there is nothing to compare with."
    return (
        "There is no holdout to compare with. Images of the same classes that the target never saw "
        "(--holdout) show how near reconstructions come without any leakage."
    )


def _control(metrics: Metrics) -> list[str]:
    gap = metrics.get("control_gap") or {}
    if gap.get("value") is None:
        return []
    return [
        f"Gap to the control: {with_interval(gap)}, the DDCS of the reconstructions "
        f"({number(gap['attack'])}) minus that of as many samples of the prior that the target did not "
        f"guide ({number(gap['control'])}). It shows what the guidance gained, from class similarity "
        "and from per-image leakage together. It is no evidence that any image leaked, and it has no "
        "p-value."
    ]


def _compared(private: NDArray[np.float64], holdout: NDArray[np.float64]) -> list[str]:
    """Describe the nearest distances of both sets; a description, not a test."""
    found = [
        f"Median nearest distance, with its 95 % interval: private {median_interval(private)} over "
        f"{len(private)} images, holdout {median_interval(holdout)} over {len(holdout)}. This "
        "describes the two sets; it is not a test."
    ]
    if len(holdout) >= 1 / _TAIL:
        bar = float(np.quantile(holdout, _TAIL))
        found.append(
            f"{int((private < bar).sum())} of {len(private)} private images lie nearer than all but "
            f"the nearest {percent(_TAIL)} of the holdout images (distance {number(bar)}); about "
            f"{_TAIL * len(private):.0f} would by chance."
        )
    return found


def _closest_three(data: ReportData) -> str:
    first = nearest_first(data.samples).head(3)
    pairs = zip(first["id"].tolist(), first["nearest_distance"].tolist(), strict=True)
    named = ", ".join(f"{visible(str(name))} ({number(distance)})" for name, distance in pairs)
    return f"Nearest to a reconstruction: {named}."


def _tests(metrics: Metrics) -> list[str]:
    """Say what each test found, with its numbers."""
    flagged, gap = (metrics.get(key) or {} for key in ("flagged", "leakage_gap"))
    found = []
    if gap.get("value") is not None:
        chance = ""
        if gap.get("p_value") is not None:
            chance = (
                f" Without leakage it would be at least as large in {percent(gap['p_value'])} of "
                f"cases (p = {number(gap['p_value'])}); up to {percent(SIGNIFICANCE)} a gap above 0 "
                "counts as shown."
            )
        found.append(
            f"Leakage gap: {with_interval(gap)}, the mean DDCS of private images "
            f"({number(gap['private'])}) minus that of holdout images of the same classes "
            f"({number(gap['holdout'])}); each reconstruction counts for the one image of both sets "
            f"that is nearest.{chance}"
        )
    if flagged.get("value") is None:
        return [*found, f"{_flags(flagged)} No number here is a calibrated risk of a single image."]
    found.append(
        f"{_flags(flagged)} This holds if the holdout images were drawn as the private ones of their "
        "class were. An image that is not flagged was not shown to be safe."
    )
    if flagged.get("not_judged"):
        found.append(
            f"{flagged['not_judged']} images were not tested: their class has no reconstruction or "
            "too few holdout images."
        )
    return found


def _get(metrics: Metrics, key: str, name: str) -> Any:
    return (metrics.get(key) or {}).get(name)
