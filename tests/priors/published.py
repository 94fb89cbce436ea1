"""Writes files in the layout of NVIDIA's pickled networks, without NVIDIA's code.

torch_utils/persistence.py pickles an object as a call of ``_reconstruct_persistent_obj`` with its
module's source, its class's name and its state; the state is the module's ``__dict__``.
"""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import nn

SOURCE = "raise SystemExit('the source in the file was run')\n"


def _reconstruct_persistent_obj(meta: Any) -> None:
    raise AssertionError("only its name is pickled")


class EasyDict(dict):  # type: ignore[type-arg]
    """As dnnlib.util.EasyDict is pickled: a subclass of dict."""


_reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
EasyDict.__module__ = "dnnlib.util"


class Persistent:
    """Pickled as an object of a persistent class; ``changed`` overrides what is said about it."""

    def __init__(self, class_name: str, own: Mapping[str, Any], **changed: Any) -> None:
        self.meta = {
            "type": "class",
            "version": 6,
            "module_src": SOURCE,
            "class_name": class_name,
            "state": dict(own),
            **changed,
        }

    def __reduce__(self) -> tuple[Any, ...]:
        return _reconstruct_persistent_obj, (self.meta,), None


def persistent(
    module: nn.Module,
    class_name: str = "Module",
    arguments: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    path: str = "",
) -> Persistent:
    """``module`` as its class would be pickled; ``settings`` are attributes by dotted name."""
    own = {k: v for k, v in (settings or {}).items() if k.rpartition(".")[0] == path}
    children = {
        name: persistent(child, type(child).__name__, None, settings, f"{path}.{name}".lstrip("."))
        for name, child in module.named_children()
    }
    state = {
        **{k: v for k, v in module.__dict__.items() if k.startswith("_") and k != "_modules"},
        "training": False,
        "_modules": children,
        "weight_gain": np.float64(0.25),
        **{k.rpartition(".")[2]: v for k, v in own.items()},
        "_init_args": (),
        "_init_kwargs": _easy(arguments or {}),
    }
    return Persistent(class_name, state)


def _easy(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings as dnnlib's, the outer one plain."""
    return {k: EasyDict(v) if isinstance(v, Mapping) else v for k, v in values.items()}


def augment_pipe(p: float) -> Persistent:
    """The augmentation pipeline, of which the probability counts."""
    module = nn.Module()
    module.register_buffer("p", torch.tensor(p))
    return persistent(module, "AugmentPipe", {"xflip": 1})


@contextmanager
def published_names() -> Iterator[None]:
    """The modules that the names in a file belong to, while it is written."""
    persistence, util = ModuleType("torch_utils.persistence"), ModuleType("dnnlib.util")
    persistence._reconstruct_persistent_obj = _reconstruct_persistent_obj  # type: ignore[attr-defined]
    util.EasyDict = EasyDict  # type: ignore[attr-defined]
    modules = {
        "torch_utils": ModuleType("torch_utils"),
        "torch_utils.persistence": persistence,
        "dnnlib": ModuleType("dnnlib"),
        "dnnlib.util": util,
    }
    with mock.patch.dict(sys.modules, modules):
        yield


def pickled(value: Any, protocol: int = 4) -> bytes:
    """``value`` as the training loop would write it."""
    buffer = io.BytesIO()
    with published_names():
        pickle.dump(value, buffer, protocol=protocol)
    return buffer.getvalue()
