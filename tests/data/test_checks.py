"""Overlap and sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inversight.core.errors import DataError
from inversight.data import SIZES, check_overlap, check_size, load_folder, working_size
from tests.data.files import picture, save


def test_overlap_is_refused_unless_allowed(folder: Path, tmp_path: Path) -> None:
    private = load_folder(folder, role="--private")
    save(picture(2), tmp_path / "other" / "x" / "copy.bmp")
    save(picture(50), tmp_path / "other" / "x" / "new.bmp")
    other = load_folder(tmp_path / "other", role="--public")
    with pytest.raises(DataError) as caught:
        check_overlap(private, other, ("--private", "--public"), allow=False)
    for part in ("share 1 image(s)", "b/1.png = x/copy.bmp", "--allow-overlap", "--private"):
        assert part in str(caught.value)
    assert check_overlap(private, other, ("--private", "--public"), allow=True) == 1
    alone = other.select(torch.tensor([1]))
    assert check_overlap(private, alone, ("--private", "--public"), allow=False) == 0


@given(native=st.integers(1, 2000), cap=st.integers(1, 600))
def test_working_size_is_the_largest_that_fits(native: int, cap: int) -> None:
    if min(native, cap) < 8:
        with pytest.raises(DataError, match="--size 8"):
            working_size(native, cap)
    else:
        size = working_size(native, cap)
        assert size in SIZES and size <= min(native, cap)
        assert size == 256 or 2 * size > min(native, cap)


def test_sizes_without_a_match_need_to_be_chosen() -> None:
    for size in SIZES:
        check_size(size, given=False)
    check_size(28, given=True)
    with pytest.raises(DataError, match=r"28x28.*--size 16"):
        check_size(28, given=False)
    with pytest.raises(DataError, match=r"5x5.*--size 8"):
        check_size(5, given=False)
