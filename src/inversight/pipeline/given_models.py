"""Models that somebody has already, trained with and without images, such as those of LiRA."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl

import torch
from torch import Tensor

from inversight.core.errors import ConfigError, DataError, one_line
from inversight.models.loading import load_target
from inversight.models.spec import ModelSpec, absolute_spec
from inversight.models.target import Target
from inversight.pipeline.plan import Plan

LEAST_MODELS = 4


@dataclass(frozen=True)
class TrainedModel:
    """A model and the images that it was trained on. members: (N,) bool, in the order of the job's images."""

    spec: str
    members: Tensor

    @property
    def file_name(self) -> str:
        """Return a name for what is measured of the model, another one if anything about it has changed."""
        facts = hashlib.sha256(self.spec.encode())
        path, _, query = self.spec.partition("?")
        for file in (path, dict(parse_qsl(query)).get("weights", "")):
            if file and Path(file).exists():
                facts.update(repr(_versions(Path(file))).encode())
        facts.update(self.members.numpy().tobytes())
        return f"{facts.hexdigest()[:16]}.safetensors"

    def load(self, plan: Plan, warn: Callable[[str], None] = lambda text: None) -> Target:
        """Return the model, read as the audit's target is; ``warn`` gets what is seldom meant.

        Raises:
            TargetError: wrong in any way.
        """
        s, private = plan.settings, plan.inputs.private
        model = ModelSpec(
            self.spec, classes=s.classes, mean=s.mean, std=s.std, size=s.size, trust=s.trust_target,
            role="--models", access=plan.access,
        )  # fmt: skip
        found = load_target(
            model, classes=private.classes, size=private.size, channels=private.channels, warn=warn
        )
        if found.classes != private.classes:
            raise model.error(
                "its classes or their order are not the target's; give the order with --classes FILE"
            )
        return found.to(plan.device)


def _versions(path: Path) -> list[tuple[str, int, int]]:
    """Return name, size and time of a file, or of those in a folder."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [(one.name, one.stat().st_size, one.stat().st_mtime_ns) for one in files]


def read_models(file: Path, ids: Sequence[str]) -> list[TrainedModel]:
    """Return the models of a CSV file with the columns ``model`` and ``members``.

    ``model`` is named as a target, ``members`` is a text file with the path of one image a line, below the
    folder of private images or holdout; ``private/`` or ``holdout/`` before it tells equal paths apart.
    Relative paths are relative to the CSV file.

    Args:
        ids: the images that the experiment is about, as ``private/ID`` and ``holdout/ID``.

    Raises:
        ConfigError: the file cannot be read, has other columns or fewer than four models.
        DataError: a member that is not among the images, or is in both folders.
    """
    try:
        with file.open(newline="", encoding="utf-8") as handle:
            rows = list(csv.DictReader(handle))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"--models {file}: cannot be read ({one_line(error)})") from None
    missing = [name for name in ("model", "members") if not rows or not rows[0].get(name)]
    if missing:
        raise ConfigError(
            f"--models {file}: expected the columns model and members, lacks {missing[0]}"
        )
    if len(rows) < LEAST_MODELS:
        raise ConfigError(
            f"--models {file}: expected at least {LEAST_MODELS} models, found {len(rows)}"
        )
    places: dict[str, list[int]] = {}
    for row, name in enumerate(ids):
        places.setdefault(name, []).append(row)
        places.setdefault(name.partition("/")[2], []).append(row)
    found = []
    for number, one in enumerate(rows, start=2):
        where = f"--models {file}, line {number}"
        if not one["model"] or not one["members"]:
            raise ConfigError(f"{where}: expected a model and its members")
        spec = one["model"]
        if (file.parent / spec).exists():
            spec = str((file.parent / spec).absolute())
        found.append(
            TrainedModel(
                absolute_spec(spec), _members(file.parent / one["members"], places, len(ids), where)
            )
        )
    return found


def _members(file: Path, places: dict[str, list[int]], images: int, where: str) -> Tensor:
    try:
        names = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{where}: members {file} cannot be read ({one_line(error)})") from None
    members = torch.zeros(images, dtype=torch.bool)
    unknown = [name for name in names if name and name not in places]
    if unknown and len(unknown) == sum(map(bool, names)):
        raise DataError(
            f"{where}: no member of {file} is an image of --private or --holdout, the first is {unknown[0]}"
        )
    for name in names:
        rows = places.get(name, [])
        if len(rows) > 1:
            raise DataError(
                f"{where}: {name} is in --private and in --holdout; write private/{name} or holdout/{name}"
            )
        members[rows] = True
    return members
