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
    (replace(GOOD, labels=GOOD.labels[:2]), "expected 3 integers"),
    (replace(GOOD, labels=GOOD.labels.float()), "expected 3 integers.*type torch.float32"),
    (replace(GOOD, ids=("a", "b", "a")), "found a 2 times"),
    (replace(GOOD, blocks=()), "at least one block"),
    (replace(GOOD, blocks=(GOOD.blocks[0][:2],)), r"shape \(3, D\), found \(2, 2\)"),
    *((broken(value), "infinity for p0001") for value in (torch.nan, torch.inf, -torch.inf)),
]
Score = Callable[[Features, Features], object]
BY_CLASS = pytest.mark.parametrize("score", [ddcs, prdc, knn_distance])
ALL = pytest.mark.parametrize("score", [ddcs, prdc, knn_distance, frechet_distance])


@ALL
@pytest.mark.parametrize(("bad", "message"), BAD)
def test_rejects_unusable_features(score: Score, bad: Features, message: str) -> None:
    for role, pair in (("private", (bad, GOOD)), ("reconstructions", (GOOD, bad))):
        with pytest.raises(InputError, match=f"{role}.*: .*{message}") as caught:
            score(*pair)
        assert "\n" not in str(caught.value)


@ALL
def test_rejects_features_of_two_embeddings(score: Score) -> None:
    with pytest.raises(InputError, match=r"\[2\] wide, as private has, found \[5\]"):
        score(GOOD, replace(GOOD, blocks=(torch.zeros(3, 5),)))


@BY_CLASS
def test_rejects_reconstructions_of_other_classes(score: Score) -> None:
    with pytest.raises(InputError, match="class 7 for p0002"):
        score(GOOD, replace(GOOD, labels=torch.tensor([0, 1, 7])))


def test_accepts_large_finite_features() -> None:
    huge = features([[3e38, 3e38], [3e38, 3e38]])
    assert frechet_distance(huge, huge).summary["frechet"].value == 0.0
