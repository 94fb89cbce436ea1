"""Weights of a network from safetensors or a checkpoint of PyTorch; nothing but tensors is unpickled."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from inversight.core.checkpoints import read_tensors
from inversight.core.errors import one_line
from inversight.models.loaders.base import CONVERT
from inversight.models.spec import ModelSpec

Names = Sequence[frozenset[str]]
"""Names of tensors that weights must have: of each set at least one."""

_INSIDE = ("_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module.")
"""What torch.compile, activation checkpointing and FSDP put anywhere into names."""
_TOP = "top"
"""How ``&key=`` names tensors that lie below nothing."""
_DEEPEST = 4
"""Mappings in mappings that are looked into."""


def read_weights(
    path: Path, names: Names, model: ModelSpec
) -> tuple[dict[str, Tensor], str | None]:
    """Return the tensors of a network by the network's own names, and a note of what was left out.

    The file is safetensors or what ``torch.save`` wrote, whatever its suffix. Tensors may lie below
    keys (``state_dict``, ``model``) and behind prefixes (``module.``, ``net.``), at any depth.

    Raises:
        TargetError: it is damaged, holds more than tensors and plain values, or has several parts that
            fit and ``model.key`` does not say which.
    """
    parts = read_parts(path, model)
    found = {
        ".".join(filter(None, (key, prefix.rstrip(".")))) or _TOP: (key, prefix, tensors)
        for key, whole in parts.items()
        for prefix, tensors in _behind_prefixes(_unwrapped(whole, names), names)
    }
    if not found:  # the largest, of whose names an error can tell
        return _unwrapped(max(parts.values(), key=len), names), None
    key, prefix, tensors = found[_choose(list(found), path, model)]
    alone = sum(other == key for other, _, _ in found.values()) == 1
    others = [name for name in _unwrapped(parts[key], names) if not name.startswith(prefix)]
    if not others or not alone:  # the others are weights that were not chosen
        return tensors, None
    return tensors, f"{path}: {len(others)} tensor(s) not behind {prefix} left out, as {others[0]}"


def _choose(labels: Sequence[str], path: Path, model: ModelSpec) -> str:
    """Return the label that ``model.key`` names, as a whole or by one of its words, or the only one."""
    key = model.key
    named = [one for one in labels if key is None or one == key]
    if not named:
        named = [one for one in labels if key in re.split(r"[._]", one)]
    if len(named) == 1:
        return named[0]
    listed = ", ".join(named or labels)
    if key is not None and not named:
        raise model.error(f"{path} has no weights of this network below {key}; it has {listed}")
    raise model.error(
        f"{path} holds {len(named)} sets of weights that fit: {listed}; name one, as in "
        f"?weights={path.name}&key={named[-1]}"
    )


def read_parts(path: Path, model: ModelSpec) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of each mapping in the file, by the keys that lead to it.

    Raises:
        TargetError: the file is damaged, or holds more than tensors and plain values.
    """
    try:
        return {"": read_tensors(path)[1]}
    except (SafetensorError, OSError) as error:
        # Tested only now: a good file begins with its header's length, which can look like a pickle.
        if not is_pickle(path):
            reason = f"{path} is not a whole safetensors file or PyTorch checkpoint"
            raise model.error(f"{reason} ({one_line(error)})") from None
    try:
        whole = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        held = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise model.error(
            f"{path} is a pickle or an archive that holds more than tensors"
            f"{f' ({held[1]})' if held else ''}, which can run code when loaded; {CONVERT}"
        ) from None
    parts = dict(_parts(whole, "", 0))
    if not parts:
        raise model.error(f"{path} holds no tensors by name; expected a state dict")
    return parts


def is_pickle(path: Path) -> bool:
    """Return whether a file begins as a pickle does, or is an archive that may hold one."""
    with path.open("rb") as file:
        head = file.read(16)
    return (
        zipfile.is_zipfile(path)
        or head[:1] == b"\x80"
        or head.startswith((b"(dp", b"c", b"]q", b"}q"))
    )


def _parts(value: Any, key: str, depth: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
    if not isinstance(value, Mapping) or depth > _DEEPEST:
        return
    named = {name: one for name, one in value.items() if isinstance(name, str)}
    tensors = {name: one.detach() for name, one in named.items() if isinstance(one, Tensor)}
    if tensors:
        yield key, tensors
    for name, one in named.items():
        yield from _parts(one, f"{key}.{name}" if key else name, depth + 1)


def _unwrapped(tensors: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
    """Return the tensors without what wrappers put inside names, unless the network has it too."""
    own = {mark for mark in _INSIDE for some in names for name in some if mark in name}
    cleaned = {}
    for name, value in tensors.items():
        for mark in _INSIDE:
            name = name if mark in own else name.replace(mark, "")
        cleaned[name] = value
    return cleaned


def _behind_prefixes(
    tensors: Mapping[str, Tensor], names: Names
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield each prefix behind which the names are, and the tensors behind it."""
    if not names:
        yield "", dict(tensors)
        return
    starts = {
        found.removesuffix(name)
        for name in names[0]
        for found in tensors
        if found == name or found.endswith(f".{name}")
    }
    prefixes = [p for p in sorted(starts) if all(any(p + n in tensors for n in s) for s in names)]
    for prefix in prefixes:
        inner = tuple(p for p in prefixes if p != prefix and p.startswith(prefix))
        yield (
            prefix,
            {
                name.removeprefix(prefix): value
                for name, value in tensors.items()
                if name.startswith(prefix) and not name.startswith(inner)
            },
        )


def weight_names(module: nn.Module) -> list[frozenset[str]]:
    """Return the names of each parameter of a network; one that is tied has several."""
    names: dict[int, set[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), set()).add(name)
    return [frozenset(some) for some in names.values()]


def load_weights(module: nn.Module, found: Mapping[str, Tensor], model: ModelSpec) -> None:
    """Load tensors into a network; of tied parameters one name is enough.

    Raises:
        TargetError: a tensor is missing, superfluous or of another shape.
    """
    tensors = dict(found)
    for names in weight_names(module):
        kept = next((name for name in sorted(names) if name in found), None)
        if kept is not None:
            tensors |= {name: found[kept] for name in names if name not in found}
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:240]
        raise model.error(
            f"{model.weights or model.name} does not fit the network ({reason}); does it belong to another "
            "network, or to other classes?"
        ) from None
