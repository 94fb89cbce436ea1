"""Scores: features in, a frozen result out, independent of attacks and targets.

They take tensors or NumPy arrays, as in ``ddcs((values, labels), (values, labels))``. :class:`DDCS`
takes images in batches.
"""

from inversight.scores.accuracy import accuracy
from inversight.scores.assignment import Assigner, Assignment, union
from inversight.scores.control_gap import first_of_each, gap_to_control
from inversight.scores.coverage import prdc
from inversight.scores.ddcs import DDCSResult, ddcs, ddcs_of
from inversight.scores.frechet import frechet_distance
from inversight.scores.kid import kernel_distance
from inversight.scores.knn import knn_distance
from inversight.scores.metric import DDCS
from inversight.scores.pairwise import dists, dists_network, psnr, ssim
from inversight.scores.result import ScoreResult, Summary

__all__ = [
    "DDCS", "Assigner", "Assignment", "DDCSResult", "ScoreResult", "Summary", "accuracy", "ddcs",
    "ddcs_of", "dists", "dists_network", "first_of_each", "frechet_distance", "gap_to_control",
    "kernel_distance", "knn_distance", "prdc", "psnr", "ssim", "union",
]  # fmt: skip
