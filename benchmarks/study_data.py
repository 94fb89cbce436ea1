"""The data sets of benchmarks/study.py: folders and the settings that go with them."""

from __future__ import annotations

import shutil
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from inversight.core.seeding import generator

PUBLIC_FEATURES = {"embedding": "public", "features": "public", "guidance_embedding": "public"}

PLAIN_DESCENT = {"halvings": 0, "half": False}
"""Plug & Play's descent as published; kept results were measured with it."""

PLAIN_PRIOR = {"new_latents": True}
"""The prior's training as published; kept results were measured with it."""

PLAIN_DIGITS = {"steps": 1500, "batch_size": 32, "learning_rate": 2e-3}
"""The prior's training of digits as kept results have it."""

FACES = "faces-"
"""What names of folders of drawn faces begin with."""

TRUNCATED = {"truncation": 0.5}
"""Plug & Play's pool as published; presets other than thorough draw from the whole prior."""


@dataclass(frozen=True)
class DataSet:
    """A data set of the study. ``same_domain``: public and private images are of the same kind."""

    name: str
    what: str
    same_domain: bool
    settings: dict[str, Any] = field(default_factory=dict)
    images: str | None = None
    """The data set whose images are used, if it is another one."""

    def given(self, seed: int, data: Path, work: Path) -> dict[str, Any]:
        """Return the settings of an audit; draw missing folders of images under ``work``."""
        prior = PLAIN_PRIOR | self.settings.get("prior", {})
        if self.name == "digits":
            attack = {"class": "plug-and-play", **PLAIN_DESCENT}
            given = {"attack": [attack], "adaptation": {"steps": 300}, **self.settings}
            return {**given, "prior": PLAIN_DIGITS | prior}
        if self.name.startswith("faces"):
            folder = faces(seed, data / "olivetti", work)
        else:
            folder = _vehicles(
                self.images or self.name, seed, data / "cifar10-vehicles.tar.gz", work
            )
        folders = {name: folder / name for name in ("private", "holdout", "public")}
        given = {**folders, **PUBLIC_FEATURES, **self.settings, "prior": prior}
        attacks = given.get("attack", [{"class": "plug-and-play"}])
        return {**given, "attack": [{**one, **PLAIN_DESCENT} for one in attacks]}


_VEHICLES = {
    # private classes, images of each in private (and in holdout); public classes, images of each
    "vehicles-other": (("airplane", "automobile"), 100, ("ship", "truck"), 1500),
    "vehicles-same": (("airplane", "automobile", "ship", "truck"), 50, None, 750),
}

_VEHICLES_SETTINGS: dict[str, Any] = {
    "prior": {"steps": 3000},
    "adaptation": {"steps": 500},
    "attack": [{"class": "plug-and-play", "candidates": 75, "keep": 50}],
}
_FITTED: dict[str, Any] = {
    "target_training": {"validation": 0.0},
    "evaluator_training": {"validation": 0.0},
}

DATASETS = {
    one.name: one
    for one in (
        DataSet("digits", "digits 8x8; public: other handwriting of the same digits", True),
        DataSet(
            "faces-32",
            "Olivetti faces at 32x32, 20 private people x 5; public: 20 other people x 10",
            True,
        ),
        DataSet(
            "faces-64",
            "Olivetti faces at 64x64, the same people",
            True,
            {"working_size": 64, "prior": {"steps": 3000}, "adaptation": {"steps": 500}},
        ),
        DataSet(
            "vehicles-same",
            "CIFAR-10 airplane, automobile, ship, truck x 50; public: 750 others of each",
            True,
            _VEHICLES_SETTINGS,
        ),
        DataSet(
            "vehicles-fitted",
            "the same images; target and evaluator trained to the last epoch, without early stopping",
            True,
            _VEHICLES_SETTINGS | _FITTED,
            images="vehicles-same",
        ),
        DataSet(
            "vehicles-other",
            "CIFAR-10 airplane, automobile x 100; public: 1,500 ships and 1,500 trucks",
            False,
            {
                "prior": {"steps": 3000},
                "adaptation": {"steps": 500},
                "attack": [{"class": "plug-and-play", "candidates": 150, "keep": 100}],
            },
        ),
    )
}


def faces(seed: int, images: Path, work: Path) -> Path:
    """Draw which five of each person's ten shots are private, the others being holdout; return the folder.

    The folders' own split is by shot: shots of one session are alike, so that private and holdout images
    differ without a leak.
    """
    folder = work / "data" / f"{FACES}{seed}"
    if (folder / "complete").is_file():
        return folder
    shutil.copytree(images / "public", folder / "public", dirs_exist_ok=True)
    for person in sorted(p.name for p in (images / "private").iterdir()):
        shots = sorted(
            file for part in ("private", "holdout") for file in (images / part / person).iterdir()
        )
        order = torch.randperm(len(shots), generator=generator(seed, "faces", person)).tolist()
        for rank, number in enumerate(order):
            part = "private" if rank < len(shots) // 2 else "holdout"
            path = folder / part / person / shots[number].name
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(shots[number], path)
    (folder / "complete").touch()
    return folder


def _vehicles(name: str, seed: int, archive: Path, work: Path) -> Path:
    """Draw disjoint private, holdout and public images from the archive; return their folder."""
    folder = work / "data" / f"{name}-{seed}"
    if (folder / "complete").is_file():
        return folder
    private_classes, each, public_classes, public_each = _VEHICLES[name]
    with tarfile.open(archive) as tar:
        members = {m.name: m for m in tar.getmembers() if m.isfile()}
        names = sorted(n for n in members if n.startswith("train/"))
        for label in sorted({n.split("/")[1] for n in names}):
            files = [n for n in names if n.split("/")[1] == label]
            order = torch.randperm(len(files), generator=generator(seed, name, label)).tolist()
            files = [files[i] for i in order]
            parts: dict[str, list[str]] = {}
            if label in private_classes:
                parts["private"], parts["holdout"] = files[:each], files[each : 2 * each]
                files = files[2 * each :]
            if label in (public_classes or private_classes):
                parts["public"] = files[:public_each]
            for part, chosen in parts.items():
                for file in chosen:
                    source = tar.extractfile(members[file])
                    if source is None:
                        raise SystemExit(f"{archive}: {file} is not a file")
                    path = folder / part / label / Path(file).name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(source.read())
    (folder / "complete").touch()
    return folder
