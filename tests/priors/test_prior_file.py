"""Saved priors: how they are read, what does not fit, and how many images are few."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from inversight.core.errors import DataError
from inversight.core.seeding import generator
from inversight.priors import StylePrior
from inversight.priors.architecture import Architecture
from inversight.priors.prior_file import (
    FEW_IMAGES,
    PRIOR_FILE,
    check_adaptable,
    check_channels,
    few_images,
    read_prior,
)
from tests.priors.stylegan2_files import random_prior

SMALL = Architecture(size=8, channels=1, z_dim=4, w_dim=4, mapping_depth=1, channel_max=2)


def test_reads_a_folder_or_its_file(prior: StylePrior, tmp_path: Path) -> None:
    file = tmp_path / PRIOR_FILE
    prior.save(file)
    one, other = read_prior(tmp_path), read_prior(file)
    assert one.file == other.file == file
    w = prior.sample(2, rng=generator(0))
    assert torch.equal(one.prior(w), prior(w))
    assert one.fingerprint == other.fingerprint
    random_prior(SMALL).save(file)
    assert read_prior(tmp_path).fingerprint != one.fingerprint


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "no such prior"),
        ("", "no such prior"),
        ("ffhq.pkl", "inversight prior import"),
        ("notes.txt", "not a prior that inversight wrote"),
    ],
)
def test_rejects_what_is_no_prior(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "ffhq.pkl").write_bytes(b"\x80\x04N.")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=message):
        read_prior(tmp_path / name)


def test_rejects_other_channels(prior: StylePrior) -> None:
    check_channels(prior, Path("p"), 1, "the images", "do")
    with pytest.raises(DataError) as caught:
        check_channels(prior, Path("p"), 3, "the images", "save them in grey")
    assert str(caught.value) == (
        "--prior p: its images have 1 channel (grey), the images 3 channels (colour): save them in "
        "grey"
    )


def test_rejects_adaptation_of_a_conditional_prior(prior: StylePrior) -> None:
    check_adaptable(prior, Path("p"))
    with pytest.raises(DataError, match=r"conditioned on 5 classes.*adaptation\.steps=0"):
        check_adaptable(random_prior(replace(SMALL, c_dim=5)), Path("p"))


def test_warns_of_few_images() -> None:
    assert few_images(FEW_IMAGES) is None
    warning = few_images(FEW_IMAGES - 1)
    assert warning is not None and "1999 images" in warning and "Karras et al. 2020" in warning
