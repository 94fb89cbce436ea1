"""The names, meanings and directions of the measures and columns, and how numbers are written."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

Worse = Literal["higher", "lower", ""]
"""Which way a number means more leakage; "" where it does not say."""

NONE = "\N{EN DASH}"
"""Stands where there is nothing."""


@dataclass(frozen=True)
class Word:
    """What the report calls something, which way is bad, and what it means."""

    name: str
    worse: Worse = ""
    meaning: str = ""


METRICS: dict[str, Word] = {
    "ddcs_best": Word(
        "DDCS, best",
        "higher",
        "Mean over the private images of 1 / distance to the closest reconstruction assigned to "
        "each; an image with none counts 0. A summary: it compares only between runs with the same "
        "private images and embedding.",
    ),
    "ddcs_average": Word(
        "DDCS, average",
        "higher",
        "The same with the mean distance of the assigned reconstructions instead of the closest.",
    ),
    "covered": Word(
        "Covered",
        "higher",
        "Share of the private images that are the nearest of their class to at least one "
        "reconstruction. It says nothing about how near.",
    ),
    "coverage": Word(
        "Coverage",
        "higher",
        "Share of the private images with a reconstruction closer than their own neighbours among "
        "the private images.",
    ),
    "density": Word(
        "Density",
        "higher",
        "How densely private images surround the reconstructions; 1 is as dense as around the "
        "private images themselves.",
    ),
    "precision": Word(
        "Precision",
        "higher",
        "Share of the reconstructions that lie within the spread of their class's private images.",
    ),
    "recall": Word(
        "Recall",
        "higher",
        "Share of the private images that lie within the spread of their class's reconstructions.",
    ),
    "fid": Word(
        "FID",
        "lower",
        "Frechet distance on Inception features: how far the reconstructions as a whole are from "
        "the private images as a whole. It cannot see single images.",
    ),
    "frechet": Word(
        "Frechet distance",
        "lower",
        "How far the reconstructions as a whole are from the private images as a whole, on the "
        "features named here. It cannot see single images.",
    ),
    "kid": Word(
        "Kernel distance",
        "lower",
        "How far the reconstructions as a whole are from the private images as a whole by another "
        "test than the Frechet distance, fairer to small sets; on Inception features it is the KID.",
    ),
    "knn_distance": Word(
        "KNN distance",
        "lower",
        "Mean over the reconstructions of the distance to the nearest private image of the class, "
        "in the evaluator's features.",
    ),
    "accuracy_top1": Word(
        "Accuracy, top 1",
        "higher",
        "Share of the reconstructions that the evaluator takes for the class they were made for. "
        "A typical image of the class is enough: it shows no private image to be recovered.",
    ),
    "accuracy_top5": Word(
        "Accuracy, top 5", "higher", "The same, if the class is among the evaluator's first five."
    ),
    "psnr": Word(
        "PSNR to the nearest",
        "higher",
        "Mean over the private images of the peak signal-to-noise ratio, in dB, of the nearest "
        "reconstruction. It sees pixels, not structure.",
    ),
    "ssim": Word(
        "SSIM to the nearest",
        "higher",
        "Mean over the private images of the structural similarity of the nearest reconstruction.",
    ),
    "dists": Word(
        "DISTS to the nearest",
        "lower",
        "Mean over the private images of the deep structure and texture distance of the nearest "
        "reconstruction.",
    ),
    "flagged": Word(
        "Flagged",
        "higher",
        "Share of the private images that lie nearer to a reconstruction than images of their class "
        "that the target never saw; fdr: the accepted share of false alarms among them.",
    ),
    "leakage_gap": Word(
        "Leakage gap",
        "higher",
        "DDCS of a private image less that of a holdout image of its class, each reconstruction "
        "counted once over both sets. About 0 if nothing leaked; p value: how often it would then be "
        "as large. It says nothing of single images.",
    ),
    "control_gap": Word(
        "Gap to the control",
        "higher",
        "Without a holdout: DDCS of the reconstructions less that of as many samples of the prior that "
        "the target did not guide. What the guidance gained, by what images of a class have in common "
        "and by what single ones leaked together; it cannot tell the two apart.",
    ),
}

COLUMNS: dict[str, Word] = {
    "id": Word("Image"),
    "nearest_distance": Word("Nearest distance", "lower"),
    "label": Word("Class"),
    "ddcs_best": Word("DDCS best", "higher"),
    "ddcs_average": Word("DDCS average", "higher"),
    "reconstructions": Word("Assigned", "higher"),
    "exact_hit": Word("Exact hit", "higher"),
    "p_value": Word("p value", "lower"),
    "q_value": Word("q value", "lower"),
    "flagged": Word("Flagged", "higher"),
    "nearest_reconstruction": Word("Nearest reconstruction"),
    "nearest_set": Word("From"),
    "psnr": Word("PSNR (dB)", "higher"),
    "ssim": Word("SSIM", "higher"),
    "dists": Word("DISTS", "lower"),
    "kind": Word(
        "Kind",
        "",
        "what is particular about the image, a description and no proof: duplicate (one of a group of "
        "near-duplicates), memorised (far from its class in the scoring distance, yet the target is "
        "sure of it), outlier (far from its class there or in the target's features), typical (none "
        "of these)",
    ),
    "twins": Word(
        "Twins",
        "",
        "the first image of the group of near-duplicates it belongs to; DDCS credits one of them, so "
        "that the others may score 0 although they were recovered as well",
    ),
    "loss": Word("Loss", "lower", "the target's cross-entropy on the image, in nats"),
    "margin": Word("Margin", "higher", "logit of the image's class less the largest other one"),
    "entropy": Word("Entropy", "lower", "of the target's prediction, in nats"),
    "gradient_norm": Word(
        "Gradient norm", "lower", "length of the loss's gradient in the target's last layer"
    ),
    "centre_distance": Word(
        "Centre distance", "lower", "to the mean of the class in the target's features"
    ),
    "local_density": Word(
        "Local density",
        "higher",
        "1 / mean distance to the nearest images of the class in the target's features",
    ),
    "forgetting": Word(
        "Forgetting", "lower", "times the target went from right to wrong about it in training"
    ),
}
"""Columns of the ledger in the order they are shown; others of the table follow."""


def metric(key: str) -> Word:
    """The words for a key of ``metrics.json``, also for one that is not known here."""
    return METRICS.get(key) or Word(key)


def column(key: str) -> Word:
    """The words for a column of ``samples.parquet``, also for one that is not known here."""
    return COLUMNS.get(key) or Word(key.replace("_", " "))


def is_missing(value: Any) -> bool:
    """None or NaN: nothing was measured."""
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def number(value: Any) -> str:
    """A number in three significant digits; ``NONE`` where there is none, text as it is."""
    if is_missing(value):
        return NONE
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        return str(value)
    if isinstance(value, int):
        return str(value)
    real = float(value)
    if not math.isfinite(real):
        return "∞" if real > 0 else "-∞"
    size = abs(real)
    if size == 0:
        return "0"
    if size >= 1e7 or size < 1e-4:
        return f"{real:.2e}"
    if size >= 999.5:
        return f"{real:,.0f}"
    return f"{real:.3g}"


def with_interval(value: Any, low: Any, high: Any) -> str:
    """Return 'value [low, high]', or the value alone where a bound is missing."""
    if is_missing(low) or is_missing(high):
        return number(value)
    return f"{number(value)} [{number(low)}, {number(high)}]"


def visible(text: str) -> str:
    """``text`` with what a page or a terminal would obey instead of show written as an escape.

    Names come from files: one may hold a newline, a colour code or a change of reading direction.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def significant(value: float) -> str:
    """A value for sorting, exact enough to tell any two shown ones apart."""
    return f"{value:.9g}"
