"""Published weights of perceptual and Inception networks: where they are kept and how to import them.

Nothing is downloaded. A file that the user fetched is checked against the hash in its published name,
read without unpickling code, and kept as safetensors.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from inversight.core.config import nearest
from inversight.core.errors import WeightsError, one_line
from inversight.core.run import atomic_file, write_json


@dataclass(frozen=True)
class PublishedWeights:
    """A weights file as its publisher offers it. digest: the first characters of its SHA-256."""

    name: str
    file: str
    digest: str
    url: str
    used_by: str
    examples: tuple[str, ...]
    """Parameters that it must contain."""


_TORCHVISION = "https://download.pytorch.org/models/"
_FIDELITY = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
_PUBLISHED = (
    ("vgg16", "vgg16-397923af.pth", "397923af", _TORCHVISION,
     "lpips-vgg", ("features.0.weight", "features.28.weight")),
    ("alexnet", "alexnet-owt-7be5be79.pth", "7be5be79", _TORCHVISION,
     "lpips-alex", ("features.0.weight", "features.10.weight")),
    ("squeezenet1_1", "squeezenet1_1-b8a52dc0.pth", "b8a52dc0", _TORCHVISION,
     "lpips-squeeze", ("features.0.weight", "features.12.squeeze.weight")),
    ("inception", "weights-inception-2015-12-05-6726825d.pth", "6726825d", _FIDELITY,
     "inception", ("Conv2d_1a_3x3.conv.weight", "fc.weight")),
)  # fmt: skip
KNOWN = {row[0]: PublishedWeights(*row) for row in _PUBLISHED}


def folder() -> Path:
    """Return ``$INVERSIGHT_WEIGHTS``, or ``inversight/weights`` in the user's cache folder."""
    if given := os.environ.get("INVERSIGHT_WEIGHTS"):
        return Path(given)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "inversight" / "weights"


def load_weights(name: str) -> dict[str, Tensor]:
    """Return the tensors of published network ``name``.

    Raises:
        WeightsError: they are missing or damaged; the message says how to get them.
    """
    known = KNOWN[name]
    path = folder() / f"{name}.safetensors"
    if path.is_file():
        try:
            return dict(load_file(path))
        except (SafetensorError, OSError) as error:
            raise WeightsError(
                f"{path}: damaged ({error}); import the file again with inversight weights import"
            ) from None
    hub = Path(torch.hub.get_dir()) / "checkpoints" / known.file
    if hub.is_file() and _digest(hub).startswith(known.digest):
        return _read_checked(hub, known)
    raise WeightsError(
        f"{known.used_by} needs the published weights {known.file}, which are not here, and nothing "
        f"is downloaded: fetch {known.url}{known.file} and run `inversight weights import "
        f"{known.file}`, or use public or pixel, which need none"
    )


def import_weights(path: Path) -> Path:
    """Check a published file, keep it as safetensors, and return its path.

    Raises:
        WeightsError: unknown name, wrong checksum, or not plain tensors.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    files = {p.file: p for p in KNOWN.values()}
    known = files.get(path.name)
    if known is None:
        raise WeightsError(
            f"{path}: expected one of {', '.join(files)}, by its published name"
            f"{nearest(path.name, files)}"
        )
    found = _digest(path)
    if not found.startswith(known.digest):
        raise WeightsError(
            f"{path}: SHA-256 begins with {found[:8]}, expected {known.digest}: the file is "
            "incomplete or not the published one; fetch it again"
        )
    tensors = _read_checked(path, known)
    final = folder() / f"{known.name}.safetensors"
    final.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(final) as partial:
        save_file(tensors, partial, metadata={"sha256": found, "file": known.file})
    write_json(final.with_suffix(".json"), {"source_sha256": found, "sha256": _digest(final)})
    return final


def status(name: str) -> str:
    """Return 'ok', 'missing', or what is wrong with the kept file of network ``name``."""
    path = folder() / f"{name}.safetensors"
    if not path.is_file():
        return "missing"
    try:
        facts = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "no checksum was kept; import it again"
    return "ok" if facts.get("sha256") == _digest(path) else "changed since it was imported"


def _read_checked(path: Path, known: PublishedWeights) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise WeightsError(
            f"{path}: not a file of plain tensors ({one_line(error)}); it was not loaded"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise WeightsError(f"{path}: expected named tensors, found {type(state).__name__}")
    if missing := set(known.examples) - state.keys():
        raise WeightsError(f"{path}: has no {min(missing)}; it is not the published {known.name}")
    return {k: v.contiguous() for k, v in state.items()}


def _digest(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
