"""Distances of image pairs equal their definition for any memory, order and duplicates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from inversight.core.errors import ConfigError, StageError
from inversight.embeddings import Embedding, StagedEmbedding, Workspace, image_pairs
from inversight.embeddings.distances import exact_products
from inversight.embeddings.lpips import Net
from inversight.embeddings.pixel import Pixel
from tests.draws import noise, normal, uniform
from tests.embeddings.networks import authors, network

NETS = get_args(Net)
MEMORY = 2 << 30
STAGED, PLAIN = network("alex"), Pixel((16, 16))
BOTH = pytest.mark.parametrize("embedding", [STAGED, PLAIN], ids=["staged", "plain"])


@dataclass(frozen=True)
class Plain:
    """An embedding without stages, of pixels in [0, 1]."""

    name: str
    function: Callable[[Tensor], Tensor]

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        return (self.function(images.flatten(1)),)


# Too wide for float64: goes through the same products as LPIPS, without stages.
WIDE = Plain("wide", lambda x: torch.cat([(x * k).sin() for k in range(1, 100)], dim=1))
BROKEN = Plain("broken", lambda x: torch.where(x[:, :1] > 0.99, float("nan"), x))


def all_pairs(
    embedding: Embedding, left: Tensor, right: Tensor | Sequence[Tensor], within: int = 0,
    **options: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return all distances, and those among the first ``within`` left images; checks that each came once."""
    columns = sum(map(len, [right] if isinstance(right, Tensor) else right))
    found, own = (
        torch.full((len(left), n), float("nan"), dtype=torch.float64) for n in (columns, within)
    )
    for tile in image_pairs(embedding, left, right, within=within, **{"memory": MEMORY} | options):
        assert bool((tile.left.diff() > 0).all()) and bool((tile.right.diff() > 0).all())
        into, index = own if tile.within else found, (tile.left[:, None], tile.right[None])
        assert bool(into[index].isnan().all())
        into[index] = tile.distances
    assert bool(found.isfinite().all())
    return found, own[:within]


def distances(*arguments: Any, **options: Any) -> Tensor:
    return all_pairs(*arguments, **options)[0]


def by_differences(embedding: Embedding, left: Tensor, right: Tensor) -> Tensor:
    """Return distances feature by feature in float64, from float32 features."""

    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        rows = [embedding(x[None].float() / 255) for x in images]
        return torch.stack([torch.cat([b.flatten().double() for b in row]) for row in rows])

    theirs = features(right)
    return torch.stack([(row - theirs).square().sum(1) for row in features(left)])


def check(
    embedding: Embedding, left: Tensor, right: Tensor, atol: float = 0, **options: Any
) -> None:
    """Compare with differences."""
    expected = by_differences(embedding, left, right)
    found = distances(embedding, left, right, **options)
    torch.testing.assert_close(found, expected, rtol=2e-6, atol=atol)


@pytest.mark.parametrize("net", NETS)
def test_equal_differences(net: Net) -> None:
    assert isinstance(network(net), StagedEmbedding)
    check(network(net), noise(3), noise(5, channels=1, seed=1))
    check(network(net), noise(2, 24), noise(2, 9, seed=1))  # sizes may differ


@pytest.mark.parametrize("net", NETS)
def test_equal_the_authors_package_at_the_published_size(net: Net) -> None:
    left, right = noise(1, 256), noise(2, 256, seed=1)
    right[1] = (left[0].float() * 0.97 + 4).round().to(torch.uint8)
    dtype = torch.float32 if net == "vgg" else torch.float64  # in float64 VGG takes seconds a pair
    with torch.no_grad():
        x, y = (images.to(dtype) / 127.5 - 1 for images in (left.expand_as(right), right))
        expected = authors(net, dtype)(x, y).view(1, -1).double()
    found = distances(network(net, 256), left, right)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("step", [0.3, 0.03, 0.004])
def test_near_duplicates_are_exact(step: float) -> None:
    """Down to 1e-5 within a thousandth of the distance of the network in float64."""
    left = uniform(2, 3, 64, 64)
    right = (left + step * normal(2, 3, 64, 64, seed=1, dtype=torch.float32)).clamp(0, 1)
    with torch.no_grad():
        expected = authors("vgg", torch.float64)(2 * left.double() - 1, 2 * right.double() - 1)
    if step < 0.01:
        assert 1e-6 < float(expected.min()) < 1e-4
    found = distances(network("vgg"), left, right).diag()
    torch.testing.assert_close(found, expected.flatten(), rtol=1e-3, atol=0)


@settings(max_examples=8, derandomize=True)
@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.sampled_from([1, 10**6, 3 * 10**6, 10**7]),
    st.sampled_from([STAGED, PLAIN]),
)
def test_do_not_depend_on_memory(n: int, m: int, memory: int, embedding: Embedding) -> None:
    left, right = noise(n, seed=n), noise(m, seed=50 + m)
    whole = distances(embedding, left, right)
    parts = distances(embedding, left, right, memory=memory)
    torch.testing.assert_close(parts, whole, rtol=3e-6, atol=0)


@pytest.mark.parametrize("memory", [1, 2_000_000, MEMORY])
def test_wide_features_without_stages(memory: int) -> None:
    left, right = noise(6), noise(5, seed=1)
    right[:2] = left[2:4]
    right[1, 0, 0, 0] ^= 1
    found = distances(WIDE, left, right, memory=memory)
    assert found[2, 0] == 0.0 and 0 < found[3, 1] < 1e-2 * float(found.median())
    check(WIDE, left, right, atol=1e-12, memory=memory)


def test_reserve_no_more_than_the_given_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    reserved: list[int] = []
    reserve = Workspace.reserve

    def watched(self: Workspace, values: int) -> Tensor:
        reserved.append(4 * values)
        return reserve(self, values)

    monkeypatch.setattr(Workspace, "reserve", watched)
    one = 700_000  # bytes of one image's features, about
    left, right = noise(12, 8), noise(16, 8, seed=1)
    for images in (4, 8, 40):
        reserved.clear()
        distances(network("squeeze"), left, right, memory=images * one)
        assert 0 < max(reserved) <= images * one


@pytest.mark.parametrize("memory", [1, 4_000_000, MEMORY])
def test_identical_images_have_identical_distances(memory: int) -> None:
    left, right = noise(9), noise(8, seed=1)
    left[[1, 5, 8]] = left[3].clone()
    right[[0, 6]] = right[4].clone()
    found = distances(STAGED, left, right, memory=memory)
    assert len({tuple(found[i].tolist()) for i in (1, 3, 5, 8)}) == 1
    assert len({tuple(found[:, j].tolist()) for j in (0, 4, 6)}) == 1


def test_equal_images_of_both_sides_have_distance_zero() -> None:
    left = noise(4)
    assert distances(network("vgg"), left, left.flip(0)).flip(1).diag().tolist() == [0.0] * 4


def test_do_not_depend_on_row_order() -> None:
    left, right, a, b = noise(6), noise(7, seed=1), torch.randperm(6), torch.randperm(7)
    found, other = distances(STAGED, left, right), distances(STAGED, left[a], right[b])
    torch.testing.assert_close(other, found[a][:, b], rtol=1e-6, atol=0)


@pytest.mark.parametrize("memory", [1, 1_000_000, 6_000_000, MEMORY])
@BOTH
def test_pairs_within_the_first_left_images(memory: int, embedding: Embedding) -> None:
    left, right = noise(7), noise(3, seed=1)
    left[4] = left[1]
    whole = distances(embedding, left[:6], left[:6])
    for others in (right, right[:0]):
        _, own = all_pairs(embedding, left, others, within=6, memory=memory)
        torch.testing.assert_close(own, whole, rtol=3e-6, atol=1e-9)


@BOTH
def test_sets_of_several_sizes_on_one_side(embedding: Embedding) -> None:
    left, parts = noise(3), [noise(2, seed=1), noise(3, 9, 1, seed=2)]
    apart = [by_differences(embedding, left, part) for part in parts]
    torch.testing.assert_close(
        distances(embedding, left, parts), torch.cat(apart, 1), rtol=2e-6, atol=0
    )


def test_no_images_give_no_tiles_and_no_memory_is_rejected() -> None:
    assert list(image_pairs(PLAIN, noise(0), noise(3), memory=10)) == []
    with pytest.raises(ConfigError, match="memory"):
        next(image_pairs(PLAIN, noise(1), noise(1), memory=0))


@pytest.mark.parametrize("side", [0, 1])
def test_names_the_image_whose_features_are_not_finite(side: int) -> None:
    sets, names = [noise(4) // 2, noise(5, seed=1) // 2], ["left", "right"]
    sets[side][2, 0, 0, 0] = 255
    with pytest.raises(StageError, match=f"broken.*image {names[side]}2"):
        distances(BROKEN, *sets, names=[[f"{x}{i}" for i in range(5)] for x in names])


def test_progress_counts_every_image_once() -> None:
    counted: list[int] = []
    distances(STAGED, noise(5), noise(6, seed=1), seen=counted.append)
    assert sum(counted) == 11


def test_the_callers_settings_are_restored() -> None:
    before = torch.backends.cudnn.allow_tf32
    next(image_pairs(PLAIN, noise(1), noise(1, seed=1), memory=MEMORY))
    assert torch.is_grad_enabled() and torch.backends.cudnn.allow_tf32 == before
    with exact_products():
        assert not torch.backends.cudnn.allow_tf32 and not torch.is_grad_enabled()
    assert torch.backends.cudnn.allow_tf32 == before


def test_the_callers_autocast_does_not_reduce_precision() -> None:
    left, right = noise(2), noise(3, seed=1)
    expected = distances(STAGED, left, right)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(distances(STAGED, left, right), expected)
