"""Imports published StyleGAN2-ADA networks as a prior with the same values.

The architecture is read from attributes of the modules where possible, because default arguments differ
between NVIDIA's two repositories with StyleGAN2 (stylegan2-ada-pytorch and stylegan3). All names and
shapes are compared before any network is built, so no network can be larger than its file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch

from inversight.core.config import from_mapping, to_mapping
from inversight.core.errors import ConfigError, DataError
from inversight.priors.architecture import Architecture, published_architecture
from inversight.priors.restricted_pickle import printable
from inversight.priors.style_prior import StylePrior
from inversight.priors.stylegan2 import Discriminator, Generator
from inversight.priors.stylegan2_pickle import PublishedNetwork, read_published
from inversight.settings import PriorTraining, PublishedName, published_training

_CLASSES: dict[str, type[Generator] | type[Discriminator]] = {
    "G": Generator, "D": Discriminator, "G_ema": Generator,
}  # fmt: skip
_MAPPING = {
    "num_layers", "embed_features", "layer_features", "activation", "lr_multiplier", "w_avg_beta",
}  # fmt: skip
_SHARED = {"channel_base", "channel_max", "num_fp16_res", "conv_clamp", "architecture"}
_LAYERS = {"activation", "resample_filter", "fp16_channels_last"}
_SYNTHESIS = _SHARED | _LAYERS | {"use_noise", "fused_modconv_default"}
_IMAGES = {"c_dim", "img_resolution", "img_channels"}
_ARGUMENTS: dict[str, dict[str, set[str]]] = {
    "Generator": {
        # The stylegan3 repository passes the synthesis network's arguments without nesting.
        "": _IMAGES | _SYNTHESIS | {"z_dim", "w_dim"},
        "mapping_kwargs": _MAPPING,
        "synthesis_kwargs": _SYNTHESIS,
    },
    "Discriminator": {
        "": _IMAGES | _SHARED | {"cmap_dim"},
        "mapping_kwargs": _MAPPING,
        "block_kwargs": _LAYERS | {"freeze_layers"},
        "epilogue_kwargs": {"mbstd_group_size", "mbstd_num_channels", "activation"},
    },
}
"""Arguments of StyleGAN2-ADA's classes, by the argument that contains them."""
_OF_GENERATOR = {
    "size": "img_resolution", "channels": "img_channels", "c_dim": "c_dim", "z_dim": "z_dim",
    "w_dim": "w_dim", "mapping_depth": "mapping.num_layers", "w_avg_beta": "mapping.w_avg_beta",
    "mapping_rate": "mapping.fc0.bias_gain", "noise": "synthesis.b4.conv1.use_noise",
}  # fmt: skip
_OF_CLASSES = {
    "cmap_dim": "b4.cmap_dim", "cmap_depth": "mapping.num_layers",
    "cmap_rate": "mapping.fc0.bias_gain",
}  # fmt: skip
"""Attributes of the modules from which fields of Architecture are read: of G_ema, and of D if it is
conditioned on classes."""
_TRANSFER_ADA_IMAGES = 100e3
"""Images over which augmentation may rise from 0 to 1 when training continues on other images."""


@dataclass(frozen=True)
class ImportedPrior:
    """A published prior, and facts about its file for a JSON file."""

    prior: StylePrior
    facts: Mapping[str, Any]


def import_published(path: Path) -> ImportedPrior:
    """Import NVIDIA's pickled networks as a prior, without running anything in the file.

    Raises:
        DataError: not such a file, hostile, damaged, or of another layout.
    """
    found = read_published(path)
    networks = found.networks
    try:
        for label, network in networks.items():
            _check_arguments(label, network)
        architecture = _architecture(networks)
        _check_states(networks, architecture)
    except _LayoutError as error:
        raise DataError(
            f"{path}: not the layout of StyleGAN2-ADA's networks: {printable(str(error), 200)}; networks "
            "of StyleGAN2-ADA for PyTorch and StyleGAN2's of the stylegan3 repository can be imported"
        ) from None
    average, raw, critic = (
        Generator(architecture),
        Generator(architecture),
        Discriminator(architecture),
    )
    for module, label in ((raw, "G"), (critic, "D"), (average, "G_ema")):
        module.load_state_dict(dict(networks[label].state))
        module.requires_grad_(False)
    training = _training(architecture)
    prior = StylePrior(average, raw, critic, training, augmentation=found.augmentation)
    with path.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    return ImportedPrior(
        prior,
        {
            "source": path.name, "sha256": digest,
            "classes": {label: network.class_name for label, network in networks.items()},
            "configuration": configuration_name(architecture),
            "image_shape": list(prior.image_shape), "architecture": to_mapping(architecture),
            "augmentation": found.augmentation, "training_set": found.training_set,
        },
    )  # fmt: skip


def configuration_name(architecture: Architecture) -> str:
    """Return the name of the published configuration, whatever the precision, or 'custom'."""
    a = architecture
    same = {"half_resolutions", "conv_clamp", "cmap_dim"}
    for name in get_args(PublishedName):
        published = published_architecture(name, size=a.size, channels=a.channels, c_dim=a.c_dim)
        if replace(published, **{field: getattr(a, field) for field in same}) == a:
            return str(name)
    return "custom"


class _LayoutError(Exception):
    """The file holds networks that :class:`Architecture` cannot describe."""


def _check_arguments(label: str, network: PublishedNetwork) -> None:
    kind = _CLASSES[label].__name__
    if network.class_name != kind:
        raise _LayoutError(f"{label} is of class {network.class_name}, expected {kind}")
    known = _ARGUMENTS[kind]
    groups = {"": network.arguments} | {k: v for k, v in network.arguments.items() if k in known}
    for group, values in groups.items():
        if not isinstance(values, Mapping):
            raise _LayoutError(f"{label} has no settings in {group}")
        for name, value in values.items():
            if name not in known[group] and not (group == "" and name in known):
                raise _LayoutError(f"{label} has the setting {f'{group}.{name}'.lstrip('.')}")
            if name == "activation" and value != "lrelu":
                raise _LayoutError(f"{label} has the activation {value}, expected lrelu")


def _architecture(networks: Mapping[str, PublishedNetwork]) -> Architecture:
    g, d = networks["G_ema"], networks["D"]

    def setting(label: str, name: str) -> Any:
        if name not in networks[label].settings:
            raise _LayoutError(f"{label} does not say its {name}")
        return networks[label].settings[name]

    values = {field: setting("G_ema", name) for field, name in _OF_GENERATOR.items()}
    if values["c_dim"]:
        values |= {field: setting("D", name) for field, name in _OF_CLASSES.items()}
    size = values["size"]
    g_clamp = setting("G_ema", f"synthesis.b{size}.conv1.conv_clamp")
    d_clamp = setting("D", f"b{size}.conv0.conv_clamp")
    if g_clamp != d_clamp:
        raise _LayoutError(f"G_ema clamps at {g_clamp}, D at {d_clamp}")
    values |= {
        "half_resolutions": min(_half_precision_blocks(g), _half_precision_blocks(d)),
        "conv_clamp": g_clamp,
        "generator": setting("G_ema", f"synthesis.b{size}.architecture"),
        "discriminator": setting("D", f"b{size}.architecture"),
        "group": d.settings.get("b4.mbstd.group_size"),
        "group_channels": d.settings.get("b4.mbstd.num_channels", 0),
    }
    synthesis = {**g.arguments, **g.arguments.get("synthesis_kwargs", {})}
    for field in ("channel_base", "channel_max", "filter_taps"):
        argument = "resample_filter" if field == "filter_taps" else field
        if argument in synthesis:
            values[field] = synthesis[argument]
    depths = values["mapping_depth"], values.get("cmap_depth", 0)
    if any(not isinstance(n, int) or n > len(g.state) for n in depths):
        raise _LayoutError("its mapping networks have more layers than parameters")
    try:
        architecture = from_mapping(Architecture, values)
    except ConfigError as error:
        raise _LayoutError(str(error)) from None
    if architecture.channels not in (1, 3):
        raise _LayoutError(f"its images have {architecture.channels} channels, expected 1 or 3")
    return architecture


def _check_states(networks: Mapping[str, PublishedNetwork], architecture: Architecture) -> None:
    """Compare names and shapes of all tensors with those of networks on the meta device."""
    try:
        with torch.device("meta"):
            states = {kind: kind(architecture).state_dict() for kind in set(_CLASSES.values())}
    except (RuntimeError, TypeError, OverflowError):
        raise _LayoutError("its sizes are beyond any network's") from None
    for label, kind in _CLASSES.items():
        found, expected = (
            {name: tuple(tensor.shape) for name, tensor in state.items()}
            for state in (networks[label].state, states[kind])
        )
        for name in sorted(expected.keys() | found.keys()):
            if name not in found:
                raise _LayoutError(f"{label} has no {name}")
            if found[name] != expected.get(name):
                wanted = expected.get(name, "none")
                raise _LayoutError(f"{label} has {name} of {found[name]}, expected {wanted}")


def _half_precision_blocks(network: PublishedNetwork) -> int:
    return sum(v is True for k, v in network.settings.items() if f".{k}".endswith(".use_fp16"))


def _training(architecture: Architecture) -> PriorTraining:
    """Return the settings with which the authors' code continues on one GPU (`--cfg=auto --resume`)."""
    changed = {"ada_images": _TRANSFER_ADA_IMAGES, "ema_rampup": None, "noise": architecture.noise}
    values = published_training("auto", size=architecture.size) | changed
    return from_mapping(PriorTraining, values)
