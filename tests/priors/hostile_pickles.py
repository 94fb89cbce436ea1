"""Files of published networks that try to run something, and the check that they are rejected."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from inversight.core.errors import DataError
from inversight.priors.stylegan2_pickle import PublishedFile, read_published
from tests.priors.stylegan2_files import Persistent, persistent, pickled

RAN = []
"""Calls that a hostile file made; there must be none."""


def ran(*what: object) -> None:
    RAN.append(what)


class Hostile:
    """Runs ``function`` when it is unpickled the usual way."""

    def __init__(self, function: Callable[..., object] = ran, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def network(**tensors: Tensor) -> nn.Module:
    """Return a module in a module, with parameters, buffers, and some that are None."""
    module, child = nn.Module(), nn.Module()
    for name, value in (tensors or {"weight": torch.arange(6.0).reshape(2, 3)}).items():
        child.register_parameter(name, nn.Parameter(value))
    child.register_parameter("bias", None)
    child.register_buffer("filter", torch.ones(2, 2) / 4)
    module.add_module("layer", child)
    module.add_module("nothing", None)
    module.register_buffer("mean", torch.tensor(3.0))
    return module


def file(**parts: Any) -> dict[str, Any]:
    arguments = {"z_dim": 5, "taps": [1, 3, 3, 1], "mapping_kwargs": {"num_layers": 2}}
    made = {
        name: persistent(network(), kind, arguments, {"layer.conv_clamp": 256, "size": 8})
        for name, kind in (("G", "Generator"), ("D", "Discriminator"), ("G_ema", "Generator"))
    }
    known = {"training_set_kwargs": {"path": "faces.zip", "xflip": True}, "augment_pipe": None}
    return {**known, **made, **parts}


def generator(own: Mapping[str, Any] | None = None, **changed: Any) -> dict[str, Any]:
    """Return a file whose G has this state, and other facts about its class."""
    return file(G=Persistent("Generator", own or {}, **changed))


def read(content: Any, path: Path) -> PublishedFile:
    """Read a file of these bytes, or of this pickled value."""
    path.write_bytes(content if isinstance(content, bytes) else pickled(content))
    return read_published(path)


def refused(content: Any, path: Path, *parts: str) -> None:
    """Check that reading fails with one clear line that names the file, and that nothing ran."""
    RAN.clear()
    with pytest.raises(DataError) as caught:
        read(content, path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and message.isprintable()
    assert len(message) < 600
    for part in parts:
        assert part in message
    assert not RAN
