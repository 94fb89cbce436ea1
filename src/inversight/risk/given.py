"""A given model against shadow models: is it nearer to its private images than they would be?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

from inversight.core.errors import InputError
from inversight.risk.design import Groups
from inversight.risk.experiment import (
    ArrayOf,
    Bools,
    Experiment,
    Floats,
    as_experiment,
    centre,
    check_halves,
)
from inversight.risk.moderation import moderate
from inversight.scores.checks import as_array

LEAST = 6
"""Shadow models below which a given model cannot be compared with them: without one pair, two are left
on either side."""


@dataclass(frozen=True)
class GivenModel:
    """The result of :func:`given_model`.

    z: (N,) float64, NaN where nothing is known, higher is nearer than without training on the image.
    auc: in [0, 1], higher is more leakage, 0.5 with none; None with its ``reason``. p_value: in (0, 1],
    lower is more leakage. shadow_aucs: (K,), the same of each shadow model.
    """

    z: Tensor
    auc: float | None
    p_value: float | None
    reason: str | None
    shadow_aucs: Tensor


def given_model(
    log_distances: ArrayOf,
    membership: ArrayOf,
    labels: ArrayOf,
    given: ArrayOf,
    private: ArrayOf,
    groups: Groups | None = None,
    *,
    twins: Tensor | None = None,
) -> GivenModel:
    """Return how near a given model comes to its private images, measured by shadow models.

    z of an image: the mean of its centred log distance over shadow models trained without it less that of
    the given model, over their spread (moderated, within models trained with and without it). The AUC of
    z tells private from holdout images. Its p-value is the rank of that AUC among those of the shadow
    models, each standardised without itself and its complement, for the same partition of the images:
    (1 + number at least as large) / (K + 1). So 24 models cannot give a p-value below 0.04.

    The given model's membership was not drawn at random, and its recipe may be another one than the
    shadow models': this is evidence as far as the recipe is the given model's, never the headline alone.

    Args:
        given: (N,) log distances of the given model, NaN where it has no reconstruction of the class.
        private: (N,) bool: the images that the given model was trained on. The others are holdout.
        log_distances: (K, N). For this and the following arguments see
            :func:`inversight.risk.exposure.exposure`.

    Raises:
        InputError: see :func:`inversight.risk.exposure.exposure`.
    """
    experiment = as_experiment(log_distances, membership, labels, groups, twins, private)
    check_halves(experiment)
    own = as_array(given, "given").cpu().numpy().astype(np.float64)
    if own.shape != experiment.private.shape or np.isinf(own).any():
        raise InputError(
            f"given: expected {len(experiment.private)} finite log distances, one an image (NaN where "
            f"there is none), found shape {own.shape}"
        )
    values, member = centre(experiment), experiment.membership
    single = Experiment(
        own[None], member[:1], experiment.classes, experiment.units, experiment.class_units,
        experiment.private,
    )  # fmt: skip
    z = standardised(centre(single)[0], values, member)
    models = len(values)
    nothing = torch.full((models,), torch.nan, dtype=torch.float64)
    if models < LEAST:
        reason = f"needs at least {LEAST} shadow models, found {models}"
        return GivenModel(torch.from_numpy(z), None, None, reason, nothing)
    aucs = np.array([_shadow(k, values, member, experiment.private) for k in range(models)])
    auc = area(z, experiment.private)
    if auc is None:
        reason = "needs private and holdout images with distances"
        return GivenModel(torch.from_numpy(z), None, None, reason, nothing)
    reached = int((np.nan_to_num(aucs, nan=1.0) >= auc - 1e-12).sum())
    return GivenModel(
        torch.from_numpy(z), auc, (1 + reached) / (models + 1), None, torch.from_numpy(aucs)
    )


def standardised(own: Floats, values: Floats, member: Bools) -> Floats:
    """Return z (N,) of centred values ``own`` (N,) by models' centred values and membership (K, N)."""
    known = np.isfinite(values)
    squares, freedom = np.zeros(len(own)), np.zeros(len(own))
    mean = np.full(len(own), np.nan)
    # The mean that stays is that of models trained without the image.
    for side in (member, ~member):
        count = (known & side).sum(0)
        with np.errstate(invalid="ignore"):
            mean = np.where(known & side, values, 0.0).sum(0) / np.where(count > 0, count, np.nan)
        squares += (np.where(known & side, values - mean, 0.0) ** 2).sum(0)
        freedom += np.maximum(count - 1, 0)
    variance = np.where(freedom > 0, squares / np.maximum(freedom, 1), np.nan)
    spread = np.sqrt(moderate(variance, np.maximum(freedom, 1.0)).variance)
    away = mean - own
    with np.errstate(invalid="ignore", divide="ignore"):
        # Without any spread, only a value of its own stands out.
        return np.where(away == 0, 0.0 * spread, away / spread)


def area(z: Floats, private: Bools) -> float | None:
    """In [0, 1], higher is more leakage: how often z of a private image is above that of a holdout image.

    Ties count half. None without images on either side.
    """
    known = ~np.isnan(z)
    ours, all_known = int((known & private).sum()), int(known.sum())
    if not ours or ours == all_known:
        return None
    ranks = rankdata(z[known])
    above = ranks[private[known]].sum() - ours * (ours + 1) / 2
    return float(above / (ours * (all_known - ours)))


def _shadow(k: int, values: Floats, member: Bools, private: Bools) -> float:
    rest = np.arange(len(values)) // 2 != k // 2
    found = area(standardised(values[k], values[rest], member[rest]), private)
    return np.nan if found is None else found
