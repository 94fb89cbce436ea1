"""Exposure by its definition, image by image and pair by pair, and all halves one after another."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import combinations, product

import numpy as np
from numpy.typing import NDArray
from scipy.special import polygamma, psi
from scipy.stats import t

Floats = NDArray[np.float64]


def centred(values: Floats, labels: list[int], model: int, image: int) -> float:
    """The value less the mean of the model over all images of the class that have one."""
    own = [values[model, j] for j, label in enumerate(labels) if label == labels[image]]
    known = [v for v in own if not math.isnan(v)]
    return float(values[model, image] - sum(known) / len(known)) if known else math.nan


def differences(
    values: Floats, member: NDArray[np.bool_], labels: list[int], image: int
) -> list[float]:
    """D of each pair: the model without the image less the model with it; NaN where one has no value."""
    found = []
    for first in range(0, len(values), 2):
        inside = first if member[first, image] else first + 1
        outside = first + 1 if member[first, image] else first
        found.append(
            centred(values, labels, outside, image) - centred(values, labels, inside, image)
        )
    return found


def prior(variances: list[float], freedoms: list[int]) -> tuple[float, float]:
    """s0^2 and d0 (Smyth 2004, 6.2), the inverse of trigamma by bisection."""
    pairs = list(zip(variances, freedoms, strict=True))
    e = [math.log(s) - psi(d / 2) + math.log(d / 2) for s, d in pairs]
    mean = sum(e) / len(e)
    spread = sum((x - mean) ** 2 for x in e) / (len(e) - 1)
    spread -= sum(float(polygamma(1, d / 2)) for d in freedoms) / len(e)
    if spread <= 0:
        return sum(variances) / len(variances), math.inf
    low, high = 1e-9, 1e9
    for _ in range(200):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if polygamma(1, middle) > spread else (low, middle)
    return math.exp(mean + psi(low) - math.log(low)), 2 * low


def image_rows(
    values: Floats, member: NDArray[np.bool_], labels: list[int]
) -> list[tuple[float, float, float, float]]:
    """Effect, standard error, degrees of freedom and one-sided p of each image; all have variances."""
    found = []
    for image in range(len(labels)):
        known = [d for d in differences(values, member, labels, image) if not math.isnan(d)]
        mean = sum(known) / len(known)
        found.append((mean, sum((d - mean) ** 2 for d in known) / (len(known) - 1), len(known)))
    s0, d0 = prior([v for _, v, _ in found], [n - 1 for *_, n in found])
    most = sum(n - 1 for *_, n in found)
    rows = []
    for mean, variance, n in found:
        joined = s0 if math.isinf(d0) else (d0 * s0 + (n - 1) * variance) / (d0 + n - 1)
        freedom = min(n - 1 + d0, most)
        error = math.sqrt(joined / n)
        rows.append((mean, error, freedom, float(t.sf(mean / error, freedom))))
    return rows


def all_halves(sizes: list[int]) -> Iterator[tuple[bool, ...]]:
    """Every stratified half of classes with even numbers of images, images in the order of classes."""
    parts = [
        [tuple(i in chosen for i in range(n)) for chosen in combinations(range(n), n // 2)]
        for n in sizes
    ]
    for half in product(*parts):
        yield tuple(x for part in half for x in part)


def set_p_value(
    values: Floats, member: NDArray[np.bool_], labels: list[int], images: list[int]
) -> float:
    """The fraction of all designs of equal halves whose mean over ``images`` reaches the observed one."""
    pairs = len(values) // 2
    sizes = [labels.count(c) for c in sorted(set(labels))]
    observed = np.mean([np.mean(differences(values, member, labels, i)) for i in images])
    # The mean over pairs is a sum of one term a pair, each depending on the half of that pair alone.
    terms = []
    for pair in range(pairs):
        rows = values[2 * pair : 2 * pair + 2]
        terms.append(
            [
                np.mean(
                    [
                        differences(rows, np.array([h, [not x for x in h]]), labels, i)
                        for i in images
                    ]
                )
                / pairs
                for h in all_halves(sizes)
            ]
        )
    sums = np.zeros(1)
    for term in terms:
        sums = np.add.outer(sums, np.array(term)).ravel()
    return float((sums >= observed - 1e-12).mean())
