"""Image sets: classes, fingerprints, hashes of pixels, and what is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from inversight.core.imaging import fit
from inversight.core.seeding import generator
from inversight.data import ImageSet, check_overlap, image_set, load_images, write_images
from tests.data.files import grey_files, picture, save
from tests.refusals import refused


def test_relabel_follows_the_given_order(private: ImageSet) -> None:
    found = private.relabel(["z", "b", "a"], role="--private")
    assert found.classes == ("z", "b", "a")
    assert found.labels.tolist() == [2, 2, 1, 1]
    with refused("--private: class b is not among", "--classes FILE"):
        private.relabel(["a", "c"], role="--private")


LEVELS = np.asarray(picture(1))


@pytest.mark.parametrize("name", grey_files(LEVELS))
def test_the_same_grey_pixels_in_another_mode_or_format_are_found(
    tmp_path: Path, name: str
) -> None:
    save(picture(1), tmp_path / "private" / "a" / "1.png")
    save(grey_files(LEVELS)[name], tmp_path / "public" / "a" / name)
    save(picture(1, mode="RGB"), tmp_path / "public" / "a" / "z.png")
    private, public = (load_images(tmp_path / r, role=r) for r in ("private", "public"))
    shared = check_overlap(private, public, ("private", "public"), allow=True)
    assert (shared, public.hashes[0]) == (1, private.hashes[0])
    # At another working size the file's own pixels still count.
    assert load_images(tmp_path / "public", role="public", size=4).hashes == public.hashes
    # In memory an image hashes as it does in a file, grey or repeated in three channels.
    again = image_set(private.resized(size=8, channels=3).images, ["a"], ["1"], ["a"])
    assert again.hashes == private.hashes


def test_the_same_colours_in_another_format_have_the_same_hash(tmp_path: Path) -> None:
    for name in ("1.png", "2.bmp", "3.tif", "4.webp"):
        save(picture(1, mode="RGB"), tmp_path / "a" / name, lossless=True)
    # Its luma is that of the others, and its pixels are not.
    save(picture(1, mode="RGB").convert("L"), tmp_path / "a" / "5.png")
    hashes = load_images(tmp_path, role="--private").hashes
    assert len(set(hashes[:4])) == 1 and hashes[4] != hashes[0]


def test_fingerprint_ignores_row_order_but_not_changes(private: ImageSet, folder: Path) -> None:
    turned = private.select(torch.tensor([3, 1, 0, 2]))
    assert turned.ids == ("b/2.png", "a/2.png", "a/1.png", "b/1.png")
    assert turned.fingerprint() == private.fingerprint()
    assert private.relabel(["b", "x", "a"], role="r").fingerprint() == private.fingerprint()
    assert private.select(torch.tensor([0, 1, 2])).fingerprint() != private.fingerprint()
    save(picture(99), folder / "a" / "1.png")
    assert load_images(folder, role="--private").fingerprint() != private.fingerprint()


def test_written_images_read_back_the_same(private: ImageSet, tmp_path: Path) -> None:
    write_images(tmp_path / "copy", private.images, private.ids)
    again = load_images(tmp_path / "copy", role="--private")
    assert again.hashes == private.hashes and torch.equal(again.images, private.images)
    assert again.fingerprint() == private.fingerprint()


def test_floats_of_many_images_are_those_of_each() -> None:
    images = torch.randint(0, 256, (600, 1, 16, 16), generator=generator(0)).to(torch.uint8)
    many = image_set(images, ["a"] * 600, list(map(str, range(600))), ["a"])
    found = many.floats(size=8, channels=3)
    for i in (0, 255, 256, 599):
        expected = fit(images[i : i + 1].float() / 255, size=8, channels=3)
        torch.testing.assert_close(found[i : i + 1], expected)
