"""What the loaders of model folders with a ``config.json`` share."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inversight.core.errors import one_line
from inversight.models.spec import ModelSpec

CONFIG = "config.json"
WEIGHTS = "model.safetensors"


def read_json(file: Path, model: ModelSpec) -> dict[str, Any]:
    """Return the mapping in a JSON file.

    Raises:
        TargetError: it cannot be read, or holds something else.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise model.error(f"{file.name} cannot be read ({one_line(error)})") from None
    if not isinstance(found, dict):
        raise model.error(f"{file.name} holds no mapping")
    return found


def check_safetensors(folder: Path, model: ModelSpec) -> None:
    """Check that the folder holds weights as safetensors, whole or in parts.

    Raises:
        TargetError: it holds none, or others alone.
    """
    if (folder / WEIGHTS).is_file() or (folder / f"{WEIGHTS}.index.json").is_file():
        return
    other = next((file.name for file in sorted(folder.glob("*.bin"))), None)
    raise model.error(
        f"has no {WEIGHTS}"
        + (f" but {other}, a pickle; " if other else "; ")
        + "save the model with safetensors once where you trust it: "
        "save_pretrained(FOLDER, safe_serialization=True)"
    )


def class_names(
    names: Mapping[Any, Any] | Sequence[Any] | None, model: ModelSpec
) -> tuple[str, ...]:
    """Return names of outputs, a list or by number; () if there are none or only placeholders.

    Raises:
        TargetError: numbers are missing, or two outputs have one name.
    """
    if not names:
        return ()
    if isinstance(names, Mapping):
        try:
            by_number = {int(number): str(name) for number, name in names.items()}
            names = [by_number[i] for i in range(len(by_number))]
        except (ValueError, KeyError):
            raise model.error(
                "its class names are not numbered from 0; give them with --classes FILE"
            ) from None
    listed = tuple(str(name) for name in names)
    if listed == tuple(f"LABEL_{i}" for i in range(len(listed))):
        return ()
    first = {name: i for i, name in reversed(list(enumerate(listed)))}
    twice = next((i for i, name in enumerate(listed) if first[name] != i), None)
    if twice is not None and model.classes is None:
        name = listed[twice]
        raise model.error(
            f"names outputs {first[name]} and {twice} both {name}; give distinct names with "
            "--classes FILE"
        )
    return listed
