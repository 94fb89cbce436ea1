"""The paper's number: DDCS under LPIPS at 256 x 256 against a slow loop around the ``lpips`` package.

Weights are random, and the published ones as well where they are at hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import pytest
import torch
from torch import Tensor

from inversight.core.errors import WeightsError
from inversight.embeddings.lpips import _BACKBONE, Lpips, Net
from inversight.embeddings.weights import load_weights
from inversight.scores import DDCS
from tests.draws import rng, uniform
from tests.embeddings.networks import authors, authors_with, network


@dataclass
class Case:
    private: Tensor
    labels: list[int]
    made: Tensor
    classes: list[int]


def pictures(n: int, seed: int, size: int) -> Tensor:
    """Return smooth colour images, uint8 (n, 3, size, size)."""
    coarse = uniform(n, 3, 12, 12, seed=seed)
    fine = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic")
    return (255 * fine.clamp(0, 1)).round().to(torch.uint8)


def mixed(size: int) -> Case:
    """Interleaved classes, one of them of two equal images, an exact hit, and three reconstructions near
    one private image, two of them equal."""
    private, made = pictures(5, 9, size), pictures(5, 10, size)
    private[3] = private[1]
    made[1] = private[1]
    step = torch.randint(-6, 7, (3, size, size), generator=rng(11))
    for row, times in ((0, 1), (2, 1), (4, 3)):
        made[row] = (private[4].int() + times * step).clamp(0, 255).to(torch.uint8)
    return Case(private, [1, 0, 2, 0, 2], made, [2, 0, 2, 1, 2])


def ragged(size: int) -> Case:
    """Classes of 1, 3 and 100 private images."""
    labels = torch.tensor([0] + [1] * 3 + [2] * 100)[torch.randperm(104, generator=rng(6))]
    return Case(pictures(104, 7, size), labels.tolist(), pictures(4, 8, size), [1, 2, 0, 1])


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
    """Compare with the loop, with ``state`` as the network's backbone, or a random one."""
    expected = loop(authors_with(net, state) if state else authors(net), case)
    # Rows are named in their order, so that of two identical images the first one is credited.
    size = case.private.shape[-1]
    embedding = Lpips(net, size=size, backbone=state) if state else network(net, size)
    metric = DDCS(case.private, case.labels, embedding=embedding, bootstrap=0)
    metric.update(case.made, case.classes)
    found = metric.compute()
    for key, column in zip(("ddcs_best", "ddcs_average"), expected, strict=True):
        assert found.per_sample[key].tolist() == pytest.approx(column, rel=1e-5), key
        assert found.summary[key].value == pytest.approx(sum(column) / len(column), rel=1e-5)


@pytest.mark.parametrize(("net", "size"), [("alex", 256), ("squeeze", 256), ("vgg", 64)])
def test_equals_a_loop_around_the_package(net: Net, size: int) -> None:
    check(net, mixed(size))  # test_pairs has VGG at 256, where a pair takes a second


def test_classes_of_unequal_size() -> None:
    check("alex", ragged(64))


@pytest.mark.parametrize("net", get_args(Net))
def test_equals_it_with_published_weights(net: Net) -> None:
    try:
        state = load_weights(_BACKBONE[net])
    except WeightsError:
        pytest.skip(f"the published weights of {net} are not here; see inversight weights list")
    check(net, mixed(256), state)
