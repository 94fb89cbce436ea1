"""What a scoring is given: its settings, and images in folders or in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import torch
from pydantic import Field

from inversight.core.config import from_mapping, settings, to_mapping
from inversight.core.console import Reporter
from inversight.core.errors import DataError, RunError
from inversight.core.imaging import Size, side_of, to_uint8
from inversight.core.run import read_manifest
from inversight.data import ImageSet, absolute_group_by, image_set, load_images
from inversight.models.spec import absolute_spec
from inversight.pipeline.train import PUBLIC_NETWORK
from inversight.settings import DEFAULT_FDR, AuditSettings, PairMeasure

Arrays = tuple[Any, Any]
"""Images (N, C, H, W), uint8 or floats in [0, 1], and their N labels, numbers or names."""
Images = Path | str | ImageSet | Arrays
"""A folder or file that :func:`inversight.data.load_images` reads, or images in memory."""


@settings
class ScoreSettings:
    """What reconstructions are scored against, and how."""

    private: Path | None
    """Folder or file of the private images; None: given in memory."""
    embedding: str
    """The distance."""
    features: str
    """Features of coverage, density, precision, recall and the Frechet distance."""
    holdout: Path | None = None
    """Folder or file of images of the same classes that the target never saw."""
    public: Path | None = None
    """Folder or file of public images: the embedding ``public`` is trained on them, and with a holdout their
    distances are covariates of the tests against it."""
    network: Path | None = None
    """Folder of a public network that was trained before."""
    evaluator: str | None = None
    """Independent classifier, named as a target."""
    classes: Path | None = None
    """File with the evaluator's class names in the order of its outputs."""
    size: Size | None = None
    """Size to which all images are brought."""
    limit: int | None = None
    """Number of classes of the private images, in order. None: all."""
    trust_target: bool = False
    """Load an evaluator's file although loading it runs code."""
    pairs: tuple[PairMeasure, ...] = ("psnr",)
    """Measures of each private image and its nearest reconstruction."""
    allow_overlap: bool = False
    """Go on although private images and holdout share images."""
    fdr: Annotated[float, Field(gt=0.0, lt=1.0)] = DEFAULT_FDR
    """Accepted false discovery rate among flagged images."""
    memory: Annotated[int, Field(ge=16 << 20)] = 2 << 30
    """Bytes for features and distances."""
    seed: int = 0
    """Seed of all random numbers."""

    @classmethod
    def of_run(cls, run: Path, others: Mapping[str, Any]) -> ScoreSettings:
        """Return the settings with which ``run``, an audit or a scoring, was scored, and ``others``.

        Raises:
            RunError: not a run, or one that cannot be added to.
        """
        manifest = read_manifest(run)
        if not manifest["finished"]:
            raise RunError(
                f"--reuse {run}: the run is not finished; continue it with --resume {run}"
            )
        given = manifest["against"] if "against" in manifest else manifest["given"]
        if given.get("hash_ids"):
            raise RunError(
                f"--reuse {run}: was written with --hash-ids, so its images are not known; "
                "score all folders together instead"
            )
        if given["private"] is None:
            raise RunError(
                f"--reuse {run}: its private images are in no folder (embedded digits, or images in "
                "memory); reuse a run on folders"
            )
        known = {one.name: given[one.name] for one in fields(cls) if one.name in given}
        for name, stage in (("network", PUBLIC_NETWORK), ("evaluator", "evaluator")):
            folder = run / "stages" / stage
            if known.get(name) is None and folder.is_dir():
                known[name] = str(folder)
        return from_mapping(cls, {**known, **others})


def anchored(settings: AuditSettings | ScoreSettings) -> dict[str, Any]:
    """Return settings as plain values with absolute paths, so that a run can be resumed anywhere."""
    found: dict[str, Any] = to_mapping(settings)
    for name in ("private", "holdout", "public", "data", "network", "classes"):
        if found.get(name) is not None:
            found[name] = str(Path(found[name]).absolute())
    for name, absolute in (
        ("target", absolute_spec), ("evaluator", absolute_spec), ("recipe", absolute_spec),
        ("group_by", absolute_group_by),
    ):  # fmt: skip
        if found.get(name) is not None:
            found[name] = absolute(found[name])
    if isinstance(found.get("prior"), str) and Path(found["prior"]).exists():
        found["prior"] = str(Path(found["prior"]).absolute())
    return found


def read_images(
    images: Images, role: str, reporter: Reporter, *, size: Size | None = None,
    channels: int | None = None, limit: int | None = None,
) -> ImageSet:  # fmt: skip
    """Return ``images``, read from a folder or given in memory, at a size and a number of channels.

    Raises:
        DataError: a folder that cannot be read, or arrays of another shape or type.
    """
    if isinstance(images, (Path, str)):
        return load_images(
            Path(images), role=role, size=size, channels=channels, limit=limit,
            progress=reporter.stage(role.strip("-")), warn=reporter.warn,
        )  # fmt: skip
    found = images if isinstance(images, ImageSet) else _from_arrays(*images, role=role)
    side = found.size if size is None else side_of(size)
    return found.resized(size=side, channels=channels or found.channels)


def _from_arrays(images: Any, labels: Any, *, role: str) -> ImageSet:
    """Return images (N, C, S, S) and labels (N,) as a set with a made-up name for each image."""
    pixels = torch.as_tensor(images).cpu()
    names = [str(label) for label in np.asarray(labels).tolist()]
    shape = tuple(pixels.shape)
    if len(shape) != 4 or shape[1] not in (1, 3) or shape[2] != shape[3] or len(names) != shape[0]:
        raise DataError(
            f"{role}: expected images of shape (N, 1 or 3, S, S) and N labels, found {shape} and "
            f"{len(names)} labels"
        )
    if pixels.is_floating_point():
        if not bool(((pixels >= 0) & (pixels <= 1)).all()):
            raise DataError(f"{role}: expected floats in [0, 1], or uint8 from 0 to 255")
        pixels = to_uint8(pixels)
    if pixels.dtype != torch.uint8:
        raise DataError(f"{role}: expected floats in [0, 1] or uint8, found {pixels.dtype}")
    ids = [f"{name}/{i:06d}" for i, name in enumerate(names)]
    return image_set(pixels, names, ids, sorted(set(names)))


def path_of(images: Images | None) -> Path | None:
    """Return the folder that images are in, None for images in memory."""
    return Path(images) if isinstance(images, (Path, str)) else None


def sets_by_name(
    given: Images | Sequence[Path | str] | Mapping[str, Images],
) -> list[tuple[str, Images]]:
    """Return the sets of reconstructions with their names, by default their folders'."""
    if isinstance(given, Mapping):
        return list(given.items())
    if isinstance(given, (Path, str)):
        given = [given]
    if isinstance(given, ImageSet) or not all(isinstance(one, (Path, str)) for one in given):
        return [("reconstructions", cast(Images, given))]
    return [(Path(path).absolute().name, Path(path)) for path in given]


def name_sets(
    names: Sequence[str], sets: Sequence[ImageSet], taken: Sequence[str]
) -> dict[str, ImageSet]:
    """Return sets by distinct names that are not in ``taken``.

    Ids of images begin with the set's name where there is more than one set.
    """
    plain, start = names, len(taken)
    while len(set(names)) < len(names) or set(names) & set(taken):
        start += 1
        names = [f"{start + i}-{name}" for i, name in enumerate(plain)]
    if len(sets) + len(taken) == 1:
        return {names[0]: sets[0]}
    return {
        name: replace(s, ids=tuple(f"{name}/{i}" for i in s.ids))
        for name, s in zip(names, sets, strict=True)
    }
