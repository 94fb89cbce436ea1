"""What the measures of a defence mean, which way each is better, and how a change reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from inversight.report import words
from inversight.report.words import Word, Worse

Reading = Literal["better", "worse", "higher", "lower", "not clear", "no interval", ""]
"""A change in one word. higher, lower: clear, but neither good nor bad in itself."""

RATIOS = ("distance", "distance_protected", "distance_others")
"""Measures whose change is a ratio to the undefended target (1: none), not a difference."""

MEASURES: dict[str, Word] = {
    "holdout_accuracy": Word(
        "Accuracy on holdout",
        "lower",
        "Share of images that the target never saw which it puts in their class: what the defence "
        "leaves of the target's use.",
    ),
    "private_accuracy": Word(
        "Accuracy on private",
        "",
        "Share of its training images that the target puts in their class. Far above the accuracy "
        "on holdout, it has learned single images by heart.",
    ),
    "leakage_gap": Word(
        "Leakage gap",
        "higher",
        "DDCS of a private image less that of a holdout image of its class, each reconstruction "
        "counted once over both sets. About 0 if nothing leaked. It says nothing of single images.",
    ),
    "flagged": Word(
        "Flagged",
        "higher",
        "Share of the private images that lie nearer to a reconstruction than images of their class "
        "that the target never saw.",
    ),
    "distance": Word(
        "Nearest distance",
        "lower",
        "Geometric mean over the private images of the distance to the nearest reconstruction. "
        "Its change is a ratio: 2 is twice as far, 1 no change.",
    ),
    "distance_protected": Word(
        "Nearest distance, protected",
        "lower",
        "The same over the images that the defence was asked to protect.",
    ),
    "distance_others": Word(
        "Nearest distance, others",
        "lower",
        "The same over the other private images. A ratio below 1: exposure has moved to them.",
    ),
    "ddcs_best": words.METRICS["ddcs_best"],
    "ddcs_average": words.METRICS["ddcs_average"],
    "covered": words.METRICS["covered"],
    "coverage": words.METRICS["coverage"],
    "accuracy_top1": Word(
        "Attack accuracy, top 1",
        "higher",
        "Share of the reconstructions that the evaluator takes for the class they were made for.",
    ),
}
"""In the order they are shown."""

UTILITY: tuple[str, ...] = ("holdout_accuracy", "private_accuracy")
"""Measures of the target's use; all others are of what leaks."""

LEVELS = {
    "none": "nothing",
    "sample": "training images",
    "model": "training of the target",
    "output": "outputs of the target",
}
"""What a defence changes."""

COLUMNS: dict[str, Word] = {
    "defence": Word("Defence"),
    "id": Word("Image"),
    "label": Word("Class"),
    "why": Word("Why listed"),
    "ratio": Word("Ratio", "lower"),
    "nearest_distance_before": Word("Before", "lower"),
    "nearest_distance": Word("After", "lower"),
    "flagged_before": Word("Flagged before", "higher"),
    "flagged_after": Word("Flagged after", "higher"),
    "protected": Word("Protected"),
}
"""Columns of the tables of images, in the order they are shown."""


def measure(key: str) -> Word:
    """The words for a measure, also for one that is not known here."""
    return MEASURES.get(key) or Word(key.replace("_", " "))


def column(key: str) -> Word:
    """The words for a column of the tables of images."""
    return COLUMNS.get(key) or Word(key.replace("_", " "))


def good(key: str) -> str:
    """'higher is better', 'lower is better' or "": which way a measure is wanted."""
    worse = measure(key).worse
    return {"higher": "lower is better", "lower": "higher is better"}.get(worse, "")


def value(found: Mapping[str, Any] | None) -> float | None:
    """The mean over seeds; None where there is none."""
    mean = None if found is None else found.get("mean")
    return None if words.is_missing(mean) else float(mean)  # type: ignore[arg-type]


def interval(found: Mapping[str, Any] | None) -> tuple[float, float] | None:
    """The 95 % interval over seeds; None where there is none."""
    low, high = (None if found is None else found.get(name) for name in ("low", "high"))
    if words.is_missing(low) or words.is_missing(high):
        return None
    return float(low), float(high)  # type: ignore[arg-type]


def reading(key: str, change: Mapping[str, Any] | None) -> Reading:
    """A change in one word: clear only where its interval leaves out "no change"."""
    if value(change) is None:
        return ""
    bounds = interval(change)
    if bounds is None:
        return "no interval"
    none = 1.0 if key in RATIOS else 0.0
    low, high = bounds
    if low <= none <= high:
        return "not clear"
    moved: Worse = "higher" if low > none else "lower"
    worse = measure(key).worse
    if not worse:
        return moved
    return "worse" if moved == worse else "better"


def shown(key: str, change: Mapping[str, Any] | None) -> str:
    """A change as a signed difference, or as '× ratio'; ``words.NONE`` where there is none."""
    mean = value(change)
    if mean is None:
        return words.NONE
    if key in RATIOS:
        return f"\N{MULTIPLICATION SIGN} {words.number(mean)}"
    return f"+{words.number(mean)}" if mean > 0 else words.number(mean)


def bounds(found: Mapping[str, Any] | None) -> str:
    """'0.1 to 0.3', or "" without an interval."""
    both = interval(found)
    return "" if both is None else f"{words.number(both[0])} to {words.number(both[1])}"
