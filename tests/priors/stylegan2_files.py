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

from inversight.core.seeding import generator
from inversight.priors import StylePrior
from inversight.priors.architecture import Architecture
from inversight.priors.stylegan2 import Discriminator, Generator, initialise
from inversight.settings import PriorTraining

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
        self.meta: dict[str, Any] = {
            "type": "class", "version": 6, "module_src": SOURCE, "class_name": class_name,
            "state": dict(own), **changed,
        }  # fmt: skip

    def __reduce__(self) -> tuple[Any, ...]:
        return _reconstruct_persistent_obj, (self.meta,), None


def persistent(
    module: nn.Module, class_name: str = "Module", arguments: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None, path: str = "",
) -> Persistent:  # fmt: skip
    """Return ``module`` as its class would be pickled; ``settings`` are attributes by dotted name."""
    children = {
        name: persistent(child, type(child).__name__, None, settings, f"{path}.{name}".lstrip("."))
        for name, child in module.named_children()
    }
    state = {
        **{k: v for k, v in module.__dict__.items() if k.startswith("_") and k != "_modules"},
        "training": False,
        "_modules": children,
        "weight_gain": np.float64(0.25),
        "_init_args": (),
        "_init_kwargs": {
            k: EasyDict(v) if isinstance(v, Mapping) else v for k, v in (arguments or {}).items()
        },
    }
    for key, value in (settings or {}).items():
        module_path, _, name = key.rpartition(".")
        if module_path == path:
            state[name] = value
    return Persistent(class_name, state)


def augment_pipe(p: float) -> Persistent:
    """Return the augmentation pipeline, of which only the probability is read."""
    module = nn.Module()
    module.register_buffer("p", torch.tensor(p))
    return persistent(module, "AugmentPipe", {"xflip": 1})


@contextmanager
def published_names() -> Iterator[None]:
    """Provide the modules that the names in a file belong to, while it is written."""
    names = ("torch_utils", "torch_utils.persistence", "dnnlib", "dnnlib.util")
    modules = {name: ModuleType(name) for name in names}
    for value in (_reconstruct_persistent_obj, EasyDict):
        setattr(modules[value.__module__], value.__name__, value)
    with mock.patch.dict(sys.modules, modules):
        yield


def pickled(value: Any, protocol: int = 4) -> bytes:
    """Return ``value`` as the training loop would write it."""
    buffer = io.BytesIO()
    with published_names():
        pickle.dump(value, buffer, protocol=protocol)
    return buffer.getvalue()


def random_prior(architecture: Architecture, seed: int = 0) -> StylePrior:
    """Return a prior whose parameters and buffers, except for filters, are drawn at random."""
    raw, average = Generator(architecture), Generator(architecture)
    critic = Discriminator(architecture)
    for i, network in enumerate((raw, average, critic)):
        rng = generator(seed, i)
        initialise(network, rng)
        for name, value in network.state_dict().items():
            if not name.endswith("resample_filter"):
                value += 0.1 * torch.randn(value.shape, generator=rng)
        network.requires_grad_(False)
    return StylePrior(average, raw, critic, PriorTraining())


def published_file(prior: StylePrior, **parts: Any) -> dict[str, Any]:
    """Return what the training loop would pickle of ``prior``, with some ``parts`` replaced."""
    return {
        "training_set_kwargs": {"path": "faces.zip", "xflip": True},
        "augment_pipe": augment_pipe(0.25),
        "G": persistent_generator(prior.raw),
        "D": persistent_discriminator(prior.critic),
        "G_ema": persistent_generator(prior.average),
        **parts,
    }


def persistent_generator(network: Generator, **changed: Any) -> Persistent:
    """Return a generator with the arguments and attributes that the published class has."""
    a = network.architecture
    own = _images(a) | {"z_dim": a.z_dim, "w_dim": a.w_dim}
    arguments = own | {
        "mapping_kwargs": {"num_layers": a.mapping_depth},
        "synthesis_kwargs": _blocks(a, a.generator) | {"resample_filter": list(a.filter_taps)},
    }
    settings = own | {
        "mapping.num_layers": a.mapping_depth,
        "mapping.w_avg_beta": a.w_avg_beta,
        "mapping.fc0.bias_gain": a.mapping_rate,
    }
    for r in a.resolutions:
        settings[f"synthesis.b{r}.use_fp16"] = a.half_at(r)
        settings[f"synthesis.b{r}.architecture"] = a.generator
        settings[f"synthesis.b{r}.conv1.conv_clamp"] = a.conv_clamp
        settings[f"synthesis.b{r}.conv1.use_noise"] = a.noise
    return persistent(network, "Generator", {**arguments, **changed}, settings)


def persistent_discriminator(network: Discriminator, **changed: Any) -> Persistent:
    """Return a discriminator with the arguments and attributes that the published class has."""
    a = network.architecture
    arguments = (
        _images(a)
        | _blocks(a, a.discriminator)
        | {
            "block_kwargs": {"resample_filter": list(a.filter_taps)},
            "mapping_kwargs": {},
            "epilogue_kwargs": {
                "mbstd_group_size": a.group,
                "mbstd_num_channels": a.group_channels,
            },
        }
    )
    settings = _images(a) | {
        "b4.cmap_dim": (a.cmap_dim or a.width_at(4)) if a.c_dim else 0,
        "mapping.num_layers": a.cmap_depth,
        "mapping.fc0.bias_gain": a.cmap_rate,
    }
    for r in a.resolutions[1:]:
        settings[f"b{r}.use_fp16"] = a.half_at(r)
        settings[f"b{r}.architecture"] = a.discriminator
        settings[f"b{r}.conv0.conv_clamp"] = a.conv_clamp
    made = persistent(network, "Discriminator", {**arguments, **changed}, settings)
    if a.group_channels > 0:
        spread = {"group_size": a.group, "num_channels": a.group_channels}
        state_of(made, "b4")["_modules"]["mbstd"] = Persistent("MinibatchStdLayer", spread)
    return made


def state_of(found: Persistent, path: str = "") -> dict[str, Any]:
    """Return the state of the module at ``path``, names joined by dots; changes apply to the file."""
    state: dict[str, Any] = found.meta["state"]
    for name in filter(None, path.split(".")):
        state = state["_modules"][name].meta["state"]
    return state


def _images(a: Architecture) -> dict[str, Any]:
    return {"c_dim": a.c_dim, "img_resolution": a.size, "img_channels": a.channels}


def _blocks(a: Architecture, connections: str) -> dict[str, Any]:
    return {
        "channel_base": a.channel_base, "channel_max": a.channel_max, "architecture": connections,
        "num_fp16_res": a.half_resolutions, "conv_clamp": a.conv_clamp,
    }  # fmt: skip
