"""The parts of benchmarks/controls.py that train nothing: audits without a leak, and planted leaks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inversight.core.seeding import generator
from inversight.data import ImageSet, load_digits
from inversight.risk import (
    benjamini_hochberg,
    calibrate,
    distance_gap,
    leakage_gap,
    leakage_gap_of,
)
from inversight.scores import Assignment, ddcs

Floats = NDArray[np.float64]

RATE = 0.1
SHAPES = ("normal", "skewed", "heavy")
SETTINGS = ((20, 5, 5), (10, 10, 10), (10, 20, 20), (10, 50, 50), (10, 50, 5), (50, 5, 5))
"""(classes, holdout images a class, private images a class)"""

BURSTS = (
    (10, (10, 5), (10, 5), 0.02),
    (10, (20, 5), (20, 5), 0.02),
    (10, (10, 5), (2, 5), 0.02),
    (10, (50, 5), (5, 5), 0.02),
    (10, (50, 5), (5, 1), 0.02),
    (10, (50, 5), (5, 1), 0.9),
    (10, (50, 1), (5, 5), 0.9),
)
"""(classes, holdout units and images of a unit, the same of private images, share of a class's variance
within units). 0.02: near-copies, as frames of one film; 0.9: images as unlike as a class's."""

PRIVATE, HOLDOUT, OTHERS = 40, 80, 40
"""Number of digits of each class: private, holdout, and third images used as reconstructions."""


def null_rows(seeds: int) -> list[dict[str, Any]]:
    """Return the share of audits without a leak that have a flag: ours, and with naive standardisation.

    Classes differ in level and spread of their distances.
    """
    rows = []
    for classes, holdout, private in SETTINGS:
        for shape in SHAPES:
            ours = naive = 0
            for seed in range(seeds):
                x, y = _null(seed, classes, private, holdout, shape)
                labels = [np.repeat(np.arange(classes), n) for n in (private, holdout)]
                found = calibrate((x.ravel(), labels[0]), (y.ravel(), labels[1]), fdr=RATE)
                ours += bool(found.per_sample["flagged"].any())
                naive += _naive(np.log(x), np.log(y))
            rows.append(
                {
                    "control": "null",
                    "classes": classes,
                    "holdout a class": holdout,
                    "private a class": private,
                    "setting": shape,
                    "flagged": ours / seeds,
                    "flagged, same images": naive / seeds,
                }
            )
    return rows


def _null(seed: int, classes: int, private: int, holdout: int, shape: str) -> tuple[Floats, Floats]:
    rng = np.random.default_rng([seed, classes, holdout])
    place = rng.normal(size=(classes, 1))
    spread = 0.3 * np.exp(0.5 * rng.normal(size=(classes, 1)))

    def draw(n: int) -> Floats:
        if shape == "normal":
            noise = rng.normal(size=(classes, n))
        elif shape == "skewed":
            noise = np.log(rng.gamma(2.0, size=(classes, n)))
        else:
            noise = rng.standard_t(3, size=(classes, n))
        return np.exp(place + spread * noise)

    return draw(private), draw(holdout)


def _naive(private: Floats, holdout: Floats) -> bool:
    """Return whether an audit has flags if holdout images are standardised by themselves among others."""
    centre, scale = holdout.mean(1, keepdims=True), holdout.std(1, ddof=1, keepdims=True)
    pool = np.sort(((holdout - centre) / scale).ravel())
    nearer = np.searchsorted(pool, ((private - centre) / scale).ravel(), side="right")
    p = torch.from_numpy((1 + nearer) / (len(pool) + 1))
    return bool((benjamini_hochberg(p) <= RATE).any())


def burst_rows(seeds: int) -> list[dict[str, Any]]:
    """Return the share of audits without a leak that have a flag, where images come in bursts.

    With each image alone, with those of a burst as one unit, and with the mean or the nearest of a burst
    in place of its images. Then the recall of images of private bursts of
    which a tenth leaked, and the false alarms among the flagged images.
    """
    rows = []
    for classes, holdout, private, within in BURSTS:
        flagged = dict.fromkeys(("alone", "units", "means", "nearest"), 0)
        recall, wrong = [], []
        for seed in range(seeds):
            rng = np.random.default_rng([seed, classes, *holdout, *private])
            sets, units = _bursts(rng, classes, (private, holdout), within)
            sizes = private[1], holdout[1]
            means, nearest = (
                [
                    (np.exp(of(np.log(near).reshape(-1, n), axis=1)), labels[::n])
                    for (near, labels), n in zip(sets, sizes, strict=True)
                ]
                for of in (np.mean, np.min)
            )
            for name, one, given in (
                ("alone", sets, None),
                ("units", sets, units),
                ("means", means, None),
                ("nearest", nearest, None),
            ):
                found = calibrate(*one, units=given, fdr=RATE).per_sample["flagged"]
                flagged[name] += bool(found.any())
            (near, labels), unseen = sets
            leaked = rng.random(classes * private[0])[units[0].numpy()] < 0.1
            near = np.where(leaked, 1e-3 * near, near)
            found = calibrate((near, labels), unseen, units=units, fdr=RATE).per_sample["flagged"]
            flags = found.numpy()
            recall.append((flags & leaked).sum() / max(1, leaked.sum()))
            wrong.append((flags & ~leaked).sum() / max(1, flags.sum()))
        rows.append(
            {
                "control": "bursts",
                "classes": classes,
                "holdout a class": f"{holdout[0]} x {holdout[1]}",
                "private a class": f"{private[0]} x {private[1]}",
                "setting": f"{within:.0%} of variance within units",
                "flagged, images alone": flagged["alone"] / seeds,
                "flagged": flagged["units"] / seeds,
                "flagged, means": flagged["means"] / seeds,
                "flagged, nearest": flagged["nearest"] / seeds,
                "recall": float(np.mean(recall)),
                "fdp": float(np.mean(wrong)),
            }
        )
    return rows


def _bursts(
    rng: np.random.Generator, classes: int, sizes: tuple[tuple[int, int], ...], within: float
) -> tuple[list[tuple[Floats, NDArray[np.int64]]], tuple[Tensor, Tensor]]:
    """Return distances and labels of private images and holdout, and their units.

    ``sizes``: of either side, units of a class and images of a unit.
    """
    place = rng.normal(size=(classes, 1, 1))
    spread = 0.3 * np.exp(0.5 * rng.normal(size=(classes, 1, 1)))
    sets, units = [], []
    for count, each in sizes:
        noise = within**0.5 * rng.normal(size=(classes, count, each))
        noise += (1.0 - within) ** 0.5 * rng.normal(size=(classes, count, 1))
        near = np.exp(place + spread * noise).ravel()
        sets.append((near, np.repeat(np.arange(classes), count * each)))
        units.append(torch.arange(classes * count).repeat_interleave(each))
    return sets, (units[0], units[1])


def burst_gap_rows(seeds: int) -> list[dict[str, Any]]:
    """Return how often the gap's interval holds 0, and p <= 0.05, without leakage and with bursts of five."""
    classes, count, each, width = 10, 5, 5, 16
    held, small = {"alone": 0, "units": 0}, {"alone": 0, "units": 0}
    units = torch.arange(classes * count).repeat_interleave(each)
    for seed in range(seeds):
        rng = generator(seed, "gap", "bursts")
        # Attacks find the same image several times, too.
        sets = []
        for one, copies in ((count, each), (count, each), (each, 4)):
            values, labels = _features(one, width, rng)
            rows = torch.arange(len(values)).repeat_interleave(copies)
            noise = 0.05 * torch.randn(len(rows), width, generator=rng)
            sets.append((values[rows] + noise, labels[rows]))
        for name, given in (("alone", None), ("units", (units, units))):
            gap = leakage_gap(sets[0], sets[1], sets[2], units=given, bootstrap=400, rng=rng)
            held[name] += gap.low is not None and gap.high is not None and gap.low <= 0 <= gap.high
            small[name] += float(gap.extra["p_value"]) <= 0.05
    return [
        {
            "control": "gap, bursts",
            "classes": classes,
            "holdout a class": f"{count} x {each}",
            "private a class": f"{count} x {each}",
            "setting": {"alone": "images alone", "units": "bursts as units"}[name],
            "interval holds 0": held[name] / seeds,
            "p <= 0.05": small[name] / seeds,
        }
        for name in held
    ]


COVARIATES = (
    (0.0, 10, "normal"), (0.5, 10, "normal"), (0.75, 10, "normal"), (0.75, 10, "skewed"),
    (0.75, 5, "normal"),
)  # fmt: skip
"""(share of the variance within classes that the covariates explain, 0: none are given; images a class on
either side; shape of the rest), with ten classes."""

DEVIATIONS = (0.0, 1.0, 3.0)
"""By how many standard deviations of their class the images that leaked are nearer."""


def covariate_rows(seeds: int) -> list[dict[str, Any]]:
    """Return what covariates gain: flags and tests of the set, without a leak and with one.

    A fifth of the private images of each class leaked. Distances have a part in common with three noisy
    covariates, and each image has its own reconstruction, so that the leakage gap has no competition.
    """
    rows = []
    for explained, each, shape in COVARIATES:
        for deviations in DEVIATIONS:
            flags: list[bool] = []
            recall, wrong, nearer, higher = [], [], [], []
            for seed in range(seeds):
                near, labels, given, leaked = _with_covariates(
                    seed, explained, each, shape, deviations
                )
                sets = (near[0], labels), (near[1], labels)
                covariates = given if explained else None
                found = calibrate(*sets, covariates=covariates, fdr=RATE).per_sample["flagged"]
                flagged = found.numpy()
                flags.append(bool(flagged.any()))
                recall.append((flagged & leaked).sum() / max(1, leaked.sum()))
                wrong.append((flagged & ~leaked).sum() / max(1, flagged.sum()))
                gap = distance_gap(*sets, covariates=covariates, bootstrap=199)
                nearer.append(float(gap.extra["p_value"]) <= 0.05)
                higher.append(_of_scores(near, labels) <= 0.05)
            row: dict[str, Any] = {
                "control": "covariates",
                "classes": 10,
                "holdout a class": each,
                "private a class": each,
                "setting": f"{explained:.0%} explained, {shape}",
                "deviations": deviations,
                "flagged": float(np.mean(flags)),
                "distance gap, p <= 0.05": float(np.mean(nearer)),
                "leakage gap, p <= 0.05": float(np.mean(higher)),
            }
            if deviations:
                row |= {"recall": float(np.mean(recall)), "fdp": float(np.mean(wrong))}
            rows.append(row)
    return rows


def _with_covariates(
    seed: int, explained: float, each: int, shape: str, deviations: float
) -> tuple[list[Floats], NDArray[np.int64], tuple[Tensor, Tensor], NDArray[np.bool_]]:
    """Return distances of both sides, labels of either, covariates, and which private images leaked."""
    rng = np.random.default_rng([seed, each])
    place, spread = rng.normal(size=10), 0.3 * np.exp(0.5 * rng.normal(size=10))
    labels = np.repeat(np.arange(10), each)
    leaked = np.tile(np.arange(each) < each // 5, 10)
    near, given = [], []
    for side in range(2):
        common = rng.normal(size=len(labels))
        if shape == "normal":
            rest = rng.normal(size=len(labels))
        elif shape == "skewed":
            rest = np.log(rng.gamma(2.0, size=len(labels))) / 0.8
        else:
            rest = rng.standard_t(3, size=len(labels)) / 3**0.5
        value = explained**0.5 * common + (1.0 - explained) ** 0.5 * rest
        near.append(
            np.exp(place[labels] + spread[labels] * (value - deviations * leaked * (not side)))
        )
        # Three views of what is common, each with a little noise of its own.
        given.append(torch.from_numpy(common[:, None] + 0.1 * rng.normal(size=(len(labels), 3))))
    return near, labels, (given[0], given[1]), leaked


def _of_scores(near: list[Floats], labels: NDArray[np.int64]) -> float:
    """Return the leakage gap's p value where each image has a reconstruction of its own."""
    n, known = len(labels), [torch.from_numpy(one) for one in near]
    far = torch.full((n,), 1e9, dtype=torch.float64)
    row, first = torch.arange(n), torch.zeros(n, dtype=torch.int64)
    sides = [
        Assignment(
            owner=torch.cat([row, first] if side == 0 else [first, row]),
            distance=torch.cat([known[0], far] if side == 0 else [far, known[1]]),
            nearest=known[side],
            nearest_row=row + side * n,
        )
        for side in range(2)
    ]
    names = [[f"{side}/{i:04d}" for i in range(n)] for side in range(2)]
    label = torch.from_numpy(labels)
    gap = leakage_gap_of(
        sides[0], sides[1], labels=label, ids=names[0], holdout_labels=label, holdout_ids=names[1],
        bootstrap=199,
    )  # fmt: skip
    return float(gap.extra["p_value"])


def unequal_rows(seeds: int) -> list[dict[str, Any]]:
    """Return the effect of unequal proportions: ten times as many private images in the widest classes.

    A tenth of the private images leaked, far nearer than any other; 50 holdout images a class.
    """
    rows = []
    classes, holdout = 10, 50
    for shape in SHAPES:
        recall, wrong = [], []
        for seed in range(seeds):
            x, y = _null(seed, classes, 20, holdout, shape)
            spread = np.log(y).std(1)
            labels = np.repeat(np.arange(classes), 20)
            narrow = spread < np.median(spread)
            kept = ~narrow[labels] | (np.arange(len(labels)) % 20 < 2)
            leaked = np.random.default_rng([seed, 1]).random(len(labels)) < 0.1
            near = np.where(leaked, 1e-3 * x.ravel(), x.ravel())[kept]
            found = calibrate(
                (near, labels[kept]), (y.ravel(), np.repeat(np.arange(classes), holdout)), fdr=RATE
            )
            flagged = found.per_sample["flagged"].numpy()
            recall.append((flagged & leaked[kept]).sum() / max(1, leaked[kept].sum()))
            wrong.append((flagged & ~leaked[kept]).sum() / max(1, flagged.sum()))
        rows.append(
            {
                "control": "unequal",
                "classes": classes,
                "holdout a class": holdout,
                "private a class": "2 or 20",
                "setting": shape,
                "recall": float(np.mean(recall)),
                "fdp": float(np.mean(wrong)),
            }
        )
    return rows


def gap_rows(seeds: int) -> list[dict[str, Any]]:
    """Return how often the gap's interval holds 0, and p <= 0.05, for normal features without leakage."""
    rows = []
    for private, holdout in ((10, 10), (5, 50), (50, 5), (30, 30)):
        for width in (4, 16, 64):
            held = small = 0
            for seed in range(seeds):
                rng = generator(seed, "gap", private, holdout, width)
                sets = [_features(n, width, rng) for n in (private, holdout, 20)]
                gap = leakage_gap(sets[0], sets[1], sets[2], bootstrap=400, rng=rng)
                held += gap.low is not None and gap.high is not None and gap.low <= 0 <= gap.high
                small += float(gap.extra["p_value"]) <= 0.05
            rows.append(
                {
                    "control": "gap",
                    "classes": 10,
                    "holdout a class": holdout,
                    "private a class": private,
                    "setting": f"{width} features",
                    "interval holds 0": held / seeds,
                    "p <= 0.05": small / seeds,
                }
            )
    return rows


def _features(each: int, width: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return ``each`` normal features of ten classes; the last has three times the spread of the first."""
    labels = torch.arange(10).repeat_interleave(each)
    return torch.randn(len(labels), width, generator=rng) * (0.5 + labels[:, None] / 9), labels


def everything() -> ImageSet:
    """Return all distinct digits of scikit-learn."""
    found = load_digits(seed=0, per_class=1, public_images=10_000)
    parts = (found.private, found.holdout, found.public)
    return ImageSet(
        images=torch.cat([s.images for s in parts]),
        labels=torch.cat([s.labels for s in parts]),
        ids=tuple(i for s in parts for i in s.ids),
        classes=found.private.classes,
        hashes=tuple(h for s in parts for h in s.hashes),
    )


def drawn(images: ImageSet, sizes: tuple[int, ...], seed: int) -> list[ImageSet]:
    """Return disjoint random parts with ``sizes`` images of each class, and the rest as another part."""
    rng = generator(seed, "controls")
    parts: list[list[int]] = [[] for _ in range(len(sizes) + 1)]
    for label in range(len(images.classes)):
        rows = (images.labels == label).nonzero().squeeze(1)
        rows = rows[torch.randperm(len(rows), generator=rng)]
        pieces = rows.tensor_split(torch.tensor(sizes).cumsum(0))
        for part, piece in zip(parts, pieces, strict=True):
            part += piece.tolist()
    return [images.select(torch.tensor(part)) for part in parts]


def planted(images: ImageSet, seed: int, levels: Floats, of_class: bool) -> list[dict[str, float]]:
    """Return recall and false-discovery proportion for each level of a planted leak.

    For a tenth of each class's private images one reconstruction each is moved towards the image, on the
    straight line in pixel space, to a distance between the null's median (level 0) and 0.9 of its smallest
    (level 1), on a logarithmic scale. The null is the holdout's nearest distances, of all classes together or
    ``of_class``. Reconstructions are digits of neither set.
    """
    private, holdout, reconstructions, _ = drawn(images, (PRIVATE, HOLDOUT, OTHERS), seed)
    ours, theirs, start = (_pixels(s) for s in (private, holdout, reconstructions))
    null = ddcs(theirs, start, bootstrap=0).per_sample["nearest_distance"]
    leaked = torch.zeros(len(private), dtype=torch.bool)
    pairs = []
    for label in private.labels.unique().tolist():
        # The order is random already.
        rows = (private.labels == label).nonzero().squeeze(1)[: PRIVATE // 10]
        leaked[rows] = True
        known = null[holdout.labels == label] if of_class else null
        pairs.append(
            (rows, (reconstructions.labels == label).nonzero().squeeze(1)[: len(rows)], known)
        )
    found = []
    for level in levels:
        moved = start[0].clone()
        for rows, columns, known in pairs:
            distance = known.median() ** (1 - level) * (0.9 * known.min()) ** level
            away = moved[columns] - ours[0][rows]
            length = (distance / away.square().sum(1, keepdim=True)).sqrt()
            moved[columns] = ours[0][rows] + length * away
        near = [
            ddcs(s, (moved, start[1]), bootstrap=0).per_sample["nearest_distance"]
            for s in (ours, theirs)
        ]
        result = calibrate((near[0], ours[1]), (near[1], theirs[1]), fdr=RATE)
        flagged = result.per_sample["flagged"]
        false = int((flagged & ~leaked).sum())
        found.append(
            {
                "recall": float((flagged & leaked).sum() / leaked.sum()),
                "fdp": false / max(1, int(flagged.sum())),
            }
        )
    return found


def _pixels(images: ImageSet) -> tuple[Tensor, Tensor]:
    """Return features whose squared distance is the mean squared error."""
    values = images.floats().double().flatten(1)
    return values / values.shape[1] ** 0.5, images.labels
