"""The object for one's own loop: batches add up, nothing is compared twice, wrong input is told."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import Tensor

from inversight.core.errors import ConfigError, InputError
from inversight.embeddings.lpips import Lpips
from inversight.embeddings.pixel import Pixel
from inversight.scores import DDCS, DDCSResult, ddcs
from tests.embeddings.networks import backbone
from tests.scores.build import gaussian


def same(found: DDCSResult, expected: DDCSResult) -> None:
    for key, column in expected.per_sample.items():
        torch.testing.assert_close(found.per_sample[key], column, rtol=1e-6, atol=0, equal_nan=True)
    for key, summary in expected.summary.items():
        assert found.summary[key].value == pytest.approx(summary.value, rel=1e-6)
        assert found.summary[key].low == pytest.approx(summary.low, rel=1e-6)


PRIVATE, MADE = gaussian(23, 6, classes=3), gaussian(31, 6, classes=3, seed=1, prefix="r")


@pytest.mark.parametrize("kind", ["tensor", "numpy", "list"])
def test_plain_arrays_score_like_features(kind: str) -> None:
    convert = {"tensor": lambda x: x, "numpy": lambda x: x.numpy(), "list": lambda x: x.tolist()}
    sides = [tuple(convert[kind](x) for x in (s.flat(), s.labels)) for s in (PRIVATE, MADE)]
    # Ids decide the order of resampling alone: given by row here.
    expected = ddcs((PRIVATE.flat(), PRIVATE.labels), (MADE.flat(), MADE.labels))
    same(ddcs(*sides), expected)
    torch.testing.assert_close(
        expected.per_sample["ddcs_best"],
        ddcs(PRIVATE, MADE).per_sample["ddcs_best"],
        rtol=1e-9,
        atol=0,
    )
    metric = DDCS(*sides[0])
    metric.update(*sides[1])
    same(metric.compute(), expected)


@pytest.mark.parametrize("sizes", [[31], [1, 30], [10, 0, 10, 11], [1] * 31])
def test_batches_add_up(sizes: list[int]) -> None:
    metric = DDCS(PRIVATE.flat(), PRIVATE.labels, ids=PRIVATE.ids)
    start = 0
    for size in sizes:
        rows = torch.arange(start, start + size)
        metric.update(
            MADE.flat()[rows], MADE.labels[rows], ids=[MADE.ids[i] for i in rows.tolist()]
        )
        start += size
    found = metric.compute()
    same(found, ddcs(PRIVATE, MADE))
    assert found.nearest_reconstruction == ddcs(PRIVATE, MADE).nearest_reconstruction


def test_computing_in_between_changes_nothing() -> None:
    metric = DDCS(PRIVATE.flat(), PRIVATE.labels, ids=PRIVATE.ids)
    for part in torch.arange(31).split(7):
        metric.update(MADE.flat()[part], MADE.labels[part])
        upto = MADE.select(torch.arange(int(part[-1]) + 1))
        same(metric.compute(), ddcs(PRIVATE, upto))
    metric.reset()
    with pytest.raises(InputError, match="call update first"):
        metric.compute()
    metric.update(MADE.flat(), MADE.labels)
    same(metric.compute(), ddcs(PRIVATE, MADE))


@dataclass
class Counting:
    """Counts the images that it embeds."""

    inner: object
    seen: int = 0
    name: str = field(default="counting")

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        self.seen += len(images)
        return self.inner(images)  # type: ignore[operator]


def pictures(n: int, seed: int = 0, size: int = 16) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, size, size), generator=rng).to(torch.uint8)


def test_private_images_and_old_reconstructions_are_not_embedded_again() -> None:
    embedding = Counting(Pixel((16, 16)))
    private, labels = pictures(12), torch.arange(12) % 2
    metric = DDCS(private, labels, embedding=embedding)
    for seed in range(1, 4):
        before = embedding.seen
        metric.update(pictures(5, seed), torch.arange(5) % 2)
        metric.compute()
        assert embedding.seen - before == 5


@pytest.mark.parametrize("memory", [100_000, 2 << 30])
def test_images_under_lpips_in_any_batches(memory: int) -> None:
    embedding = Lpips("alex", size=64, backbone=backbone("alex"))
    private, labels = pictures(7), torch.tensor([4, 4, 9, 4, 9, 9, 4])
    made, classes = pictures(11, 1), torch.tensor([9, 4] * 5 + [4])

    def features(images: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([b.double() for b in embedding(images.float() / 255)], dim=1)

    expected = ddcs((features(private), labels), (features(made), classes))
    metric = DDCS(private, labels, embedding=embedding, memory=memory)
    for part in torch.arange(11).split(3):
        metric.update(made[part].float() / 255, classes[part])
    found = metric.compute()
    for key in ("ddcs_best", "ddcs_average", "nearest_distance"):
        torch.testing.assert_close(
            found.per_sample[key], expected.per_sample[key], rtol=1e-5, atol=0
        )


def nan(x: Tensor) -> Tensor:
    x = x.clone()
    x[1, 0] = float("nan")
    return x


@pytest.mark.parametrize(
    ("values", "labels", "message"),
    [
        (nan(torch.rand(3, 4)), [0, 0, 0], "finite features"),
        (torch.rand(3, 4), [0, 0], "expected 3 integers"),
        (torch.rand(3, 4), [0.0, 0.0, 1.0], "integers"),
        (torch.rand(3, 4), [0, 0, 7], "class 7"),
        (torch.rand(3, 5), [0, 0, 0], "features of shape"),
        (["a", "b"], [0, 0], "array of numbers|finite features"),
    ],
)
def test_wrong_features_are_told(values: object, labels: object, message: str) -> None:
    metric = DDCS(torch.rand(4, 4), [0, 0, 1, 1])
    with pytest.raises(InputError, match=message):
        metric.update(values, labels)  # type: ignore[arg-type]


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
def test_wrong_images_are_told(images: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        DDCS(images, [0, 1], embedding=Pixel((8, 8)))
    metric = DDCS(torch.rand(2, 3, 8, 8), [0, 1], embedding=Pixel((8, 8)))
    with pytest.raises(InputError, match=message):
        metric.update(images.numpy(), np.array([0, 1]))


def test_names_must_be_distinct_and_settings_in_range() -> None:
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
