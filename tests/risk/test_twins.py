"""Near-duplicates: planted ones are found among real faces, and no ordinary image is."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from torch import Tensor

from inversight.data import ImageSet, load_digits, load_folder
from inversight.risk.twins import find_twins, unexplained

OLIVETTI = Path(__file__).parents[3] / "shared" / "data" / "olivetti"
needs_faces = pytest.mark.skipif(not OLIVETTI.is_dir(), reason=f"no Olivetti faces at {OLIVETTI}")


def jpeg(image: Tensor, quality: int) -> Tensor:
    buffer = io.BytesIO()
    Image.fromarray(image[0].numpy()).save(buffer, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(buffer)))[None]


def shifted(image: Tensor, dy: int, dx: int) -> Tensor:
    """Moved by a pixel, the edge repeated."""
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


def noise(n: int, classes: int = 2, seed: int = 0, size: int = 12) -> ImageSet:
    rng = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (n, 1, size, size), generator=rng, dtype=torch.uint8)
    ids = tuple(f"{i:03d}.png" for i in range(n))
    names = tuple("abcdef"[:classes])
    return ImageSet(pixels, torch.arange(n) % classes, ids, names, tuple(map(str, range(n))))


def with_copy(images: ImageSet, of: int, pixels: Tensor, name: str = "zz.png") -> ImageSet:
    return replace(
        images,
        images=torch.cat([images.images, pixels[None]]),
        labels=torch.cat([images.labels, images.labels[of : of + 1]]),
        ids=(*images.ids, name),
        hashes=(*images.hashes, name),
    )


def groups(images: ImageSet) -> dict[str, str]:
    """image -> first of its group."""
    names = find_twins(images).names(images.ids)
    return {i: n for i, n in zip(images.ids, names, strict=True) if n is not None}


@needs_faces
@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("part", ["private", "holdout"])
def test_ordinary_shots_of_one_person_are_no_twins(part: str, size: int) -> None:
    assert groups(load_folder(OLIVETTI / part, role="x", size=size)) == {}


@pytest.mark.parametrize("part", ["private", "holdout"])
def test_ordinary_digits_are_no_twins(part: str) -> None:
    assert groups(getattr(load_digits(seed=0), part)) == {}


@needs_faces
@pytest.mark.parametrize("how", COPIES)
def test_planted_copies_of_faces_are_found_and_nothing_else(how: str) -> None:
    images = load_folder(OLIVETTI / "private", role="x", size=64)
    chosen = range(0, len(images), 9)
    expected = {}
    planted = images
    for i in chosen:
        name = f"{images.ids[i]}.copy"
        planted = with_copy(planted, i, COPIES[how](images.images[i]), name)
        expected |= {images.ids[i]: images.ids[i], name: images.ids[i]}
    assert groups(planted) == expected


def slow_unexplained(a: np.ndarray, b: np.ndarray) -> float:
    """np.corrcoef of what overlaps, over nine shifts."""
    best = 0.0
    height, width = a.shape[1:]
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            pairs = [
                (a[c, y, x], b[c, y - dy, x - dx])
                for c in range(len(a))
                for y in range(height)
                for x in range(width)
                if 0 <= y - dy < height and 0 <= x - dx < width
            ]
            p, q = np.array(pairs).T
            if p.std() > 1e-3 and q.std() > 1e-3:
                best = max(best, float(np.corrcoef(p, q)[0, 1]))
    return 1.0 - best**2


@pytest.mark.parametrize("channels", [1, 3])
def test_unexplained_is_that_of_a_slow_loop(channels: int) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random((3, channels, 5, 5)), rng.random((4, channels, 5, 5))
    b[0] = np.roll(a[0], 1, axis=2)
    b[1] = 1.0 - a[1]  # a negative is no copy
    b[2] = 0.5  # of one colour
    found = unexplained(torch.from_numpy(a).float(), torch.from_numpy(b).float())
    expected = [[slow_unexplained(x, y) for y in b] for x in a]
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-5)


pictures = hnp.arrays(np.uint8, (2, 1, 6, 6))


@given(pictures, st.floats(0.3, 0.9), st.floats(0.0, 0.1))
def test_brightness_and_contrast_do_not_matter(x: np.ndarray, gain: float, offset: float) -> None:
    images = torch.from_numpy(x).float() / 255
    one = unexplained(images, images)
    assert bool(((one >= 0) & (one <= 1)).all())
    torch.testing.assert_close(one, one.T, rtol=0, atol=1e-4)
    inside = [
        images[:, :, max(0, dy) : 6 + min(0, dy), max(0, dx) : 6 + min(0, dx)].flatten(1).std(1)
        for dy in (-1, 0, 1)
        for dx in (-1, 0, 1)
    ]
    if float(torch.stack(inside).min()) > 0.02:  # else a change makes it flat
        other = unexplained(images * gain + offset, images)
        torch.testing.assert_close(one, other, rtol=0, atol=2e-4)


def test_a_chain_of_copies_is_one_group_named_by_its_first() -> None:
    images = noise(8)
    chain = with_copy(images, 2, shifted(images.images[2], 0, 1), "001a.png")
    chain = with_copy(chain, 2, shifted(chain.images[-1], 0, 1), "zz.png")
    # The first and the last lie two pixels apart: the one between them joins them.
    pair = chain.floats()[[2, -1]]
    assert float(unexplained(pair[:1], pair[1:])) > find_twins(chain).threshold
    assert groups(chain) == dict.fromkeys(("001a.png", "002.png", "zz.png"), "001a.png")


def test_copies_across_classes_are_found_if_exact() -> None:
    images = noise(8)
    assert groups(replace(images, hashes=(*images.hashes[:7], "0"))) == {
        "000.png": "000.png", "007.png": "000.png",
    }  # fmt: skip
    assert groups(images) == {}


def test_row_order_changes_nothing() -> None:
    images = noise(20, classes=3)
    images = with_copy(images, 4, shifted(images.images[4], 1, 0))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))
    assert groups(images.select(order)) == groups(images) == dict.fromkeys(
        ("004.png", "zz.png"), "004.png"
    )  # fmt: skip


def test_more_images_than_one_block_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    images = noise(23, classes=2)
    for of, name in ((0, "x.png"), (22, "y.png")):
        images = with_copy(images, of, shifted(images.images[of], 0, 1), name)
    whole = groups(images)
    monkeypatch.setattr("inversight.risk.twins._BLOCK", 4)
    assert groups(images) == whole and len(whole) == 4


def test_a_class_that_is_mostly_copies() -> None:
    """The ordinary value comes from all classes, so that copies are not what is ordinary."""
    images = noise(12, classes=3)
    for k in range(6):
        images = with_copy(images, 0, shifted(images.images[0], 0, k % 3 - 1), f"copy{k}.png")
    assert len(groups(images)) == 7


def test_classes_of_one_image_have_no_twins() -> None:
    found = find_twins(noise(3, classes=3))
    assert found.group.tolist() == [-1, -1, -1] and found.ordinary is None
    assert math.isclose(found.threshold, 0.0)
