"""Scores: features in, a frozen result out. They know nothing of attacks or targets."""

from inversight.scores.accuracy import accuracy
from inversight.scores.coverage import prdc
from inversight.scores.ddcs import DDCSResult, ddcs
from inversight.scores.frechet import frechet_distance
from inversight.scores.knn import knn_distance
from inversight.scores.result import ScoreResult, Summary

__all__ = [
    "DDCSResult",
    "ScoreResult",
    "Summary",
    "accuracy",
    "ddcs",
    "frechet_distance",
    "knn_distance",
    "prdc",
]
