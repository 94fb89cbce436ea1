"""The verdict: one sentence, and the grounds it stands on. It never says that a target is safe."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from inversight.report.contents import ReportData, most_exposed_first
from inversight.report.words import number, visible

Level = Literal["leak", "unclear", "none-seen"]

_TAIL = 0.05
"""Share of the holdout whose nearest distances serve as a yardstick for single private images."""


@dataclass(frozen=True)
class Verdict:
    """level: leak (the run shows leakage), unclear, none-seen (this attack showed none)."""

    level: Level
    sentence: str
    grounds: tuple[str, ...]


@dataclass(frozen=True)
class Median:
    """A sample median >= 0 with a distribution-free 95 % interval, None for fewer than 6 values."""

    value: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        if self.low is None:
            return number(self.value)
        return f"{number(self.value)} [{number(self.low)}, {number(self.high)}]"


def median_interval(values: Sequence[float] | NDArray[np.float64]) -> Median:
    """The median of at least one finite value, with its 95 % interval.

    The interval is that of order statistics: the k-th smallest and k-th largest value, k the
    largest with P(Binomial(n, 1/2) < k) <= 0.025. It asks nothing of the distribution but takes
    the values for independent.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    n = len(ordered)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    log_pmf = log_factorial[n] - log_factorial - log_factorial[::-1] - n * math.log(2.0)
    k = int((np.cumsum(np.exp(log_pmf)) <= 0.025).sum())
    middle = float(np.median(ordered))
    if k == 0:
        return Median(middle, None, None)
    return Median(middle, float(ordered[k - 1]), float(ordered[n - k]))


def verdict(data: ReportData) -> Verdict:
    """Judge a run by the nearest distances, against the holdout's where there is one."""
    samples = data.samples
    images = len(samples)
    nearest = samples["nearest_distance"].to_numpy(dtype=np.float64)
    finite = np.isfinite(nearest)
    grounds: list[str] = []
    if not finite.any():
        sentence = (
            "No private image has a reconstruction of its class, so this run says nothing about "
            "how exposed the images are."
        )
        return Verdict("unclear", sentence, ())

    covered = int((samples["ddcs_best"] > 0).sum())
    closest = int(np.where(finite, nearest, np.inf).argmin())
    closest_id = visible(str(samples["id"].iloc[closest]))
    grounds.append(_closest_three(data))
    exact = int(samples["exact_hit"].sum()) if "exact_hit" in samples else 0
    if not finite.all():
        grounds.append(
            f"{int((~finite).sum())} of {images} private images have no reconstruction of their "
            "class; nothing is known about them."
        )
    level: Level
    holdout = _usable_holdout(data)
    if holdout is None:
        level = "unclear"
        sentence = (
            f"The reconstructions came nearest to {covered} of {images} private images, closest to "
            f"{closest_id} at a distance of {number(float(nearest[closest]))}; this run cannot "
            "tell whether training made these images more exposed than others of their class."
        )
        grounds.append(_why_no_holdout(data))
        grounds += _control(data)
    else:
        level, sentence, compared = _against(nearest[finite], holdout)
        grounds += compared
    flagged = data.metrics.get("flagged") or {}
    if flagged.get("value"):
        level = "leak"
        sentence = (
            f"{flagged['count']} of {flagged['private_images']} private images are flagged: they lie "
            "nearer to the reconstructions than images of the same classes that the target never saw "
            f"would by chance. On average at most {_percent(flagged['fdr'])} of flags are false alarms."
        )
    if exact:
        level = "leak"
        sentence = (
            f"{exact} of {images} private images {'was' if exact == 1 else 'were'} reproduced "
            f"exactly, as far as the embedding can tell, among them {closest_id}."
        )
    grounds.append(
        f"The nearest of its class to at least one reconstruction: {covered} of {images} private "
        "images. The others score 0 in DDCS, which does not mean that they are safe: of two "
        "near-identical private images only one gets the reconstruction. DDCS is a summary; judge "
        "an image by its nearest distance."
    )
    grounds += _risk(data)
    return Verdict(level, sentence, tuple(grounds))


def _usable_holdout(data: ReportData) -> NDArray[np.float64] | None:
    if data.holdout_nearest is None or data.embedding == "evaluator":
        return None
    values = np.asarray(data.holdout_nearest, dtype=np.float64)
    values = values[np.isfinite(values)]
    return values if len(values) else None


def _why_no_holdout(data: ReportData) -> str:
    if data.holdout_nearest is not None and data.embedding == "evaluator":
        return (
            "The distance is in the features of the evaluator, which was trained on the private "
            "images and not on the holdout, so that the two cannot be compared. Another embedding "
            "can."
        )
    return (
        "There is no holdout to compare with: images of the same classes that the target never saw "
        "(--holdout) would show how near reconstructions come without any leakage."
    )


def _control(data: ReportData) -> list[str]:
    gap = data.metrics.get("control_gap") or {}
    if gap.get("value") is None:
        return []
    bounds = ""
    if gap.get("low") is not None:
        bounds = f" [{number(gap['low'])}, {number(gap['high'])}]"
    return [
        f"Gap to the control: {number(gap['value'])}{bounds}, the DDCS of the reconstructions "
        f"({number(gap['attack'])}) less that of as many samples of the prior that the target did not "
        f"guide ({number(gap['control'])}). It shows what the guidance gained: what images of a class "
        "have in common and what single images leaked, together. It is no evidence that any image "
        "leaked, and has no p value."
    ]


def _against(
    private: NDArray[np.float64],
    holdout: NDArray[np.float64],
) -> tuple[Level, str, list[str]]:
    """Level, sentence and grounds from nearest distances of both sets.

    A nearest distance asks only for the reconstructions, so sets of different size do compare.
    """
    ours, theirs = median_interval(private), median_interval(holdout)
    medians = f"median nearest distance {number(ours.value)} against {number(theirs.value)}"
    level: Level
    if ours.high is None or theirs.low is None or ours.low is None or theirs.high is None:
        level = "unclear"
        sentence = (
            f"There are too few images to compare private with holdout ({medians}; at least 6 of "
            "each are needed), so this run cannot tell whether training exposed the images."
        )
    elif ours.high < theirs.low:
        level = "leak"
        sentence = (
            "The private images lie nearer to the reconstructions than images of the same classes "
            f"that the target never saw ({medians}): the attack recovers something of the training "
            "images themselves."
        )
    elif ours.low > theirs.high:
        level = "none-seen"
        sentence = (
            "The private images lie farther from the reconstructions than images of the same "
            f"classes that the target never saw ({medians}): this attack showed no leakage of the "
            "set as a whole, which does not prove that any image is safe."
        )
    else:
        level = "none-seen"
        sentence = (
            "The private images are not clearly nearer to the reconstructions than images of the "
            f"same classes that the target never saw ({medians}): this attack showed no clear "
            "leakage of the set as a whole, which does not prove that any image is safe."
        )
    grounds = [
        f"Median nearest distance with its 95 % interval: private {ours} over {len(private)} "
        f"images, holdout {theirs} over {len(holdout)}. Smaller is more exposed; the difference "
        "counts as clear where the intervals do not meet. The intervals take images for "
        "independent, which images of one class are only in part, and both sets for drawn alike."
    ]
    if len(holdout) >= 1 / _TAIL:
        bar = float(np.quantile(holdout, _TAIL))
        below = int((private < bar).sum())
        by_chance = _TAIL * len(private)
        grounds.append(
            f"{below} of {len(private)} private images lie nearer than the nearest "
            f"{100 * _TAIL:.0f} % of the holdout (distance {number(bar)}); about "
            f"{by_chance:.0f} would if training made no difference. "
            "Single images can be exposed where the medians agree."
        )
    return level, sentence, grounds


def _closest_three(data: ReportData) -> str:
    first = most_exposed_first(data.samples).head(3)
    pairs = zip(first["id"].tolist(), first["nearest_distance"].tolist(), strict=True)
    named = ", ".join(f"{visible(str(name))} ({number(distance)})" for name, distance in pairs)
    return f"Most exposed by nearest distance: {named}."


def flags(flagged: Mapping[str, Any]) -> str:
    """What ``flagged`` of ``metrics.json`` says, in a sentence or two, with the power it had."""
    if flagged.get("value") is None:
        reason = flagged.get("reason") or "this run has not done that"
        return f"No image was judged by itself against the holdout: {reason}."
    return (
        f"{flagged['count']} of {flagged['private_images']} images flagged at a false-discovery rate "
        f"of {_percent(flagged['fdr'])}. With {flagged['holdout_images']} holdout images none is "
        f"flagged unless {flagged['smallest_possible']} or more stand out together."
    )


def _risk(data: ReportData) -> list[str]:
    flagged = data.metrics.get("flagged") or {}
    gap = data.metrics.get("leakage_gap") or {}
    found = []
    if gap.get("value") is not None:
        bounds = ""
        if gap.get("low") is not None:
            bounds = f" [{number(gap['low'])}, {number(gap['high'])}]"
        chance = ""
        if gap.get("p_value") is not None:
            chance = (
                f" Without leakage it would be as large in {_percent(gap['p_value'])} of cases."
            )
        found.append(
            f"Leakage gap: {number(gap['value'])}{bounds}, the DDCS of a private image "
            f"({number(gap['private'])}) less that of a holdout image of its class "
            f"({number(gap['holdout'])}), where each reconstruction counts for one image of both "
            f"sets.{chance}"
        )
    if flagged.get("value") is None:
        return [
            *found,
            f"{flags(flagged)} No number here is a calibrated risk of a single image.",
        ]
    found.append(
        f"{flags(flagged)} That holds if the holdout images were drawn as the private ones of their "
        "class were. An image that is not flagged was not shown to be safe."
    )
    if flagged.get("not_judged"):
        found.append(
            f"{flagged['not_judged']} images were not judged: their class has no reconstruction or "
            "too few holdout images."
        )
    return found


def _percent(share: float) -> str:
    return f"{round(100.0 * share, 2) or 100.0 * share:g} %"
