"""Flags private images that are nearer to the reconstructions than holdout images are by chance.

Scales make distances of all classes comparable, by one rule for private and holdout images. Classes
differ in how near and how widely spread their images are. Each image is measured by *other* holdout
images of its class, equally many for every image: a holdout image by all but itself, a private image by
all but one, each left out in turn. If an image were among those it is measured by, holdout images would
look more ordinary than private ones, and audits without leakage would raise alarms.

Images that depend on each other, such as near-copies or shots of one minute, count as one *unit*: they are
left out together, have the weight of one image among the holdout, and are flagged together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from inversight.core.errors import ConfigError, InputError
from inversight.risk.covariates import CovariatesLike, adjust
from inversight.risk.units import unit_numbers
from inversight.scores.checks import as_array
from inversight.scores.result import ScoreResult, Summary
from inversight.settings import DEFAULT_FDR

LEAST = 9
"""Smallest number of holdout images that can be calibrated on."""

SHARED = 2.0
"""Weight of the spread of all other classes, in images of the own class. With a few holdout images in a
class, its own spread is little more than noise; with many, this weight no longer matters."""

_SCRATCH = 1 << 20
"""Numbers held at once in each temporary."""

DistancesLike = tuple[Tensor | ArrayLike, Tensor | ArrayLike]
"""(nearest distances (N,), labels (N,)) as tensors, NumPy arrays or lists; NaN where there is none."""


def check_embedding(name: str) -> None:
    """Refuse distances in which private and holdout images differ even without an attack.

    Raises:
        ConfigError: ``evaluator``, which was trained on the private images and not on the holdout.
    """
    if name == "evaluator":
        raise ConfigError(
            "risk cannot be calibrated in the features of the evaluator, which has seen the private "
            "images and not the holdout; give --embedding pixel, public, lpips-vgg, lpips-alex, "
            "lpips-squeeze or inception"
        )


def calibrate(
    private: DistancesLike, holdout: DistancesLike, *, units: tuple[Tensor, Tensor] | None = None,
    covariates: CovariatesLike | None = None, fdr: float = DEFAULT_FDR, floor: float = 1e-6,
) -> ScoreResult:  # fmt: skip
    """In [0, 1], higher is more leakage: the fraction of private images that are flagged.

    It is of those that could be calibrated. per_sample, each (N,) in private's row order, NaN where
    nothing is known:

    - ``p_value``: float64 in (0, 1], lower is more leakage. Probability that an image that the target
      never saw comes at least as near to a reconstruction of its class (split conformal p-value, Vovk
      et al. 2005; Bates et al. 2023).
    - ``q_value``: float64 in (0, 1], lower is more leakage. The smallest false-discovery rate at which
      the image's unit is flagged (Benjamini and Hochberg 1995, over units). A unit's p-value combines
      those of its images (Simes 1986): it costs near-copies nothing.
    - ``flagged``: bool, ``q_value <= fdr``.

    Logarithms of the nearest distances, less what ``covariates`` explain of them
    (:func:`inversight.risk.covariates.adjust`), are standardised class by class
    (:func:`class_scales`). A private image is compared with the holdout images of all
    classes together, and its p-value is the mean over which holdout image of its class is left out. The
    rate holds on average over audits if, without leakage, private and holdout images of a class are
    exchangeable, and if the standardised values of all classes have the same distribution. The second
    condition matters little where private and holdout have the classes in the same proportions.

    It does not detect leakage that the holdout shares (what the target learnt of a class as a whole),
    nor an image that this attack did not find. With few holdout images it has little power: none of N
    units is flagged unless N / (fdr (n + 1)) stand out together, ``smallest_possible``.

    Args:
        private: nearest distances, >= 0, in one embedding that was trained on neither set, with
            labels. NaN: the class has no reconstruction, and the image is left out.
        holdout: likewise.
        units: (N,) int64 of the private and (M,) int64 of the holdout images: those with equal numbers
            count as one (:func:`inversight.risk.units.units_of`). Units, not images, are then what has
            to be exchangeable within classes. None: each image counts.
        covariates: (N, P) and (M, P), known of an image without the target, such as log distances to
            public images (:func:`inversight.risk.covariates.public_covariates`). The more of the
            distances they explain, the smaller the leaks that are found. None: there are none.
        fdr: accepted fraction of false alarms among the flagged units, in (0, 1).
        floor: distance below which all distances count as equal, > 0.

    Raises:
        ConfigError: fdr or floor out of range.
        InputError: not distances and labels of one length, covariates of another length or not
            finite, or a unit with images of two classes.
    """
    check_rate(fdr)
    one = comparable(private, holdout, units=units, covariates=covariates, floor=floor)
    (values, labels, unit), (holdout_values, holdout_labels, held) = one.private, one.holdout
    finite = holdout_values.isfinite()
    known = {
        int(label): UnitValues.of(holdout_values[rows], held[rows])
        for label in holdout_labels[finite].unique(sorted=True)
        for rows in [(holdout_labels == label) & finite]
    }
    scales = class_scales(known)
    pool = _Pool.of([(m.of_own(known[c]), known[c].weight) for c, m in scales.items()])
    p = torch.full_like(values, float("nan"))
    for label, scale in scales.items():
        rows = ((labels == label) & values.isfinite()).nonzero().squeeze(1)
        for part in rows.split(max(1, _SCRATCH // len(scale.centre))):
            p[part] = pool.p_values(scale.scores(values[part, None]))
    q = torch.full_like(p, float("nan"))
    calibrated = p.isfinite()
    images = int(calibrated.sum())
    judged = unit[calibrated].unique()
    extra: dict[str, float | int | str] = {"fdr": fdr, "holdout_images": pool.images}
    if one.explained is not None:
        extra["explained"] = one.explained
    grouped = len(judged) < images or pool.units < pool.images
    if grouped:
        extra |= {"private_units": len(judged), "holdout_units": pool.units}
    reason = _refusal(pool.units, images, fdr, grouped=grouped)
    if reason is None:
        of_units = simes(p[calibrated], torch.searchsorted(judged, unit[calibrated]))
        q[calibrated] = benjamini_hochberg(of_units)[torch.searchsorted(judged, unit[calibrated])]
    else:
        p = torch.full_like(p, float("nan"))
    # Rounding of p N / k must not decide.
    flagged = q <= fdr * (1.0 + 1e-12)
    value = None
    if reason is None:
        count = int(flagged.sum())
        value = count / images
        extra |= {
            "count": count,
            "smallest_possible": smallest_possible(len(judged), pool.units, fdr),
            "private_images": images,
            "not_judged": len(flagged) - images,
        }
    summary = {"flagged": Summary(value, reason=reason, extra=extra)}
    columns = {"p_value": p, "q_value": q, "flagged": flagged}
    return ScoreResult("higher", "private", summary, columns)


class Side(NamedTuple):
    """N images of one side: values (N,) float64, NaN: unknown; labels and units (N,) int64."""

    values: Tensor
    labels: Tensor
    units: Tensor


@dataclass(frozen=True)
class Comparable:
    """Logarithms of nearest distances of both sides, less what covariates explain.

    explained: the fraction of the variance within classes that they explain; None without covariates.
    """

    private: Side
    holdout: Side
    explained: float | None


def comparable(
    private: DistancesLike, holdout: DistancesLike, *, units: tuple[Tensor, Tensor] | None,
    covariates: CovariatesLike | None, floor: float,
) -> Comparable:  # fmt: skip
    """Return what the tests against the holdout compare; for arguments and errors see :func:`calibrate`."""
    if not 0 < floor < float("inf"):
        raise ConfigError(f"floor: expected a positive distance, found {floor}")
    values, labels = _distances(private, "private", floor)
    unseen, their_labels = _distances(holdout, "holdout", floor)
    own, theirs = units or (torch.arange(len(s)) for s in (labels, their_labels))
    own = unit_numbers(own, labels, "private")
    theirs = unit_numbers(theirs, their_labels, "holdout")
    explained = None
    if covariates is not None:
        found = adjust((values, unseen), (labels, their_labels), (own, theirs), covariates)
        values, unseen, explained = found.private, found.holdout, found.explained
    return Comparable(Side(values, labels, own), Side(unseen, their_labels, theirs), explained)


@dataclass(frozen=True)
class UnitValues:
    """Values of the M images of one class, sorted, in U units.

    values: (M,) float64. unit: (M,) int64, the unit of each, numbered by their means. mean, spread: (U,)
    float64, mean and variance of the values of each unit, the latter 0 for a unit of one image.
    """

    values: Tensor
    unit: Tensor
    mean: Tensor
    spread: Tensor

    @classmethod
    def of(cls, values: Tensor, units: Tensor | None = None) -> UnitValues:
        """Return values (M,) with the numbers (M,) of their units; None: each its own."""
        values, order = values.sort(stable=True)
        unit = torch.arange(len(values)) if units is None else units[order]
        _, unit, count = unit.unique(return_inverse=True, return_counts=True)
        start = values.new_zeros(len(count))
        mean = start.index_add(0, unit, values) / count
        spread = start.index_add(0, unit, (values - mean[unit]).square()) / count
        order = mean.argsort(stable=True)
        return cls(values, order.argsort()[unit], mean[order], spread[order])

    @property
    def weight(self) -> Tensor:
        """Return (M,) float64: the weight of each image, 1 for a unit's images together."""
        return 1.0 / self.unit.bincount()[self.unit].double()


@dataclass(frozen=True)
class ClassScale:
    """The scale of one class, with one entry for each of its n holdout units left out.

    centre: (n,) float64, mean of the others. scale: (n,) float64 >= 0, the typical deviation of one more
    image from it. freedom: degrees of freedom of that scale, > 0.
    """

    centre: Tensor
    scale: Tensor
    freedom: float

    def scores(self, values: Tensor) -> Tensor:
        """Return standard scores of ``values``, which broadcast against (n,); lower is nearer.

        Deviations over scale follow Student's t if values are normal. They are converted to normal
        scores (Wallace 1959), so that classes with few and with many holdout images are comparable.
        Where the others are all equal, a value that differs from them is infinitely far from them.
        """
        away = (values - self.centre) / self.scale
        away = away.where(values != self.centre, torch.zeros_like(away))
        f = self.freedom
        size = ((away.square() / f).log1p() * f).sqrt() * (8.0 * f + 1.0) / (8.0 * f + 3.0)
        return size.copysign(away)

    def of_own(self, holdout: UnitValues) -> Tensor:
        """Return standard scores (M,) of the class's holdout images, each by all units but its own."""
        centre, scale = self.centre[holdout.unit], self.scale[holdout.unit]
        return ClassScale(centre, scale, self.freedom).scores(holdout.values)


def class_scales(holdout: Mapping[int, UnitValues]) -> dict[int, ClassScale]:
    """Return the scale of each class from its holdout images, each unit with the weight of one image.

    It joins the class's own variance with the pooled variance of the *other* classes, which has the
    weight of ``SHARED`` images (an empirical Bayes estimate, Smyth 2004, with fixed weight). Classes of
    one unit have no scale, nor have classes of two if there is no other class to pool with.
    """
    squares = {
        c: float((y.mean - y.mean.mean()).square().sum() + y.spread.sum())
        for c, y in holdout.items()
    }
    freedoms = sum(len(y.mean) - 1 for y in holdout.values())
    everything = sum(squares.values())
    found = {}
    for label, y in holdout.items():
        n = len(y.mean)
        others = freedoms - (n - 1)
        shared = SHARED if others else 0.0
        freedom = shared + n - 2
        if n < 2 or freedom <= 0:
            continue
        pooled = max(0.0, everything - squares[label]) / max(1, others)
        away = y.mean - y.mean.mean()
        # Sums of squares around the others' mean, one unit left out at a time.
        own = away.square() * n / (n - 1) + y.spread
        variance = (shared * pooled + (squares[label] - own).clamp_min(0.0)) / freedom
        found[label] = ClassScale(
            centre=y.mean.mean() - away / (n - 1),
            scale=(variance * (1.0 + 1.0 / (n - 1))).sqrt(),
            freedom=freedom,
        )
    return found


@dataclass(frozen=True)
class _Pool:
    """Standard scores (M,) of the holdout images of all classes, sorted.

    below: (M + 1,) float64, how many units lie below the k-th score, parts of units included.
    """

    scores: Tensor
    below: Tensor
    images: int
    units: int

    @classmethod
    def of(cls, parts: list[tuple[Tensor, Tensor]]) -> _Pool:
        """Return the pool of pairs of scores and weights, one for each class."""
        none = torch.zeros(0, dtype=torch.float64)
        scores = torch.cat([none, *(one for one, _ in parts)])
        weights = torch.cat([none, *(one for _, one in parts)])
        scores, order = scores.sort(stable=True)
        below = torch.cat([torch.zeros(1, dtype=torch.float64), weights[order].cumsum(0)])
        return cls(scores, below, len(scores), round(float(below[-1])))

    def p_values(self, scores: Tensor) -> Tensor:
        """Return (1 + units at least as near) / (units + 1), (N,), for scores (N, n), averaged over n."""
        # Ties count against the flag: an image as near as a holdout image is not nearer.
        nearer = self.below[torch.searchsorted(self.scores, scores, right=True)].mean(1)
        return (1.0 + nearer) / (self.units + 1.0)


def simes(p_values: Tensor, unit: Tensor) -> Tensor:
    """Return a p-value (U,) float64 for each unit: the smallest over k of m p_(k) / k of its m p-values.

    Valid for independent and for positively dependent p-values (Simes 1986; Sarkar 1998), such as those
    of near-copies, for which it is close to each of them.

    Args:
        p_values: (N,).
        unit: (N,) int64, each of 0 to U - 1 at least once.
    """
    order = p_values.double().argsort(stable=True)
    order = order[unit[order].argsort(stable=True)]
    count = unit.bincount()
    first = count.cumsum(0) - count
    rank = torch.arange(len(unit)) - first[unit[order]] + 1
    scaled = p_values.double()[order] * (count[unit[order]] / rank.double())
    start = torch.ones(len(count), dtype=torch.float64)
    return start.scatter_reduce(0, unit[order], scaled, "amin")


def benjamini_hochberg(p_values: Tensor) -> Tensor:
    """Return q-values (N,) float64 of p-values (N,): the smallest over k >= rank of p_(k) N / k, at most 1.

    Flagging q <= alpha keeps the expected fraction of false discoveries at alpha or below, for
    independent p-values (Benjamini and Hochberg 1995) and for conformal ones that share a holdout
    (Bates et al. 2023).
    """
    order = p_values.double().argsort(stable=True)
    ranked = p_values.double()[order]
    scaled = ranked * len(ranked) / torch.arange(1, len(ranked) + 1, dtype=torch.float64)
    smallest = scaled.flip(0).cummin(0).values.flip(0).clamp_max(1.0)
    return torch.empty_like(smallest).scatter_(0, order, smallest)


def smallest_possible(private: int, holdout: int, fdr: float) -> int:
    """Return how many of ``private`` images must stand out together for any to be flagged.

    No p-value is below 1 / (holdout + 1), so that k flags need k >= N / (fdr (n + 1)).
    """
    return max(1, math.ceil(private / (fdr * (holdout + 1)) - 1e-9))


def check_rate(fdr: float) -> None:
    """Validate that 0 < fdr < 1.

    Raises:
        ConfigError: not in (0, 1).
    """
    if not 0.0 < fdr < 1.0:
        raise ConfigError(f"fdr: expected a rate between 0 and 1, such as 0.1, found {fdr}")


def _refusal(holdout: int, private: int, fdr: float, *, grouped: bool) -> str | None:
    """Return why there is no result, if so."""
    least = max(LEAST, math.ceil(1.0 / fdr - 1e-9) - 1)
    if holdout < least:
        counted = "; groups and near-copies count as one" if grouped else ""
        return (
            f"needs at least {least} holdout images at a false-discovery rate of {fdr:g}, found "
            f"{holdout} (of classes with reconstructions, at least two images each{counted}); add "
            "holdout images"
        )
    if private == 0:
        return "no private image is of a class with reconstructions and holdout images"
    return None


def _distances(given: DistancesLike, role: str, floor: float) -> tuple[Tensor, Tensor]:
    """Return logarithms (N,) float64 of the distances, NaN kept, and labels (N,) int64."""
    distances, labels = (as_array(part, role).cpu() for part in given)
    if distances.ndim != 1 or labels.shape != distances.shape or labels.is_floating_point():
        raise InputError(
            f"{role}: expected nearest distances (N,) and as many integer labels, found shapes "
            f"{tuple(distances.shape)} and {tuple(labels.shape)}"
        )
    distances = distances.double()
    if bool((distances < 0).any()) or bool(distances.isinf().any()):
        raise InputError(f"{role}: expected finite distances of 0 or more, NaN where there is none")
    return distances.clamp_min(floor).log(), labels.long()
