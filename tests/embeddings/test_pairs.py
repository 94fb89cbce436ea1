"""Distances of image pairs: the definition, whatever the memory, the order or the duplicates."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from inversight.core.errors import ConfigError, StageError
from inversight.embeddings import StagedEmbedding, Workspace, image_pairs
from inversight.embeddings.distances import exact_products
from inversight.embeddings.lpips import Lpips, Net
from inversight.embeddings.pixel import Pixel
from tests.embeddings.networks import authors, backbone

NETS = get_args(Net)
MEMORY = 2 << 30


def noise(n: int, *, size: int = 16, channels: int = 3, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, channels, size, size), generator=rng).to(torch.uint8)


@cache
def small(net: Net = "alex") -> Lpips:
    return Lpips(net, size=64, backbone=backbone(net))


def all_pairs(
    embedding: object, left: Tensor, right: Any, columns: int | None = None, **options: object
) -> Tensor:
    """The whole matrix; checks that every pair came once."""
    size = len(left), columns or len(right)
    found = torch.full(size, float("nan"), dtype=torch.float64)
    for tile in image_pairs(embedding, left, right, **{"memory": MEMORY, **options}):  # type: ignore[arg-type]
        assert bool((tile.left.diff() > 0).all()) and bool((tile.right.diff() > 0).all())
        assert bool(found[tile.left[:, None], tile.right[None]].isnan().all())
        found[tile.left[:, None], tile.right[None]] = tile.distances
    assert bool(found.isfinite().all())
    return found


def by_differences(embedding: object, left: Tensor, right: Tensor) -> Tensor:
    """Feature by feature in float64, from float32 features."""

    def features(images: Tensor) -> Tensor:
        with torch.no_grad():
            rows = [embedding(x[None].float() / 255) for x in images]  # type: ignore[operator]
        return torch.stack([torch.cat([b.flatten().double() for b in row]) for row in rows])

    ours, theirs = features(left), features(right)
    return torch.stack([(row - theirs).square().sum(1) for row in ours])


@pytest.mark.parametrize("net", NETS)
def test_equals_differences_layer_by_layer_or_at_once(net: Net) -> None:
    embedding = small(net)
    assert isinstance(embedding, StagedEmbedding)
    left, right = noise(5), noise(7, channels=1, seed=1)
    expected = by_differences(embedding, left, right)
    torch.testing.assert_close(all_pairs(embedding, left, right), expected, rtol=2e-6, atol=0)


@pytest.mark.parametrize("net", NETS)
def test_equals_the_authors_package_in_float64_at_the_papers_size(net: Net) -> None:
    state = backbone(net)
    left, right = noise(2, size=256), noise(3, size=256, seed=1)
    right[2] = (left[0].float() * 0.97 + 4).round().to(torch.uint8)
    found = all_pairs(Lpips(net, backbone=state), left, right)
    model = authors(net, torch.float64)
    rows, columns = [0, 0, 0, 1, 1, 1], [0, 1, 2, 0, 1, 2]
    if net == "vgg":  # in float64 three seconds a pair
        rows, columns = [0, 1], [2, 0]
    with torch.no_grad():
        expected = model(left[rows].double() / 127.5 - 1, right[columns].double() / 127.5 - 1)
    torch.testing.assert_close(found[rows, columns], expected.flatten(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("step", [0.3, 0.03, 0.004])
def test_near_duplicates_keep_their_distance(step: float) -> None:
    """Down to 1e-5 within a thousandth of the distance that the network has in float64."""
    state = backbone("vgg")
    rng = torch.Generator().manual_seed(3)
    left = torch.rand(2, 3, 64, 64, generator=rng)
    right = (left + step * torch.randn(2, 3, 64, 64, generator=rng)).clamp(0, 1)
    found = all_pairs(Lpips("vgg", size=64, backbone=state), left, right)
    with torch.no_grad():
        expected = authors("vgg", torch.float64)(2 * left.double() - 1, 2 * right.double() - 1)
    if step < 0.01:
        assert 1e-6 < float(expected.min()) < 1e-4
    torch.testing.assert_close(found.diag(), expected.flatten(), rtol=1e-3, atol=0)


@settings(max_examples=12, derandomize=True)
@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.sampled_from([1, 10**6, 3 * 10**6, 10**7]),
    st.booleans(),
)
def test_the_memory_does_not_matter(n: int, m: int, memory: int, staged: bool) -> None:
    embedding = small() if staged else Pixel((16, 16))
    left, right = noise(n, seed=n), noise(m, seed=50 + m)
    whole = all_pairs(embedding, left, right)
    parts = all_pairs(embedding, left, right, memory=memory)
    torch.testing.assert_close(parts, whole, rtol=3e-6, atol=0)


@dataclass(frozen=True)
class Wide:
    """Too wide for float64: goes through the same products as LPIPS, without stages."""

    name: str = "wide"

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        x = images.flatten(1)
        return (torch.cat([(x * k).sin() for k in range(1, 100)], dim=1),)


@pytest.mark.parametrize("memory", [1, 2_000_000, MEMORY])
def test_wide_features_without_stages(memory: int) -> None:
    left, right = noise(6), noise(5, seed=1)
    right[0] = left[2]
    right[1] = left[3]
    right[1, 0, 0, 0] ^= 1
    found = all_pairs(Wide(), left, right, memory=memory)
    expected = by_differences(Wide(), left, right)
    assert found[2, 0] == 0.0 and 0 < found[3, 1] < 1e-2 * float(expected.median())
    torch.testing.assert_close(found, expected, rtol=2e-6, atol=1e-12)


def test_memory_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is reserved for features and states never exceeds what was given."""
    reserved: list[int] = []
    reserve = Workspace.reserve

    def watched(self: Workspace, values: int) -> Tensor:
        reserved.append(4 * values)
        return reserve(self, values)

    monkeypatch.setattr(Workspace, "reserve", watched)
    embedding = small("squeeze")
    one = 700_000  # bytes of one image's features, about
    left, right = noise(12, size=8), noise(16, size=8, seed=1)
    for images in (4, 8, 40):
        reserved.clear()
        all_pairs(embedding, left, right, memory=images * one)
        assert 0 < max(reserved) <= images * one


def test_identical_images_have_identical_distances_wherever_they_stand() -> None:
    left, right = noise(9), noise(8, seed=1)
    left[[1, 5, 8]] = left[3].clone()
    right[[0, 6]] = right[4].clone()
    for memory in (1, 4_000_000, MEMORY):
        found = all_pairs(small(), left, right, memory=memory)
        assert len({tuple(found[i].tolist()) for i in (1, 3, 5, 8)}) == 1
        assert len({tuple(found[:, j].tolist()) for j in (0, 4, 6)}) == 1


def test_equal_images_of_both_sides_are_at_zero() -> None:
    left = noise(4)
    found = all_pairs(small("vgg"), left, left.flip(0))
    assert found.flip(1).diag().tolist() == [0.0] * 4


def test_rows_in_another_order_have_the_same_distances() -> None:
    left, right = noise(6), noise(7, seed=1)
    a, b = torch.randperm(6), torch.randperm(7)
    found = all_pairs(small(), left, right)
    other = all_pairs(small(), left[a], right[b])
    torch.testing.assert_close(other, found[a][:, b], rtol=1e-6, atol=0)


def test_sizes_may_differ_between_the_sides() -> None:
    left, right = noise(2, size=24), noise(3, size=9, seed=1)
    found = all_pairs(small(), left, right)
    torch.testing.assert_close(found, by_differences(small(), left, right), rtol=2e-6, atol=0)


@pytest.mark.parametrize("memory", [1, 1_000_000, 6_000_000, MEMORY])
@pytest.mark.parametrize("staged", [False, True])
def test_pairs_within_the_first_left_images(memory: int, staged: bool) -> None:
    embedding = small() if staged else Pixel((16, 16))
    left, right = noise(7), noise(3, seed=1)
    left[4] = left[1]
    whole = all_pairs(embedding, left[:6], left[:6])
    for others in (right, right[:0]):
        found = torch.full((7, 7), float("nan"), dtype=torch.float64)
        rest = torch.full((7, len(others)), float("nan"), dtype=torch.float64)
        for tile in image_pairs(embedding, left, others, memory=memory, within=6):
            into = found if tile.within else rest
            assert bool(into[tile.left[:, None], tile.right[None]].isnan().all())
            into[tile.left[:, None], tile.right[None]] = tile.distances
        torch.testing.assert_close(found[:6, :6], whole, rtol=3e-6, atol=1e-9)
        assert bool(rest.isfinite().all())


@pytest.mark.parametrize("staged", [False, True])
def test_sets_of_several_sizes_on_one_side(staged: bool) -> None:
    embedding = small() if staged else Pixel((16, 16))
    left, parts = noise(3), [noise(2, seed=1), noise(3, size=9, channels=1, seed=2)]
    found = all_pairs(embedding, left, parts, columns=5)
    apart = [by_differences(embedding, left, part) for part in parts]
    torch.testing.assert_close(found, torch.cat(apart, 1), rtol=2e-6, atol=0)


def test_no_images_give_no_tiles() -> None:
    assert list(image_pairs(Pixel((8, 8)), noise(0), noise(3), memory=10)) == []
    with pytest.raises(ConfigError, match="memory"):
        next(image_pairs(Pixel((8, 8)), noise(1), noise(1), memory=0))


@dataclass(frozen=True)
class Broken:
    name: str = "broken"

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        x = images.flatten(1)
        return (torch.where(x[:, :1] > 0.99, float("nan"), x),)


@pytest.mark.parametrize("side", [0, 1])
def test_an_image_without_a_number_is_named(side: int) -> None:
    sets = [noise(4) // 2, noise(5, seed=1) // 2]
    sets[side][2, 0, 0, 0] = 255
    with pytest.raises(StageError, match=f"broken.*image {'left' if side == 0 else 'right'}2"):
        all_pairs(Broken(), *sets, names=[[f"{x}{i}" for i in range(5)] for x in ("left", "right")])


def test_progress_counts_every_image() -> None:
    counted: list[int] = []
    all_pairs(small(), noise(5), noise(6, seed=1), seen=counted.append)
    assert sum(counted) == 11


def test_settings_of_the_caller_come_back() -> None:
    before = torch.backends.cudnn.allow_tf32
    tiles = image_pairs(Pixel((8, 8)), noise(1), noise(1, seed=1), memory=MEMORY)
    next(tiles)
    assert torch.is_grad_enabled() and torch.backends.cudnn.allow_tf32 == before
    with exact_products():
        assert not torch.backends.cudnn.allow_tf32 and not torch.is_grad_enabled()
    assert torch.backends.cudnn.allow_tf32 == before


def test_autocast_of_the_caller_does_not_cost_precision() -> None:
    left, right = noise(2), noise(3, seed=1)
    expected = all_pairs(small(), left, right)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(all_pairs(small(), left, right), expected)
