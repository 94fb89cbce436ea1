"""Reads a saved prior, and validates that it fits its use."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from inversight.core.errors import DataError
from inversight.priors.style_prior import StylePrior

PRIOR_FILE = "prior.safetensors"
"""Name of the file in a folder that `inversight prior train`, `prior import` or `adapt` wrote."""
FEW_IMAGES = 2000
COLOURS = {1: "grey", 3: "colour"}
"""Names of images with one and three channels."""


@dataclass(frozen=True)
class PriorFile:
    """A prior, its file and a hash of the file's content."""

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
    """Validate that the prior's images have as many channels as ``what``.

    Raises:
        DataError: they differ; ``remedy`` says what to do.
    """
    own = prior.image_shape[0]
    if own != channels:
        kinds = [f"{n} channel{'' if n == 1 else 's'} ({COLOURS[n]})" for n in (own, channels)]
        raise DataError(f"--prior {where}: its images have {kinds[0]}, {what} {kinds[1]}: {remedy}")


def check_adaptable(prior: StylePrior, where: Path) -> None:
    """Validate that the prior can be adapted.

    Raises:
        DataError: it is conditional, and public images have no classes.
    """
    if prior.num_classes > 0:
        raise DataError(
            f"--prior {where}: is conditioned on {prior.num_classes} classes, so that it cannot be adapted to "
            "public images without them; attack with it as it is (in an audit: --set "
            "adaptation.steps=0), or give one that is not conditioned"
        )


def few_images(count: int) -> str | None:
    """Return a warning if ``count`` public images are too few to train or adapt a prior, else None."""
    if count >= FEW_IMAGES:
        return None
    return (
        f"--public holds {count} images; with adaptive augmentation a prior needs a few thousand "
        f"(Karras et al. 2020, 'Training GANs with Limited Data'), and below about {FEW_IMAGES} its "
        "discriminator memorises them: expect images of less variety, and add more if you can"
    )
