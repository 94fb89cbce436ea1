"""Published networks as a prior of ours: their settings, and their values under the same names.

What a network is is read from its modules where they say it, since the defaults of its arguments
differ between NVIDIA's two repositories with StyleGAN2 (stylegan2-ada-pytorch and stylegan3); what
only the arguments say, the two agree on. All names and shapes are compared before any network is
built, so that nothing is larger than the file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from inversight.core.config import from_mapping, to_mapping
from inversight.core.errors import ConfigError, DataError
from inversight.priors.architecture import Architecture
from inversight.priors.pickle_records import shown
from inversight.priors.published import published_architecture
from inversight.priors.published_pickle import PublishedFile, PublishedNetwork, read_published
from inversight.priors.style_prior import StylePrior
from inversight.priors.stylegan2 import Discriminator, Generator
from inversight.settings import PriorTraining, PublishedName, published_training

_MAPPING = {
    "num_layers",
    "embed_features",
    "layer_features",
    "activation",
    "lr_multiplier",
    "w_avg_beta",
}
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
"""Arguments of StyleGAN2-ADA's classes; other classes have others."""
_TRANSFER_ADA_IMAGES = 100e3
"""Images in which augmentation may go from 0 to 1 when training goes on with other images."""


@dataclass(frozen=True)
class ImportedPrior:
    """A published prior, and what its file said of itself."""

    prior: StylePrior
    facts: Mapping[str, Any]


def import_published(path: Path) -> ImportedPrior:
    """Read NVIDIA's pickled networks as a prior, running nothing that is in the file.

    Raises:
        DataError: not such a file, hostile, damaged, or of another layout.
    """
    found = read_published(path)
    prior = _Layout(str(path), found).prior()
    with path.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    architecture = prior.average.architecture
    return ImportedPrior(
        prior,
        {
            "source": path.name,
            "sha256": digest,
            "classes": {
                "G": found.generator.class_name,
                "D": found.discriminator.class_name,
                "G_ema": found.average.class_name,
            },
            "configuration": _configuration(architecture),
            "image_shape": list(prior.image_shape),
            "architecture": to_mapping(architecture),
            "augmentation": found.augmentation,
            "training_set": found.training_set,
        },
    )


def _configuration(architecture: Architecture) -> str:
    """The published configuration that has these networks, whatever their precision, or 'custom'."""
    for name in get_args(PublishedName):
        published = replace(
            published_architecture(
                name,
                size=architecture.size,
                channels=architecture.channels,
                c_dim=architecture.c_dim,
            ),
            half_resolutions=architecture.half_resolutions,
            conv_clamp=architecture.conv_clamp,
            cmap_dim=architecture.cmap_dim,
        )
        if published == architecture:
            return str(name)
    return "custom"


class _Layout:
    """Compares a published file with the networks that StyleGAN2-ADA has."""

    def __init__(self, where: str, found: PublishedFile) -> None:
        self.where = where
        self.found = found
        self.networks = {
            "G": (found.generator, "Generator"),
            "D": (found.discriminator, "Discriminator"),
            "G_ema": (found.average, "Generator"),
        }

    def prior(self) -> StylePrior:
        for label, (network, kind) in self.networks.items():
            self._check_arguments(label, network, kind)
        architecture = self._architecture()
        try:
            with torch.device("meta"):
                made = {
                    "Generator": Generator(architecture).state_dict(),
                    "Discriminator": Discriminator(architecture).state_dict(),
                }
        except (RuntimeError, TypeError, OverflowError):
            raise self._refusal("its sizes are beyond any network's") from None
        shapes = {
            kind: {name: tuple(value.shape) for name, value in state.items()}
            for kind, state in made.items()
        }
        for label, (network, kind) in self.networks.items():
            self._check_state(label, network.state, shapes[kind])
        raw, average = Generator(architecture), Generator(architecture)
        critic = Discriminator(architecture)
        for module, network in (
            (raw, self.found.generator),
            (critic, self.found.discriminator),
            (average, self.found.average),
        ):
            module.load_state_dict(dict(network.state))
            module.requires_grad_(False)
        return StylePrior(
            average=average,
            raw=raw,
            critic=critic,
            training=_training(architecture),
            image_shape=architecture.image_shape,
            augmentation=self.found.augmentation,
        )

    def _check_arguments(self, label: str, network: PublishedNetwork, kind: str) -> None:
        if network.class_name != kind:
            raise self._refusal(f"{label} is of class {network.class_name}, expected {kind}")
        known = _ARGUMENTS[kind]
        groups = {
            "": network.arguments,
            **{k: v for k, v in network.arguments.items() if k in known},
        }
        for group, values in groups.items():
            if not isinstance(values, Mapping):
                raise self._refusal(f"{label} has no settings in {group}")
            for name, value in values.items():
                if name not in known[group] and not (group == "" and name in known):
                    raise self._refusal(
                        f"{label} has the setting {group}.{name}".replace(" .", " ")
                    )
                if name == "activation" and value != "lrelu":
                    raise self._refusal(f"{label} has the activation {value}, expected lrelu")

    def _architecture(self) -> Architecture:
        g, d = self.found.average, self.found.discriminator
        size = self._setting("G_ema", "img_resolution")
        synthesis = {**g.arguments, **g.arguments.get("synthesis_kwargs", {})}
        clamps = [
            self._setting("G_ema", f"synthesis.b{size}.conv1.conv_clamp"),
            self._setting("D", f"b{size}.conv0.conv_clamp"),
        ]
        if clamps[0] != clamps[1]:
            raise self._refusal(f"G_ema clamps at {clamps[0]}, D at {clamps[1]}")
        c_dim = self._setting("G_ema", "c_dim")
        conditional = (
            {
                "cmap_dim": self._setting("D", "b4.cmap_dim"),
                "cmap_depth": self._setting("D", "mapping.num_layers"),
                "cmap_rate": self._setting("D", "mapping.fc0.bias_gain"),
            }
            if c_dim
            else {}
        )
        depths = [self._setting("G_ema", "mapping.num_layers"), conditional.get("cmap_depth", 0)]
        if any(not isinstance(n, int) or n > len(g.state) for n in depths):
            raise self._refusal("its mapping networks have more layers than parameters")
        values = {
            "size": size,
            "channels": self._setting("G_ema", "img_channels"),
            "z_dim": self._setting("G_ema", "z_dim"),
            "w_dim": self._setting("G_ema", "w_dim"),
            "c_dim": c_dim,
            "mapping_depth": depths[0],
            "mapping_rate": self._setting("G_ema", "mapping.fc0.bias_gain"),
            "w_avg_beta": self._setting("G_ema", "mapping.w_avg_beta"),
            "half_resolutions": min(_half_blocks(g), _half_blocks(d)),
            "conv_clamp": clamps[0],
            "generator": self._setting("G_ema", f"synthesis.b{size}.architecture"),
            "discriminator": self._setting("D", f"b{size}.architecture"),
            "noise": self._setting("G_ema", "synthesis.b4.conv1.use_noise"),
            "group": d.settings.get("b4.mbstd.group_size"),
            "group_channels": d.settings.get("b4.mbstd.num_channels", 0),
            **{
                ours: synthesis[theirs]
                for ours, theirs in (
                    ("channel_base", "channel_base"),
                    ("channel_max", "channel_max"),
                    ("filter_taps", "resample_filter"),
                )
                if theirs in synthesis
            },
            **conditional,
        }
        try:
            architecture = from_mapping(Architecture, values)
        except ConfigError as error:
            raise self._refusal(str(error)) from None
        if architecture.channels not in (1, 3):
            raise self._refusal(
                f"its images have {architecture.channels} channels, expected 1 or 3"
            )
        return architecture

    def _setting(self, label: str, name: str) -> Any:
        network, _ = self.networks[label]
        if name not in network.settings:
            raise self._refusal(f"{label} does not say its {name}")
        return network.settings[name]

    def _check_state(
        self, label: str, state: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]
    ) -> None:
        for name in sorted(expected.keys() | state.keys()):
            if name not in state:
                raise self._refusal(f"{label} has no {name}")
            if name not in expected:
                raise self._refusal(f"{label} has {name}")
            if tuple(state[name].shape) != expected[name]:
                found = tuple(state[name].shape)
                raise self._refusal(f"{label} has {name} of {found}, expected {expected[name]}")

    def _refusal(self, what: str) -> DataError:
        return DataError(
            f"{self.where}: not the layout of StyleGAN2-ADA's networks: {shown(what, 200)}; networks "
            "of StyleGAN2-ADA for PyTorch and StyleGAN2's of the stylegan3 repository can be imported"
        )


def _half_blocks(network: PublishedNetwork) -> int:
    """How many blocks run in half precision."""
    return sum(
        value is True
        for name, value in network.settings.items()
        if name.rpartition(".")[2] == "use_fp16"
    )


def _training(architecture: Architecture) -> PriorTraining:
    """How the authors' code goes on with a published network on one GPU (`--cfg=auto --resume`)."""
    values = {
        **published_training("auto", size=architecture.size),
        "ada_images": _TRANSFER_ADA_IMAGES,
        "ema_rampup": None,
        "noise": architecture.noise,
    }
    return from_mapping(PriorTraining, values)
