"""Results of defences over seeds: measures, their changes, images that moved, and a recommendation."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import t

Floats = NDArray[np.float64]

NONE = "none"
"""The undefended model, which the others are compared with."""

RATIOS = ("distance", "distance_protected", "distance_others")
"""Measures whose change is a ratio to the undefended model's, 1 for no change; all others' changes
are differences."""

FROM_METRICS = (
    "ddcs_best", "ddcs_average", "covered", "coverage", "leakage_gap", "flagged", "accuracy_top1",
)  # fmt: skip
"""Measures that are taken from an audit's metrics.json."""

MEASURES = ("holdout_accuracy", "private_accuracy", *FROM_METRICS, *RATIOS)
"""All measures of a defence."""

TOLERANCE = 0.02
"""Default loss of holdout accuracy up to which a defence can be recommended."""

_FLOOR = 1e-6
"""Distances below this count as this: the reconstruction is a copy."""

_IMAGE_COLUMNS = (
    "defence", "id", "label", "protected", "nearest_distance_before", "nearest_distance",
    "ratio", "flagged_before", "flagged_after",
)  # fmt: skip


@dataclass(frozen=True)
class ModelAudit:
    """One audit of one model, defended or not.

    measures: each of ``MEASURES`` that could be computed. samples: one row for each private image,
    by id, with nearest_distance (NaN where its class has no reconstruction) and, if there were flags,
    flagged. by_access: the same distances (N,) by access of the attacks.
    """

    measures: Mapping[str, float]
    samples: pd.DataFrame
    by_access: Mapping[str, Floats] = field(default_factory=dict)
    minutes: float = 0.0
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def flags(self) -> Floats:
        """1 where an image is flagged, 0 where it is not, NaN where it was not tested; (N,)."""
        flags = self.samples.get("flagged", pd.Series(pd.NA, self.samples.index)).astype("Float64")
        return np.asarray(flags.to_numpy(dtype=np.float64, na_value=np.nan))


@dataclass(frozen=True)
class Outcome:
    """One defence: ``audits`` by seed, or the reason why there are none (``failed``)."""

    name: str
    level: str
    what: str
    audits: Mapping[int, ModelAudit]
    failed: str | None = None


Pairs = list[tuple[ModelAudit, ModelAudit]]
_BOUNDS = ("mean", "low", "high")


def model_audit(
    metrics: Mapping[str, Mapping[str, Any]], samples: pd.DataFrame, samples_by_set: pd.DataFrame,
    *, protected: Sequence[str], access: Mapping[str, str], accuracies: Mapping[str, float],
    minutes: float, facts: Mapping[str, Any],
) -> ModelAudit:  # fmt: skip
    """Return what the comparison needs of an audit.

    protected: ids of the private images that sample-level defences were to protect. access: of each
    attack (the sets of ``samples_by_set``) by its name. accuracies: in [0, 1], of the model.
    """
    samples = samples.sort_values("id", ignore_index=True)
    values = {key: metrics.get(key, {}).get("value") for key in FROM_METRICS}
    measures = {k: v for k, v in accuracies.items() if k in MEASURES}
    measures |= {key: float(value) for key, value in values.items() if value is not None}
    logs = _logs(samples["nearest_distance"])
    chosen = samples["id"].isin(list(protected)).to_numpy()
    for key, rows in zip(RATIOS, (np.ones_like(chosen), chosen, ~chosen), strict=True):
        if np.isfinite(logs[rows]).any():
            measures[key] = math.exp(float(np.nanmean(logs[rows])))
    nearest = samples_by_set.assign(access=samples_by_set["set"].map(dict(access)))
    table = nearest.groupby(["access", "id"])["nearest_distance"].min().unstack(0)
    by_access = {str(a): table[a].reindex(samples["id"]).to_numpy() for a in table.columns}
    return ModelAudit(measures, samples, by_access, minutes, facts)


def summarise(outcomes: Sequence[Outcome], *, tolerance: float = TOLERANCE) -> dict[str, Any]:
    """Return the keys ``defences`` and ``recommendation`` of defences.json.

    ``outcomes`` contain the undefended model under ``NONE``. Means and 95 % intervals by Student's t
    are over seeds; a change is between two models of the same seed.
    """
    base = next(o for o in outcomes if o.name == NONE)
    rows = [_row(one, base) for one in outcomes]
    return {"defences": rows, "recommendation": recommend(rows, tolerance=tolerance)}


def interval(values: Sequence[float]) -> dict[str, Any]:
    """Return mean and 95 % interval by Student's t of ``values``; no bounds for one value."""
    mean = statistics.fmean(values) if values else None
    low = high = None
    if mean is not None and len(values) > 1:
        error = statistics.stdev(values) / math.sqrt(len(values))
        half = float(t.ppf(0.975, len(values) - 1)) * error
        low, high = mean - half, mean + half
    return {"mean": mean, "low": low, "high": high, "values": list(values)}


def recommend(rows: Sequence[Mapping[str, Any]], *, tolerance: float) -> dict[str, Any]:
    """Return which defence to take, and why: ``{"defence": name or None, "reason": text}``.

    A defence helps if over the seeds DDCS or the leakage gap falls by more than chance (the interval
    of the change is below 0) while neither rises by more than chance. It is eligible if its mean
    holdout accuracy falls by at most ``tolerance`` and white box stays the stronger attack. Of the
    eligible ones that help, the one with the lowest DDCS is recommended.
    """
    tried = [row for row in rows if row["level"] != "none" and row["failed"] is None]
    helping = [row for row in tried if _helps(row)]
    cheap = [row for row in helping if _loss(row) <= tolerance]
    eligible = [row for row in cheap if not row["hides"]]
    defence = None
    points = f"{100 * tolerance:g} percentage points of holdout accuracy"
    if not tried:
        reason = "No defence could be trained and audited."
    elif min(row["seeds"] for row in tried) < 2:
        reason = "One seed cannot separate a difference from chance: repeat with --seeds 3 or more."
    elif eligible:
        best = min(eligible, key=lambda row: row["measures"]["ddcs_best"]["mean"])
        ddcs, gap = (best["changes"].get(k, {}).get("mean") for k in ("ddcs_best", "leakage_gap"))
        loss = 100 * _loss(best)
        cost = f"costs {loss:.1f}" if loss > 0 else f"gains {-loss:.1f}"
        moved = f"DDCS by {ddcs:+.3g}" + ("" if gap is None else f", the leakage gap by {gap:+.3g}")
        defence = best["name"]
        reason = (
            f"It has the lowest DDCS of those of the {len(tried)} defences that are shown to help. It "
            f"changes {moved}, and {cost} percentage points of holdout accuracy (means over "
            f"{best['seeds']} seeds)."
        )
    elif cheap:
        names = ", ".join(row["name"] for row in cheap)
        reason = (
            f"{names}: leakage falls at a loss of at most {points}, but black box comes nearer than "
            "white box, so the defence may only hide gradients."
        )
    elif helping:
        best = min(helping, key=_loss)
        reason = (
            f"No defence lowers leakage by more than chance at a loss of at most {points}. The "
            f"cheapest that does is {best['name']}, which costs {100 * _loss(best):.1f}."
        )
    else:
        reason = (
            f"None of the {len(tried)} defences is shown to lower leakage: no change of DDCS or of the "
            f"leakage gap is larger than chance over {tried[0]['seeds']} seeds."
        )
    return {"defence": defence, "reason": reason}


def per_image(outcomes: Sequence[Outcome], protected: Sequence[str]) -> pd.DataFrame:
    """Return images.parquet: a row for each defence and private image, before (undefended) and after.

    Distances are geometric means over the common seeds, ``ratio`` is after / before (below 1:
    nearer), and ``flagged_*`` the fraction of seeds in which the image was flagged, NaN where it was
    not tested.
    """
    base = next(o for o in outcomes if o.name == NONE)
    frames = []
    for one in outcomes:
        pairs = _pairs(one, base)
        if not pairs:
            continue
        samples = pairs[0][0].samples
        before, after, flags_before, flags_after = _arrays(pairs)
        values = (
            one.name, samples["id"], samples["label"], samples["id"].isin(list(protected)),
            np.exp(before.mean(0)), np.exp(after.mean(0)), np.exp((after - before).mean(0)),
            flags_before, flags_after,
        )  # fmt: skip
        frames.append(pd.DataFrame(dict(zip(_IMAGE_COLUMNS, values, strict=True))))
    if not frames:
        return pd.DataFrame(columns=list(_IMAGE_COLUMNS))
    return pd.concat(frames, ignore_index=True)


def _pairs(one: Outcome, base: Outcome) -> Pairs:
    """Return the audits (undefended, defended) of the common seeds; none for the undefended model."""
    if one.name == NONE:
        return []
    return [(base.audits[seed], a) for seed, a in one.audits.items() if seed in base.audits]


def _arrays(pairs: Pairs) -> tuple[Floats, Floats, Floats, Floats]:
    """Return log distances (seeds, N) before and after, and the fraction of flags (N,) of each."""
    before, after = zip(*pairs, strict=True)
    logs = [
        np.stack([_logs(a.samples["nearest_distance"]) for a in side]) for side in (before, after)
    ]
    flags = [np.stack([audit.flags for audit in side]).mean(0) for side in (before, after)]
    return logs[0], logs[1], flags[0], flags[1]


def _row(one: Outcome, base: Outcome) -> dict[str, Any]:
    audits = list(one.audits.values())
    pairs = _pairs(one, base)
    masked, hides = _masked(one, base)
    measures = {key: [a.measures[key] for a in audits if key in a.measures] for key in MEASURES}
    return {
        "name": one.name,
        "level": one.level,
        "what": one.what,
        "failed": one.failed,
        "seeds": len(audits),
        "minutes": round(sum(a.minutes for a in audits), 2),
        "measures": {key: interval(values) for key, values in measures.items() if values},
        "changes": _changes(pairs),
        "images": _moved(pairs) if pairs else None,
        "masked": masked,
        "hides": hides,
        "facts": dict(audits[0].facts) if audits else {},
    }


def _changes(pairs: Pairs) -> dict[str, Any]:
    """Return the change of each measure that both models of a pair have."""
    changes: dict[str, Any] = {}
    for key in MEASURES:
        values = [(b.measures.get(key), a.measures.get(key)) for b, a in pairs]
        found = [(b, a) for b, a in values if b is not None and a is not None]
        if found and key in RATIOS:
            # Means and intervals of ratios are those of their logarithms.
            logs = interval([math.log(a / b) for b, a in found])
            bounds = {k: None if logs[k] is None else math.exp(logs[k]) for k in _BOUNDS}
            changes[key] = {**bounds, "values": [a / b for b, a in found]}
        elif found:
            changes[key] = interval([a - b for b, a in found])
    return changes


def _moved(pairs: Pairs) -> dict[str, Any]:
    """Return the images that a defence moved; a flag counts if it holds in most seeds."""
    before, after, flags_before, flags_after = _arrays(pairs)
    ids = pairs[0][0].samples["id"].to_numpy()
    changes = after - before
    known = np.isfinite(changes).all(0)
    mean = changes[:, known].mean(0)
    was, now = flags_before > 0.5, flags_after > 0.5
    # With one seed, half of all images would be nearer by chance.
    always = known & (changes < 0).all(0) & (len(changes) > 1)
    return {
        "nearer": int((mean < 0).sum()),
        "farther": int((mean > 0).sum()),
        "newly_flagged": ids[now & ~was].tolist(),
        "no_longer_flagged": ids[was & ~now].tolist(),
        "nearer_in_every_seed": ids[always].tolist(),
    }


def _masked(one: Outcome, base: Outcome) -> tuple[str | None, bool]:
    """Return a sentence if white box came out weaker than black box, and whether the defence did that."""
    own, reference = _white_over_black(one), _white_over_black(base)
    if own is None or own[1] <= 0:
        return None, False
    text = (
        "white box comes out weaker than black box: its nearest reconstructions are "
        f"{math.exp(own[0]):.2f} times as far (geometric mean over private images)"
    )
    if one.level == "none":
        return f"{text}, without any defence", False
    if reference is not None and reference[1] > 0:
        return f"{text}, and {math.exp(reference[0]):.2f} times without a defence", False
    return f"{text}, but not without a defence: it may only hide gradients", True


def _white_over_black(one: Outcome) -> tuple[float, float] | None:
    """Return the mean over images of log(white-box / black-box distance) and its lower 95 % bound."""
    ratios = []
    for audit in one.audits.values():
        white = audit.by_access.get("white-box")
        others = [d for access, d in audit.by_access.items() if access != "white-box"]
        if white is not None and others:
            ratios.append(_logs(white) - _logs(np.fmin.reduce(others)))
    if not ratios:
        return None
    # The interval is over images, not seeds: the question is about these trainings only.
    mean = np.nanmean(np.stack(ratios), axis=0)
    found = interval(mean[np.isfinite(mean)].tolist())
    return None if found["low"] is None else (found["mean"], found["low"])


def _loss(row: Mapping[str, Any]) -> float:
    """Return the mean loss of holdout accuracy."""
    change = row["changes"].get("holdout_accuracy")
    return math.inf if change is None or change["mean"] is None else -float(change["mean"])


def _helps(row: Mapping[str, Any]) -> bool:
    found = [row["changes"][k] for k in ("ddcs_best", "leakage_gap") if k in row["changes"]]
    bounds = [(c["low"], c["high"]) for c in found if c["low"] is not None]
    return any(high < 0 for _, high in bounds) and not any(low > 0 for low, _ in bounds)


def _logs(distances: Any) -> Floats:
    return np.log(np.maximum(np.asarray(distances, dtype=np.float64), _FLOOR))
