"""The paper's number: DDCS under LPIPS at 256 x 256 against a slow loop around the ``lpips`` package.

Two hundred images are of 64 x 64. Weights are random, and the published ones as well where they are at hand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

import pytest
import torch
from torch import Tensor

from inversight.core.errors import WeightsError
from inversight.embeddings.lpips import _BACKBONE, Lpips, Net
from inversight.embeddings.weights import load_weights
from inversight.scores import DDCS
from tests.embeddings.networks import authors, authors_with, backbone


@dataclass
class Case:
    private: Tensor
    labels: list[int]
    made: Tensor
    classes: list[int]


def pictures(n: int, seed: int, size: int = 256) -> Tensor:
    """Smooth colour images, uint8 (n, 3, size, size)."""
    rng = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, 12, 12, generator=rng)
    fine = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic")
    return (255 * fine.clamp(0, 1)).round().to(torch.uint8)


def interleaved() -> Case:
    return Case(pictures(6, 0), [2, 0, 2, 1, 0, 2], pictures(7, 1), [0, 2, 1, 2, 0, 2, 1])


def duplicated() -> Case:
    private, made = pictures(4, 2), pictures(5, 3)
    private[3] = private[1]
    made[4] = made[0]
    made[2] = private[0]  # an exact hit
    return Case(private, [0] * 4, made, [0] * 5)


def many_to_one() -> Case:
    private = pictures(4, 4)
    noise = torch.randint(-6, 7, (3, 3, 256, 256), generator=torch.Generator().manual_seed(5))
    made = (private[2].int() + noise).clamp(0, 255).to(torch.uint8)
    return Case(private, [0] * 4, made, [0] * 3)


def mixed(size: int) -> Case:
    """All of these with as few pairs as that takes: interleaved classes, one of them of a pair of
    equal images, an exact hit, and three near one private image, two of them equal."""
    private, made = pictures(5, 9, size), pictures(5, 10, size)
    private[3] = private[1]
    made[1] = private[1]
    noise = torch.randint(-6, 7, (3, size, size), generator=torch.Generator().manual_seed(11))
    for row, times in ((0, 1), (2, 1), (4, 3)):
        made[row] = (private[4].int() + times * noise).clamp(0, 255).to(torch.uint8)
    return Case(private, [1, 0, 2, 0, 2], made, [2, 0, 2, 1, 2])


def ragged(size: int) -> Case:
    """Classes of 1, 3 and 200 private images."""
    labels = [0] + [1] * 3 + [2] * 200
    order = torch.randperm(204, generator=torch.Generator().manual_seed(6)).tolist()
    private = pictures(204, 7, size)
    return Case(private, [labels[i] for i in order], pictures(4, 8, size), [1, 2, 0, 1])


def loop(model: torch.nn.Module, case: Case) -> tuple[list[float], list[float]]:
    """Each private image's best and average score, one pair of images after another."""
    assigned: list[list[float]] = [[] for _ in case.labels]
    for image, label in zip(case.made, case.classes, strict=True):
        rows = [i for i, y in enumerate(case.labels) if y == label]
        distances = []
        for part in torch.tensor(rows).split(20):
            theirs = case.private[part].float() / 127.5 - 1
            ours = (image.float() / 127.5 - 1).expand_as(theirs)
            with torch.no_grad():
                distances += model(ours, theirs).flatten().tolist()
        nearest = min(range(len(rows)), key=distances.__getitem__)
        assigned[rows[nearest]].append(distances[nearest])
    best = [1 / max(min(d), 1e-6) if d else 0.0 for d in assigned]
    average = [1 / max(sum(d) / len(d), 1e-6) if d else 0.0 for d in assigned]
    return best, average


def check(net: Net, case: Case, state: dict[str, Tensor] | None = None) -> None:
    """With ``state`` as the network's backbone, or a random one."""
    expected = loop(authors_with(net, state) if state else authors(net), case)
    # Rows are named in their order, so that of two identical images the first one is credited.
    embedding = Lpips(net, size=case.private.shape[-1], backbone=state or backbone(net))
    metric = DDCS(case.private, case.labels, embedding=embedding, bootstrap=0)
    metric.update(case.made, case.classes)
    found = metric.compute()
    for key, column in zip(("ddcs_best", "ddcs_average"), expected, strict=True):
        assert found.per_sample[key].tolist() == pytest.approx(column, rel=1e-5), key
        assert found.summary[key].value == pytest.approx(sum(column) / len(column), rel=1e-5)


@pytest.mark.parametrize("case", [interleaved, duplicated, many_to_one])
@pytest.mark.parametrize("net", ["alex", "squeeze"])
def test_equals_a_loop_around_the_package(net: Net, case: Callable[[], Case]) -> None:
    check(net, case())


def test_equals_it_with_vgg() -> None:
    check("vgg", mixed(128))  # at 256 the loop takes a second a pair; test_pairs has that size


def test_ragged_classes_up_to_two_hundred_images() -> None:
    check("alex", ragged(64))


@pytest.mark.parametrize("net", get_args(Net))
def test_the_same_with_published_weights(net: Net) -> None:
    try:
        state = load_weights(_BACKBONE[net])
    except WeightsError:
        pytest.skip(f"the published weights of {net} are not here; see inversight weights list")
    check(net, interleaved(), state)
    check(net, many_to_one(), state)
