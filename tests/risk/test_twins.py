"""Near-duplicates: planted ones are found among real faces, and ordinary images are none."""

from __future__ import annotations

import io
from dataclasses import replace
from itertools import product
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from torch import Tensor

from inversight.data import ImageSet, load_digits, load_images
from inversight.risk.twins import find_near_copies, find_twins, sketches, unexplained

OLIVETTI = Path(__file__).parents[3] / "shared" / "data" / "olivetti"
needs_faces = pytest.mark.skipif(not OLIVETTI.is_dir(), reason=f"no Olivetti faces at {OLIVETTI}")


def jpeg(image: Tensor, quality: int) -> Tensor:
    buffer = io.BytesIO()
    Image.fromarray(image[0].numpy()).save(buffer, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(buffer)))[None]


def shifted(image: Tensor, dy: int, dx: int) -> Tensor:
    """Return the image moved by up to a pixel either way, the edge repeated."""
    padded = torch.nn.functional.pad(image[None].float(), (1, 1, 1, 1), mode="replicate")[0]
    height, width = image.shape[1:]
    return padded[:, 1 - dy : 1 - dy + height, 1 - dx : 1 - dx + width].byte()


COPIES = {
    "the same": lambda x: x,
    "brighter": lambda x: (x.float() * 1.15 + 5).clamp(0, 255).byte(),
    "darker": lambda x: (x.float() * 0.8 - 5).clamp(0, 255).byte(),
    "right": lambda x: shifted(x, 0, 1),
    "up": lambda x: shifted(x, -1, 0),
    "diagonal": lambda x: shifted(x, 1, -1),
    "jpeg": lambda x: jpeg(x, 80),
}


def noise(n: int, classes: int = 2) -> ImageSet:
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (n, 1, 12, 12), generator=rng, dtype=torch.uint8)
    ids = tuple(f"{i:03d}.png" for i in range(n))
    names = tuple("abcdef"[:classes])
    return ImageSet(pixels, torch.arange(n) % classes, ids, names, tuple(map(str, range(n))))


def with_copy(images: ImageSet, of: int, pixels: Tensor, name: str = "zz.png") -> ImageSet:
    return replace(
        images, images=torch.cat([images.images, pixels[None]]), ids=(*images.ids, name),
        labels=torch.cat([images.labels, images.labels[of : of + 1]]), hashes=(*images.hashes, name),
    )  # fmt: skip


def groups(images: ImageSet) -> dict[str, str]:
    """Return the first image of its group for each image that is in one."""
    names = find_twins(images).names(images.ids)
    return {i: n for i, n in zip(images.ids, names, strict=True) if n is not None}


@needs_faces
@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("part", ["private", "holdout"])
def test_ordinary_faces_are_no_twins(part: str, size: int) -> None:
    assert groups(load_images(OLIVETTI / part, role="x", size=size)) == {}


@pytest.mark.parametrize("part", ["private", "holdout"])
def test_ordinary_digits_are_no_twins(part: str) -> None:
    assert groups(getattr(load_digits(seed=0), part)) == {}


@needs_faces
@pytest.mark.parametrize("how", COPIES)
def test_finds_planted_copies_of_faces_and_nothing_else(how: str) -> None:
    images = planted = load_images(OLIVETTI / "private", role="x", size=64)
    expected = {}
    for i in range(0, len(images), 9):
        name = f"{images.ids[i]}.copy"
        planted = with_copy(planted, i, COPIES[how](images.images[i]), name)
        expected |= dict.fromkeys((images.ids[i], name), images.ids[i])
    assert groups(planted) == expected


def overlap(a: np.ndarray, b: np.ndarray, dy: int, dx: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixels that both images have if ``b`` is moved down by dy and right by dx."""
    height, width = a.shape[1:]
    y, x = np.mgrid[max(0, dy) : height + min(0, dy), max(0, dx) : width + min(0, dx)]
    return a[:, y, x].ravel(), b[:, y - dy, x - dx].ravel()


def slow_unexplained(a: np.ndarray, b: np.ndarray) -> float:
    """Return np.corrcoef of the overlap, over nine shifts."""
    best = 0.0
    for dy, dx in product((-1, 0, 1), repeat=2):
        p, q = overlap(a, b, dy, dx)
        if p.std() > 1e-3 and q.std() > 1e-3:
            best = max(best, float(np.corrcoef(p, q)[0, 1]))
    return 1.0 - best**2


@pytest.mark.parametrize("channels", [1, 3])
def test_unexplained_equals_a_loop(channels: int) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random((3, channels, 5, 5)), rng.random((4, channels, 5, 5))
    b[0] = np.roll(a[0], 1, axis=2)
    b[1] = 1.0 - a[1]  # a negative is no copy
    b[2] = 0.5  # of one colour
    found = unexplained(torch.from_numpy(a).float(), torch.from_numpy(b).float())
    expected = [[slow_unexplained(x, y) for y in b] for x in a]
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-5)


@given(hnp.arrays(np.uint8, (2, 1, 6, 6)), st.floats(0.3, 0.9), st.floats(0.0, 0.1))
def test_brightness_and_contrast_do_not_matter(x: np.ndarray, gain: float, offset: float) -> None:
    images = torch.from_numpy(x).float() / 255
    one = unexplained(images, images)
    assert bool(((one >= 0) & (one <= 1)).all())
    torch.testing.assert_close(one, one.T, rtol=0, atol=1e-4)
    shifts = list(product((-1, 0, 1), repeat=2))
    inside = [
        overlap(image, image, *shift)[0].std() for image in images.numpy() for shift in shifts
    ]
    if min(inside) > 0.02:  # else a change makes it flat
        other = unexplained(images * gain + offset, images)
        torch.testing.assert_close(one, other, rtol=0, atol=2e-4)


@given(hnp.arrays(np.uint8, (3, 2, 11, 19)), hnp.arrays(np.uint8, (2, 2, 11, 19)))
def test_sketches_bound_correlations_from_above(x: np.ndarray, y: np.ndarray) -> None:
    a, b = (torch.from_numpy(images).double() / 255 for images in (x, y))
    bound = torch.stack([p @ q.T for p, q in zip(sketches(a), sketches(b).flip(0), strict=True)])
    assert bool((bound.amax(0).clamp_min(0) >= (1 - unexplained(a, b)).sqrt() - 1e-6).all())


def test_sketches_rule_out_pairs_and_lose_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Smooth images of which few are alike, against all pairs."""
    rng = torch.Generator().manual_seed(0)
    coarse = torch.rand(90, 1, 5, 5, generator=rng)
    smooth = torch.nn.functional.interpolate(coarse, size=32, mode="bicubic").clamp(0, 1)
    pixels = (255 * smooth).to(torch.uint8)
    images = replace(noise(90, classes=2), images=pixels)
    for of in range(0, 90, 10):
        images = with_copy(images, of, shifted(images.images[of], 0, 1), f"{of:03d}z.png")
    calls = Mock(side_effect=unexplained)
    monkeypatch.setattr("inversight.risk.twins.unexplained", calls)
    found = groups(images)
    assert len(found) == 18 and calls.call_count == 2  # for the classes' ordinary values alone
    monkeypatch.setattr("inversight.risk.twins._FEW", -1.0)
    assert groups(images) == found and calls.call_count == 6


def test_chain_of_copies_is_one_group_named_by_its_first_image() -> None:
    images = noise(8)
    chain = with_copy(images, 2, shifted(images.images[2], 0, 1), "001a.png")
    chain = with_copy(chain, 2, shifted(chain.images[-1], 0, 1), "zz.png")
    # The first and the last are two pixels apart: the one between them joins them.
    pair = chain.floats()[[2, -1]]
    assert float(unexplained(pair[:1], pair[1:])) > find_twins(chain).threshold
    assert groups(chain) == dict.fromkeys(("001a.png", "002.png", "zz.png"), "001a.png")


def test_finds_exact_copies_across_classes() -> None:
    images = noise(8)
    copied = replace(images, hashes=(*images.hashes[:7], "0"))
    assert groups(copied) == dict.fromkeys(("000.png", "007.png"), "000.png")
    assert groups(images) == {}


def test_row_order_does_not_matter() -> None:
    images = noise(20, classes=3)
    images = with_copy(images, 4, shifted(images.images[4], 1, 0))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))
    expected = dict.fromkeys(("004.png", "zz.png"), "004.png")
    assert groups(images.select(order)) == groups(images) == expected


def test_block_size_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    images = noise(23)
    for of, name in ((0, "x.png"), (22, "y.png")):
        images = with_copy(images, of, shifted(images.images[of], 0, 1), name)
    whole = groups(images)
    monkeypatch.setattr("inversight.risk.twins._BLOCK", 4)
    assert groups(images) == whole and len(whole) == 4


def test_finds_all_copies_in_a_class_of_mostly_copies() -> None:
    images = noise(12, classes=3)
    for k in range(6):
        images = with_copy(images, 0, shifted(images.images[0], 0, k % 3 - 1), f"copy{k}.png")
    assert len(groups(images)) == 7


def test_classes_of_one_image_have_no_twins() -> None:
    found = find_twins(noise(3, classes=3))
    assert found.group.tolist() == [-1, -1, -1]
    assert found.ordinary is None and found.threshold == 0.0


def halves(images: ImageSet) -> tuple[ImageSet, ImageSet]:
    rows = torch.arange(len(images))
    return images.select(rows[::2]), images.select(rows[1::2])


@pytest.mark.parametrize("copy", ["brighter", "darker", "right", "up", "diagonal", "jpeg"])
def test_near_copies_in_another_set_are_found_whatever_their_class(copy: str) -> None:
    first, second = halves(noise(24))
    changed = COPIES[copy](first.images[3])
    other = with_copy(
        with_copy(second, 0, changed), 1, COPIES["brighter"](first.images[8]), "zzz.png"
    )
    found = find_near_copies(first, other)
    assert set(found.pairs) == {(3, 12), (8, 13)} and found.compared == (12, 14)
    assert find_near_copies(first, second).pairs == ()


def test_near_copies_are_those_that_twins_are() -> None:
    """The two searches agree on a pair of one class, and an exact copy is no near-copy."""
    images = load_digits(seed=0).private
    changed = COPIES["brighter"](images.images[5])
    together = find_twins(with_copy(images, 5, changed))
    other = replace(
        images.select(torch.tensor([5, 7])), images=torch.stack([changed, images.images[7]]),
        hashes=("changed", images.hashes[7]),
    )  # fmt: skip
    assert together.group[5] == together.group[-1] >= 0
    assert find_near_copies(images, other).pairs == ((5, 0),)


def test_many_pairs_are_thinned_evenly() -> None:
    first, second = halves(noise(600))
    found = find_near_copies(first, second.select(torch.arange(20)), most_pairs=1000)
    assert found.compared == (50, 20)
    assert find_near_copies(first, second, most_pairs=1600).compared == (40, 40)
    assert find_near_copies(first.select(torch.arange(3)), second, most_pairs=300).compared == (
        3,
        100,
    )
