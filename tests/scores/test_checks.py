from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from inversight.core.errors import InputError
from inversight.embeddings.base import Features
from inversight.scores import ddcs, frechet_distance, knn_distance, prdc
from tests.scores.build import features

GOOD = features([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]], labels=[0, 1, 1])


def broken(value: float) -> Features:
    block = GOOD.blocks[0].clone()
    block[1, 0] = value
    return replace(GOOD, blocks=(block,))


BAD = [
    (features(torch.empty(0, 2)), "at least one image"),
    (replace(GOOD, labels=GOOD.labels[:2]), "one integer label for each of 3 ids"),
    (replace(GOOD, labels=GOOD.labels.float()), "one integer label"),
    (replace(GOOD, ids=("a", "b", "a")), "found a 2 times"),
    (replace(GOOD, blocks=()), "at least one block"),
    (replace(GOOD, blocks=(GOOD.blocks[0][:2],)), r"shape \(3, D\), found \(2, 2\)"),
    (broken(float("nan")), "infinity for p0001"),
    (broken(float("inf")), "infinity for p0001"),
    (broken(float("-inf")), "infinity for p0001"),
]
SCORES: list[Callable[[Features, Features], object]] = [
    lambda a, b: ddcs(a, b, rng=torch.Generator()),
    prdc,
    frechet_distance,
    knn_distance,
]


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize(("bad", "message"), BAD)
def test_unusable_features_are_refused_in_one_line(
    score: Callable[[Features, Features], object], bad: Features, message: str
) -> None:
    for role, pair in (("private", (bad, GOOD)), ("reconstructions", (GOOD, bad))):
        with pytest.raises(InputError, match=f"{role}: .*{message}") as caught:
            score(*pair)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("score", SCORES)
def test_features_of_two_embeddings_are_refused(
    score: Callable[[Features, Features], object],
) -> None:
    other = replace(GOOD, blocks=(torch.zeros(3, 5),))
    with pytest.raises(InputError, match=r"\[2\] wide, as private has, found \[5\]"):
        score(GOOD, other)


@pytest.mark.parametrize("score", [SCORES[0], prdc, knn_distance])
def test_a_reconstruction_of_a_class_private_lacks_is_refused(
    score: Callable[[Features, Features], object],
) -> None:
    with pytest.raises(InputError, match="class 7 for p0002"):
        score(GOOD, replace(GOOD, labels=torch.tensor([0, 1, 7])))


def test_large_finite_features_are_not_taken_for_infinity() -> None:
    huge = features([[3e38, 3e38], [3e38, 3e38]])
    assert frechet_distance(huge, huge).summary["frechet"].value == 0.0
