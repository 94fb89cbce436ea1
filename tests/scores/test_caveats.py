"""What a value cannot tell stands beside it; values alone are taken where labels do not matter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from inversight.scores import ScoreResult, Summary, ddcs, frechet_distance, kernel_distance, prdc
from tests.draws import normal
from tests.refusals import refused
from tests.scores.build import features

SCORES = (frechet_distance, kernel_distance, prdc)


def caveat(result: ScoreResult, key: str) -> str | None:
    return result.summary[key].caveat


@pytest.mark.parametrize(("n", "m", "few"), [(10, 9, 0), (9, 9, 0), (8, 20, 8), (20, 5, 5)])
def test_frechet_distance_of_fewer_images_than_dimensions(n: int, m: int, few: int) -> None:
    result = frechet_distance(normal(n, 9), normal(m, 9, seed=1))
    text = caveat(result, "frechet") or ""
    assert text.startswith(f"{few} images do not determine a covariance of 9 dim" if few else "")
    assert bool(text) is bool(few) is ("caveat" in result.summary["frechet"].as_json())


def test_a_caveat_holds_what_it_says() -> None:
    """Two samples of one distribution: far apart with few images, near with many."""
    few, many = (
        frechet_distance(normal(n, 64), normal(n, 64, seed=1)).summary["frechet"].value or 0.0
        for n in (20, 2000)
    )
    assert few > 20 * many


def test_coverage_of_small_classes() -> None:
    k = 3
    labels = [0] * (2 * k) + [1] * (2 * k - 1)
    real = features(normal(len(labels), 4), labels)
    made = features(normal(4 * k, 4, seed=1), [0, 1] * (2 * k), prefix="r")
    found = prdc(real, made, k=k)
    for key in ("precision", "density", "coverage"):
        text = caveat(found, key) or ""
        assert text.startswith("1 of 2 classes have fewer than 6 private images")
    assert caveat(found, "recall") is None
    other = prdc(made, real, k=k)
    assert (caveat(other, "recall") or "").startswith("1 of 2 classes have fewer than 6 recons")
    assert caveat(other, "coverage") is None


def test_without_a_value_there_is_no_caveat() -> None:
    assert Summary(None, reason="none").with_caveat("x").caveat is None
    assert caveat(frechet_distance(normal(1, 9), normal(5, 9)), "frechet") is None
    twice = Summary(1.0).with_caveat("a").with_caveat(None).with_caveat("b")
    assert twice.as_json()["caveat"] == "a; b"


@pytest.mark.parametrize("kind", [torch.as_tensor, np.asarray, Tensor.tolist])
@pytest.mark.parametrize("score", SCORES)
def test_values_alone_are_one_class(
    score: Callable[..., ScoreResult], kind: Callable[[Tensor], Any]
) -> None:
    real, made = normal(30, 4), normal(20, 4, seed=1)
    whole = score((real, torch.zeros(30, dtype=torch.int64)), (made, torch.zeros(20).long()))
    assert score(kind(real), kind(made)).summary == whole.summary


def test_values_alone_beside_labelled_ones() -> None:
    real, made = normal(30, 4), features(normal(20, 4, seed=1), torch.arange(20))
    for score in (frechet_distance, kernel_distance):
        assert score(real, made).summary == score(real, made.flat()).summary
    with refused("labels on both sides or on neither"):
        prdc(real, made)
    with refused("expected Features or a pair (values, labels), found Tensor"):
        ddcs(real, real)  # type: ignore[arg-type]
