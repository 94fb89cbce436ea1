"""Write and read reconstructions: images by class, and their latents."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from inversight.attacks.base import Reconstructions
from inversight.core.imaging import to_uint8
from inversight.data import write_images

LATENTS = "latents.safetensors"
PICTURES = "reconstructions"
"""The folder of an attack's images, one subfolder for each class."""


def write_reconstructions(
    folder: Path, found: Reconstructions, *, classes: Sequence[str], name: str
) -> None:
    """Write images, best first, as ``folder/reconstructions/CLASS/NAME-0001.png``, and latents."""
    write_images(
        folder / PICTURES, to_uint8(found.images.cpu()), _names(found.labels, classes, name)
    )
    tensors = {"latents": found.latents, "labels": found.labels, "losses": found.losses}
    if found.features is not None:
        tensors["features"] = found.features
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, folder / LATENTS)


def _names(labels: Tensor, classes: Sequence[str], name: str) -> list[str]:
    """Return CLASS/NAME-0001.png and so on, numbered within each class."""
    order: dict[int, int] = {}
    names = []
    for label in labels.tolist():
        order[label] = order.get(label, 0) + 1
        names.append(f"{classes[label]}/{name}-{order[label]:04d}.png")
    return names


def load_features(folder: Path, *, classes: Sequence[str], name: str) -> dict[str, Tensor]:
    """Return the features (D,) that the attack called ``name`` found, by image; {} if it found images."""
    tensors = load_latents(folder)
    if "features" not in tensors:
        return {}
    return dict(zip(_names(tensors["labels"], classes, name), tensors["features"], strict=True))


def move_pictures(source: Path, target: Path) -> None:
    """Move the images of an attack written to ``source`` to ``target``, replacing those there."""
    found = sorted((source / PICTURES).rglob("*.png"))  # also of a class with a slash in its name
    for file in (one for one in found if one.is_file()):
        place = target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        file.replace(place)
    shutil.rmtree(source / PICTURES, ignore_errors=True)


def load_latents(folder: Path) -> dict[str, Tensor]:
    """Return the latents (M, ...), labels (M,) and losses (M,) of an attack written to ``folder``.

    Beside them the features (M, D), if it found features instead of images.
    """
    tensors: dict[str, Tensor] = load_file(folder / LATENTS)
    return tensors
