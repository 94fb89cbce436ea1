"""Many decoded images lie in a file that is mapped, with the same result, and are decoded once."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from inversight.core.errors import DiskFullError
from inversight.core.imaging import to_uint8
from inversight.data import ImageSet, load_images, store
from tests.data.files import picture, save
from tests.refusals import refused


@pytest.fixture
def many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., ImageSet]:
    """Return a function that reads 40 images, which count as many."""
    for i in range(40):
        save(picture(i), tmp_path / "data" / "ab"[i % 2] / f"{i}.png")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(store, "MOST_IN_MEMORY", 2000)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return lambda **options: load_images(tmp_path / "data", role="--private", **options)


def same(a: ImageSet, b: ImageSet) -> bool:
    return torch.equal(a.images, b.images) and a.fingerprint() == b.fingerprint()


def test_a_mapped_set_equals_one_in_memory_and_leaves_no_file(
    many: Callable[..., ImageSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mapped, bigger = many(), many().resized(size=16, channels=3)
    assert not list((tmp_path / "tmp").iterdir())
    monkeypatch.setattr(store, "MOST_IN_MEMORY", 1 << 20)
    assert same(many(), mapped) and same(many().resized(size=16, channels=3), bigger)
    expected = to_uint8(many().floats(size=16, channels=3))
    assert torch.equal(bigger.images, expected)
    assert mapped.select(torch.arange(40)).images is mapped.images


def test_decoded_images_are_found_again_until_a_file_or_an_option_changes(
    many: Callable[..., ImageSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, calls = tmp_path / "cache", []
    real = load_images.__globals__["read_listing"].__globals__["decode"]

    def decode(*given: object) -> object:
        calls.append(given)
        return real(*given)

    monkeypatch.setattr("inversight.data.reading.decode", decode)
    first = many(cache=cache)
    first.images[0] = 7  # changes no file
    again = many(cache=cache)
    assert len(calls) == 40 and same(again, many())
    assert many(cache=cache, size=4).size == 4 and many(cache=cache, limit=1).classes == ("a",)
    save(picture(99), tmp_path / "data" / "a" / "0.png")
    changed = many(cache=cache)
    assert changed.hashes[0] != again.hashes[0] and same(changed, many())


def test_nothing_is_left_after_an_image_that_cannot_be_decoded(
    many: Callable[..., ImageSet], tmp_path: Path
) -> None:
    file = tmp_path / "data" / "b" / "39.png"
    file.write_bytes(file.read_bytes()[:60])
    for cache in (None, tmp_path / "cache"):
        with refused("39.png"):
            many(cache=cache)
    assert not list((tmp_path / "tmp").iterdir()) and not list((tmp_path / "cache").iterdir())


def test_a_full_disk_is_one_line(
    many: Callable[..., ImageSet], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(store.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 100}))
    with refused("MB are needed", "TMPDIR", error=DiskFullError):
        many()
    assert not list((tmp_path / "tmp").iterdir())
