"""Overlap and sizes."""

from __future__ import annotations

from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st

from inversight.data import ImageSet, checks, load_images
from tests.data.files import picture, save
from tests.refusals import refused


def test_overlap_is_refused_unless_allowed(private: ImageSet, tmp_path: Path) -> None:
    for seed, name in ((2, "copy"), (50, "new")):
        save(picture(seed), tmp_path / "other" / "x" / f"{name}.bmp")
    other = load_images(tmp_path / "other", role="--public")
    roles = ("--private", "--public")
    with refused("--private and --public share 1 image(s)", "b/1.png = x/copy.bmp"):
        checks.check_overlap(private, other, roles, allow=False)
    assert checks.check_overlap(private, other, roles, allow=True) == 1
    assert checks.check_overlap(private, other.select(torch.tensor([1])), roles, allow=False) == 0


@given(native=st.integers(1, 2000), cap=st.integers(1, 600))
def test_working_size_is_the_largest_that_fits(native: int, cap: int) -> None:
    if min(native, cap) < 8:
        with refused("--size 8"):
            checks.working_size(native, cap)
    else:
        size = checks.working_size(native, cap)
        assert size in checks.SIZES and size <= min(native, cap)
        assert size == 256 or 2 * size > min(native, cap)


def test_sizes_without_a_match_need_to_be_chosen() -> None:
    for size in checks.SIZES:
        checks.check_size(size, given=False)
    checks.check_size(28, given=True)
    for size, near in ((28, 16), (5, 8)):
        with refused(f"{size}x{size}", f"--size {near}"):
            checks.check_size(size, given=False)
