"""What defences did: measures before and after, over seeds, and which of them to take."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t

NONE = "none"
"""The undefended model, which everything is compared with."""

RATIOS = ("distance", "distance_protected", "distance_others")
"""Measures whose change is a ratio to the undefended model's, 1 for no change; all others' changes
are differences."""

FROM_METRICS = (
    "ddcs_best",
    "ddcs_average",
    "covered",
    "coverage",
    "leakage_gap",
    "flagged",
    "accuracy_top1",
)
"""Measures that come from an audit's metrics.json as they are."""

MEASURES = ("holdout_accuracy", "private_accuracy", *FROM_METRICS, *RATIOS)
"""Everything that is reported of a defence."""

TOLERANCE = 0.02
"""Loss of holdout accuracy that a recommended defence may cost, unless another is given."""


@dataclass(frozen=True)
class Audited:
    """One audit of one model, defended or not.

    measures: each of ``MEASURES`` that could be computed. samples: the audit's ledger, one row for
    each private image, with id and nearest_distance (NaN where its class has no reconstruction) and,
    where risk could be judged, flagged. by_access: the same distances (N,) by access of the attacks,
    in the ledger's order.
    """

    measures: Mapping[str, float]
    samples: pd.DataFrame
    by_access: Mapping[str, np.ndarray] = field(default_factory=dict)
    minutes: float = 0.0
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """One defence over the seeds: ``audits`` by seed, or why there are none (``failed``)."""

    name: str
    level: str
    what: str
    audits: Mapping[int, Audited]
    failed: str | None = None


def audited(
    metrics: Mapping[str, Mapping[str, Any]],
    samples: pd.DataFrame,
    samples_by_set: pd.DataFrame,
    *,
    protected: Sequence[str],
    access: Mapping[str, str],
    accuracies: Mapping[str, float],
    minutes: float,
    facts: Mapping[str, Any],
) -> Audited:
    """What is kept of an audit.

    protected: ids of the private images that sample-level defences were to protect. access: of each
    attack (the sets of ``samples_by_set``) by its name. accuracies: in [0, 1], of the model.
    """
    samples = samples.sort_values("id", ignore_index=True)
    measures = {k: v for k, v in accuracies.items() if k in MEASURES}
    for key in FROM_METRICS:
        value = metrics.get(key, {}).get("value")
        if value is not None:
            measures[key] = float(value)
    logs = _logs(samples["nearest_distance"])
    chosen = samples["id"].isin(list(protected)).to_numpy()
    everyone = np.ones_like(chosen)
    for key, rows in zip(RATIOS, (everyone, chosen, ~chosen), strict=True):
        if np.isfinite(logs[rows]).any():
            measures[key] = math.exp(float(np.nanmean(logs[rows])))
    nearest = samples_by_set.assign(access=samples_by_set["set"].map(dict(access)))
    table = nearest.groupby(["access", "id"])["nearest_distance"].min().unstack(0)
    by_access = {str(a): table[a].reindex(samples["id"]).to_numpy() for a in table.columns}
    return Audited(measures, samples, by_access, minutes, facts)


def summarise(outcomes: Sequence[Outcome], *, tolerance: float = TOLERANCE) -> dict[str, Any]:
    """The keys ``defences`` and ``recommendation`` of defences.json.

    ``outcomes`` hold the undefended model under ``NONE``. Means and 95 % intervals by Student's t are
    over seeds; changes are of pairs of one seed.
    """
    base = next(o for o in outcomes if o.name == NONE)
    rows = [_row(one, base) for one in outcomes]
    return {"defences": rows, "recommendation": recommend(rows, tolerance=tolerance)}


def interval(values: Sequence[float]) -> dict[str, Any]:
    """Mean and 95 % interval by Student's t of ``values``; no bounds for one value."""
    if not values:
        return {"mean": None, "low": None, "high": None, "values": []}
    mean = statistics.fmean(values)
    half = None
    if len(values) > 1:
        spread = statistics.stdev(values) / math.sqrt(len(values))
        half = float(t.ppf(0.975, len(values) - 1)) * spread
    return {
        "mean": mean,
        "low": None if half is None else mean - half,
        "high": None if half is None else mean + half,
        "values": list(values),
    }


def recommend(rows: Sequence[Mapping[str, Any]], *, tolerance: float) -> dict[str, Any]:
    """Which defence to take, and why: ``{"defence": name or None, "reason": text}``.

    A defence is shown to help if over the seeds DDCS or the leakage gap falls by more than chance (the
    interval of the change lies below 0) while neither rises by more than chance, and it is eligible
    if its mean holdout accuracy falls by at most ``tolerance`` and white box stays the stronger
    attack. Of those the one with the lowest DDCS is named.
    """
    points = f"{100 * tolerance:g} percentage points of holdout accuracy"
    tried = [row for row in rows if row["level"] != "none" and row["failed"] is None]
    if not tried:
        return {"defence": None, "reason": "No defence could be trained and audited."}
    if min(row["seeds"] for row in tried) < 2:
        return {
            "defence": None,
            "reason": "One seed tells no difference from chance: repeat with --seeds 3 or more.",
        }
    cheap = [row for row in tried if _loss(row) <= tolerance]
    helping = [row for row in cheap if _helps(row)]
    honest = [row for row in helping if not row["hides"]]
    if honest:
        best = min(honest, key=lambda row: row["measures"]["ddcs_best"]["mean"])
        ddcs, gap = (best["changes"].get(k, {}).get("mean") for k in ("ddcs_best", "leakage_gap"))
        loss = 100 * _loss(best)
        cost = f"costs {loss:.1f}" if loss > 0 else f"gains {-loss:.1f}"
        moved = f"DDCS by {ddcs:+.3g}" + ("" if gap is None else f", the leakage gap by {gap:+.3g}")
        return {
            "defence": best["name"],
            "reason": f"Of the {len(tried)} tried it leaves the lowest DDCS of those shown to help. "
            f"It changes {moved}, and {cost} percentage points of holdout accuracy (means over "
            f"{best['seeds']} seeds).",
        }
    if helping:
        names = ", ".join(row["name"] for row in helping)
        return {
            "defence": None,
            "reason": f"{names}: leakage falls at a loss of at most {points}, but black box comes "
            "nearer than white box, so that gradients may only be hidden.",
        }
    shown = [row for row in tried if _helps(row)]
    if shown:
        best = min(shown, key=_loss)
        return {
            "defence": None,
            "reason": f"None lowers leakage by more than chance at a loss of at most {points}. The "
            f"cheapest that does is {best['name']}, which costs {100 * _loss(best):.1f}.",
        }
    return {
        "defence": None,
        "reason": f"None of the {len(tried)} tried is shown to lower leakage: no change of DDCS or of "
        f"the leakage gap is larger than chance over {tried[0]['seeds']} seeds.",
    }


def per_image(outcomes: Sequence[Outcome], protected: Sequence[str]) -> pd.DataFrame:
    """images.parquet: a row for each defence and private image, before (undefended) and after.

    Distances are geometric means over the seeds that both have, ``ratio`` is after / before (below 1:
    more exposed), and ``flagged_*`` the share of seeds in which the image was flagged, NaN where
    risk was not judged.
    """
    base = next(o for o in outcomes if o.name == NONE)
    frames = []
    for one in outcomes:
        seeds = [s for s in one.audits if s in base.audits]
        if one.name == NONE or not seeds:
            continue
        first = base.audits[seeds[0]].samples
        before, after = (
            np.stack([_logs(o.audits[s].samples["nearest_distance"]) for s in seeds])
            for o in (base, one)
        )
        change = (after - before).mean(0)
        frames.append(
            pd.DataFrame(
                {
                    "defence": one.name,
                    "id": first["id"],
                    "label": first["label"],
                    "protected": first["id"].isin(list(protected)),
                    "nearest_distance_before": np.exp(before.mean(0)),
                    "nearest_distance": np.exp(after.mean(0)),
                    "ratio": np.exp(change),
                    "flagged_before": np.mean([_flags(base.audits[s]) for s in seeds], axis=0),
                    "flagged_after": np.mean([_flags(one.audits[s]) for s in seeds], axis=0),
                }
            )
        )
    columns = (
        "defence", "id", "label", "protected", "nearest_distance_before", "nearest_distance",
        "ratio", "flagged_before", "flagged_after",
    )  # fmt: skip
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=list(columns))


def _row(one: Outcome, base: Outcome) -> dict[str, Any]:
    seeds = list(one.audits)
    shared = [s for s in seeds if s in base.audits]
    changes: dict[str, Any] = {}
    exposure = None
    if one.name != NONE and shared:
        for key in MEASURES:
            pairs = [(one.audits[s].measures, base.audits[s].measures) for s in shared]
            found = [(a[key], b[key]) for a, b in pairs if key in a and key in b]
            if not found:
                continue
            if key in RATIOS:
                # Means and intervals of ratios belong to their logarithms.
                logs = interval([math.log(a / b) for a, b in found])
                changes[key] = {
                    k: None if logs[k] is None else math.exp(logs[k])
                    for k in ("mean", "low", "high")
                } | {"values": [a / b for a, b in found]}
            else:
                changes[key] = interval([a - b for a, b in found])
        exposure = _exposure(one, base, shared)
    masked, hides = _masked(one, base)
    return {
        "name": one.name,
        "level": one.level,
        "what": one.what,
        "failed": one.failed,
        "seeds": len(seeds),
        "minutes": round(sum(a.minutes for a in one.audits.values()), 2),
        "measures": {
            key: interval([a.measures[key] for a in one.audits.values() if key in a.measures])
            for key in MEASURES
            if any(key in a.measures for a in one.audits.values())
        },
        "changes": changes,
        "exposure": exposure,
        "masked": masked,
        "hides": hides,
        "facts": dict(one.audits[seeds[0]].facts) if seeds else {},
    }


def _exposure(one: Outcome, base: Outcome, seeds: Sequence[int]) -> dict[str, Any]:
    """Images that moved. Flags count where they hold in most seeds."""
    ids = base.audits[seeds[0]].samples["id"].to_numpy()
    changes = np.stack(
        [
            _logs(one.audits[s].samples["nearest_distance"])
            - _logs(base.audits[s].samples["nearest_distance"])
            for s in seeds
        ]
    )
    known = np.isfinite(changes).all(0)
    mean = changes.mean(0)
    before = np.mean([_flags(base.audits[s]) for s in seeds], axis=0) > 0.5
    after = np.mean([_flags(one.audits[s]) for s in seeds], axis=0) > 0.5
    return {
        "nearer": int((mean[known] < 0).sum()),
        "farther": int((mean[known] > 0).sum()),
        "newly_flagged": ids[after & ~before].tolist(),
        "no_longer_flagged": ids[before & ~after].tolist(),
        # Of one seed that would be half of all images by chance.
        "nearer_in_every_seed": ids[known & (changes < 0).all(0)].tolist()
        if len(seeds) > 1
        else [],
    }


def _masked(one: Outcome, base: Outcome) -> tuple[str | None, bool]:
    """A sentence if white box came out weaker than black box, and whether the defence did that."""
    own, reference = _white_over_black(one), _white_over_black(base)
    if own is None or own[1] <= 0:
        return None, False
    factor = math.exp(own[0])
    text = (
        f"white box comes out weaker than black box: its nearest reconstructions lie {factor:.2f} "
        "times as far (geometric mean over private images)"
    )
    if one.level == "none":
        return f"{text}, without any defence", False
    if reference is not None and reference[1] > 0:
        return f"{text}; so they do without a defence ({math.exp(reference[0]):.2f})", False
    return f"{text}, which they do not without a defence: it may only hide gradients", True


def _white_over_black(one: Outcome) -> tuple[float, float] | None:
    """Mean log ratio of white box's distances to black box's over images, and its lower 95 % bound."""
    ratios = []
    for audit in one.audits.values():
        white = audit.by_access.get("white-box")
        others = [d for access, d in audit.by_access.items() if access != "white-box"]
        if white is None or not others:
            continue
        black = np.fmin.reduce(others)
        ratios.append(_logs(white) - _logs(black))
    if not ratios:
        return None
    # Images, not seeds: the question is of these trainings, and seeds of one image go together.
    mean = np.nanmean(np.stack(ratios), axis=0)
    found = interval(mean[np.isfinite(mean)].tolist())
    if found["mean"] is None or found["low"] is None:
        return None
    return float(found["mean"]), float(found["low"])


def _loss(row: Mapping[str, Any]) -> float:
    change = row["changes"].get("holdout_accuracy")
    return math.inf if change is None or change["mean"] is None else -float(change["mean"])


def _helps(row: Mapping[str, Any]) -> bool:
    found = [row["changes"][k] for k in ("ddcs_best", "leakage_gap") if k in row["changes"]]
    bounds = [(c["low"], c["high"]) for c in found if c["low"] is not None]
    return any(high < 0 for _, high in bounds) and not any(low > 0 for low, _ in bounds)


def _logs(distances: Any) -> np.ndarray:
    """Logarithms, of 1e-6 at least: nearer than that is a copy."""
    values = np.asarray(distances, dtype=np.float64)
    return np.log(np.maximum(values, 1e-6))


def _flags(one: Audited) -> np.ndarray:
    if "flagged" not in one.samples:
        return np.full(len(one.samples), np.nan)
    return one.samples["flagged"].astype("Float64").to_numpy(dtype=np.float64, na_value=np.nan)
