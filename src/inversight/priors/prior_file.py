"""Priors made before: reading one, and whether it fits what it is to be used with."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from inversight.core.errors import DataError
from inversight.priors.style_prior import StylePrior

PRIOR_FILE = "prior.safetensors"
"""The file's name in a folder that `inversight prior train`, `prior import` or `adapt` wrote."""
FEW_IMAGES = 2000
COLOURS = {1: "grey", 3: "colour"}
"""What images of one and of three channels are called."""


@dataclass(frozen=True)
class PriorFile:
    """A prior, the file that it was read from and a hash of what is in it."""

    prior: StylePrior
    file: Path
    fingerprint: str


def read_prior(path: Path) -> PriorFile:
    """Read the prior in ``path``, a folder or a file.

    Raises:
        DataError: there is none, it is damaged, or it must be imported first.
    """
    wanted = "what `inversight prior train`, `prior import` or `adapt` wrote"
    file = path / PRIOR_FILE if path.is_dir() else path
    if not file.is_file():
        raise DataError(f"--prior {path}: no such prior; name {wanted}")
    if file.suffix == ".pkl":
        raise DataError(f"--prior {path}: is a pickle; run `inversight prior import {path}` first")
    prior = StylePrior.load(file)
    with file.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    return PriorFile(prior, file, digest[:16])


def check_channels(prior: StylePrior, where: Path, channels: int, what: str, remedy: str) -> None:
    """Refuse a prior whose images are colour and ``what`` is grey, or the other way round.

    Raises:
        DataError: they differ; ``remedy`` says what would make them fit.
    """
    own = prior.image_shape[0]
    if own != channels:
        kinds = [f"{n} channel{'' if n == 1 else 's'} ({COLOURS[n]})" for n in (own, channels)]
        raise DataError(f"--prior {where}: its images have {kinds[0]}, {what} {kinds[1]}: {remedy}")


def check_adaptable(prior: StylePrior, where: Path) -> None:
    """Refuse a prior that cannot be adapted.

    Raises:
        DataError: it is conditioned on classes, which public images do not have.
    """
    classes = prior.average.architecture.c_dim
    if classes > 0:
        raise DataError(
            f"--prior {where}: is conditioned on {classes} classes, so that it cannot be adapted to "
            "public images without them; attack with it as it is (in an audit: --set "
            "adaptation.steps=0), or give one that is not conditioned"
        )


def few_images(count: int) -> str | None:
    """A warning if ``count`` public images are too few to train or adapt a prior on, else None."""
    if count >= FEW_IMAGES:
        return None
    return (
        f"--public holds {count} images; with adaptive augmentation a prior needs a few thousand "
        f"(Karras et al. 2020, 'Training GANs with Limited Data'), and below about {FEW_IMAGES} its "
        "discriminator learns them by heart: expect images of less variety, and add more if you can"
    )
