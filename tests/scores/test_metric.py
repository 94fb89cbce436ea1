"""DDCS for one's own loop: batches add up, nothing is compared twice, wrong input is rejected."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from inversight.core.errors import ConfigError, InputError
from inversight.embeddings import Embedding
from inversight.embeddings.pixel import Pixel
from inversight.scores import DDCS, DDCSResult, ddcs
from tests.draws import noise
from tests.embeddings.networks import network
from tests.scores.build import gaussian


def same(found: DDCSResult, expected: DDCSResult, rel: float = 1e-6) -> None:
    for key, column in expected.per_sample.items():
        torch.testing.assert_close(found.per_sample[key], column, rtol=rel, atol=0, equal_nan=True)
    for key, summary in expected.summary.items():
        assert found.summary[key].value == pytest.approx(summary.value, rel=rel)
        assert found.summary[key].low == pytest.approx(summary.low, rel=rel)


PRIVATE, MADE = gaussian(23, 6, classes=3), gaussian(31, 6, classes=3, seed=1, prefix="r")
BY_ROW = ddcs((PRIVATE.flat(), PRIVATE.labels), (MADE.flat(), MADE.labels))
"""Scores of plain arrays: without ids, rows are resampled in their own order."""


@pytest.mark.parametrize("convert", [Tensor.clone, Tensor.numpy, Tensor.tolist])
def test_plain_arrays_score_like_features(convert: Any) -> None:
    private, made = ((convert(side.flat()), convert(side.labels)) for side in (PRIVATE, MADE))
    same(ddcs(private, made), BY_ROW)
    best, named = (r.per_sample["ddcs_best"] for r in (BY_ROW, ddcs(PRIVATE, MADE)))
    torch.testing.assert_close(best, named, rtol=1e-9, atol=0)
    metric = DDCS(*private)
    metric.update(*made)
    same(metric.compute(), BY_ROW)


@pytest.mark.parametrize("sizes", [[31], [1, 30], [10, 0, 10, 11], [1] * 31])
def test_batches_add_up(sizes: list[int]) -> None:
    metric = DDCS(PRIVATE.flat(), PRIVATE.labels, ids=PRIVATE.ids)
    for rows in torch.arange(31).split(sizes):
        part = MADE.select(rows)
        metric.update(part.flat(), part.labels, ids=part.ids)
    found, expected = metric.compute(), ddcs(PRIVATE, MADE)
    same(found, expected)
    assert found.nearest_reconstruction == expected.nearest_reconstruction


def test_computing_between_updates_does_not_change_the_result() -> None:
    metric = DDCS(PRIVATE.flat(), PRIVATE.labels, ids=PRIVATE.ids)
    for part in torch.arange(31).split(7):
        metric.update(MADE.flat()[part], MADE.labels[part])
        same(metric.compute(), ddcs(PRIVATE, MADE.select(torch.arange(int(part[-1]) + 1))))
    metric.reset()
    with pytest.raises(InputError, match="call update first"):
        metric.compute()
    metric.update(MADE.flat(), MADE.labels)
    same(metric.compute(), ddcs(PRIVATE, MADE))


class Counting:
    """Counts the images that it embeds."""

    name = "counting"

    def __init__(self, inner: Embedding) -> None:
        self.inner, self.seen = inner, 0

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        self.seen += len(images)
        return self.inner(images)


def test_images_are_not_embedded_again() -> None:
    embedding = Counting(Pixel((16, 16)))
    metric = DDCS(noise(12), torch.arange(12) % 2, embedding=embedding)
    for seed in range(1, 4):
        before = embedding.seen
        metric.update(noise(5, seed=seed), torch.arange(5) % 2)
        metric.compute()
        assert embedding.seen - before == 5


@pytest.mark.parametrize("memory", [100_000, 2 << 30])
def test_images_under_lpips_in_batches(memory: int) -> None:
    embedding = network("alex")
    private, labels = noise(7), torch.tensor([4, 4, 9, 4, 9, 9, 4])
    made, classes = noise(11, seed=1), torch.tensor([9, 4] * 5 + [4])

    def features(images: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([b.double() for b in embedding(images.float() / 255)], dim=1)

    expected = ddcs((features(private), labels), (features(made), classes))
    metric = DDCS(private, labels, embedding=embedding, memory=memory)
    for part in torch.arange(11).split(3):
        metric.update(made[part].float() / 255, classes[part])
    same(metric.compute(), expected, rel=1e-5)


NAN = torch.tensor([[0.0], [float("nan")], [0.0]]).expand(3, 4)


@pytest.mark.parametrize(
    ("values", "labels", "message"),
    [
        (NAN, [0, 0, 0], "finite features.*row 1"),
        (torch.rand(3, 4), [0, 0], "expected 3 integers"),
        (torch.rand(2, 4), [True, False], "type torch.bool"),
        (torch.rand(3, 4), [0.0, 0.0, 1.0], "integers"),
        (torch.rand(3, 4), [0, 0, 7], "class 7"),
        (torch.rand(3, 5), [0, 0, 0], "features of shape"),
        (["a", "b"], [0, 0], "array of numbers"),
    ],
)
def test_rejects_unusable_features(values: Any, labels: list[int], message: str) -> None:
    metric = DDCS(torch.rand(4, 4), [0, 0, 1, 1])
    with pytest.raises(InputError, match=message):
        metric.update(values, labels)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.rand(2, 3, 8, 8) * 2 - 1, r"\[0, 1\], found values from"),
        (torch.rand(2, 3, 8, 8) * 255, "divide by 255"),
        (torch.full((2, 3, 8, 8), float("nan")), r"\[0, 1\]"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.int64), "uint8 or floats"),
        (torch.rand(2, 4, 8, 8), "1 or 3"),
        (torch.rand(2, 8, 8), "1 or 3"),
    ],
)
def test_rejects_unusable_images(images: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        DDCS(images, [0, 1], embedding=Pixel((8, 8)))
    metric = DDCS(torch.rand(2, 3, 8, 8), [0, 1], embedding=Pixel((8, 8)))
    with pytest.raises(InputError, match=message):
        metric.update(images.numpy(), [0, 1])


def test_rejects_equal_names_and_options_out_of_range() -> None:
    metric = DDCS(torch.rand(2, 3), [0, 1])
    for _ in range(2):
        metric.update(torch.rand(1, 3), [0], ids=["same"])
    with pytest.raises(InputError, match="distinct ids"):
        metric.compute()
    with pytest.raises(InputError, match="2 distinct names"):
        DDCS(torch.rand(2, 3), [0, 1], ids=["a", "a"])
    with pytest.raises(InputError, match="at least one image"):
        DDCS(torch.rand(0, 3), torch.empty(0, dtype=torch.int64))
    bad = DDCS(torch.rand(2, 3), [0, 1], floor=0.0)
    bad.update(torch.rand(1, 3), [0])
    with pytest.raises(ConfigError, match="floor"):
        bad.compute()
