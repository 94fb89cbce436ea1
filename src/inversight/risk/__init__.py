"""Risk: scores calibrated against a holdout, images of the same classes that the target never saw.

:func:`calibrate` flags private images that are nearer to the reconstructions than such images are by
chance; :func:`distance_gap` and :func:`leakage_gap` compare the two sets as a whole.
:mod:`inversight.risk.exposure` compares each image with itself, over shadow models trained with and without it.
"""

from inversight.risk.calibration import (
    benjamini_hochberg,
    calibrate,
    check_embedding,
    check_rate,
    smallest_possible,
)
from inversight.risk.covariates import public_covariates
from inversight.risk.gap import distance_gap, leakage_gap, leakage_gap_of

__all__ = [
    "benjamini_hochberg",
    "calibrate",
    "check_embedding",
    "check_rate",
    "distance_gap",
    "leakage_gap",
    "leakage_gap_of",
    "public_covariates",
    "smallest_possible",
]
