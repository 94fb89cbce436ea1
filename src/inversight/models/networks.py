"""Small classifiers that the audit trains itself, and their checkpoints.

Two families that differ in structure, so that an evaluator is never the target's twin: ``resnet``
(pre-activation residual blocks) and ``vgg`` (plain convolutions with pooling). Both take any square
size from 8 up and give their stages' feature maps as well as logits. :class:`NetworkOptions` are the
differences that defences need.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from inversight.core.checkpoints import read_tensors
from inversight.core.errors import TargetError, one_line
from inversight.settings import ClassifierArchitecture

Norm = Literal["batch", "group"]
FILE_NAME = "target.safetensors"
_KEY = "inversight.classifier"


@dataclass(frozen=True)
class NetworkOptions:
    """What may differ from the plain network; the default is the plain one.

    norm: ``group`` normalises each image by itself (Wu & He 2018), ``batch`` with the others of its
    batch. skipless: the stages of a resnet that have no skip connection, negative ones counted from
    the last. bottleneck: values of a normal code between penultimate features and logits, 0 for none.
    """

    norm: Norm = "batch"
    skipless: tuple[int, ...] = ()
    bottleneck: int = 0


PLAIN_NETWORK = NetworkOptions()


def _norm(channels: int, kind: Norm) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(math.gcd(8, channels), channels)


class SkiplessBlock(nn.Module):
    """A residual block without its skip connection, (N, C, H, W) -> (N, C', H / s, W / s)."""

    def __init__(
        self, channels_in: int, channels_out: int, stride: int, norm: Norm = "batch"
    ) -> None:
        super().__init__()
        self.norm1 = _norm(channels_in, norm)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.norm2 = _norm(channels_out, norm)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.residual(F.relu(self.norm1(x)))

    def residual(self, activated: Tensor) -> Tensor:
        """Return what the convolutions make of the block's normalised and rectified input."""
        y: Tensor = self.conv2(F.relu(self.norm2(self.conv1(activated))))
        return y


class ResidualBlock(SkiplessBlock):
    """Pre-activation residual block (He et al. 2016b), (N, C, H, W) -> (N, C', H / s, W / s)."""

    def __init__(
        self, channels_in: int, channels_out: int, stride: int, norm: Norm = "batch"
    ) -> None:
        super().__init__(channels_in, channels_out, stride, norm)
        self.shortcut = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(x))
        out: Tensor = self.shortcut(y) + self.residual(y)
        return out


class _PlainBlock(nn.Sequential):
    def __init__(
        self, channels_in: int, channels_out: int, stride: int, norm: Norm = "batch"
    ) -> None:
        super().__init__(
            nn.Conv2d(channels_in, channels_out, 3, 1, 1, bias=False),
            _norm(channels_out, norm),
            nn.ReLU(),
            nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False),
            _norm(channels_out, norm),
            nn.ReLU(),
            nn.MaxPool2d(stride) if stride > 1 else nn.Identity(),
        )


def stages_for(size: int) -> int:
    """Return the number of stages, 1 to 4, of a network for images of ``size``.

    Each stage halves the map, until it is 4x4.
    """
    return max(1, min(4, size.bit_length() - 3))


class Classifier(nn.Module):
    """Stages of blocks, global average pooling, one linear layer.

    Input (N, C, S, S), already normalised; output logits (N, K). With a bottleneck the linear layer
    reads the mean of a normal code; training samples from :meth:`distribution` instead.

    Raises:
        ValueError: the options name a stage that is not there, or skip connections of a vgg.
    """

    def __init__(
        self,
        architecture: ClassifierArchitecture,
        *,
        in_channels: int,
        num_classes: int,
        width: int,
        size: int,
        options: NetworkOptions = PLAIN_NETWORK,
    ) -> None:
        super().__init__()
        block = {"resnet": ResidualBlock, "vgg": _PlainBlock}[architecture]
        halvings = stages_for(size)
        self.stem = nn.Conv2d(in_channels, width, 3, 2 if size > 64 else 1, 1, bias=False)
        channels = [width] + [width * 2 ** (i + 1) for i in range(halvings)]
        skipless = _stages_named(options.skipless, halvings)
        if skipless and architecture != "resnet":
            raise ValueError(f"a {architecture} has no skip connections that could be left out")
        self.stages = nn.ModuleList(
            (SkiplessBlock if i in skipless else block)(
                channels[i], channels[i + 1], 2, options.norm
            )
            for i in range(halvings)
        )
        self.norm = _norm(channels[-1], options.norm)
        code = options.bottleneck
        self.bottleneck = nn.Linear(channels[-1], 2 * code) if code else None
        self.classifier = nn.Linear(code or channels[-1], num_classes)

    def stage_maps(self, x: Tensor) -> list[Tensor]:
        """Return the feature maps after each stage, each (N, C_l, H_l, W_l)."""
        maps = []
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def pool(self, last: Tensor) -> Tensor:
        """Return penultimate features (N, C) of the last stage's map (N, C, H, W).

        With a bottleneck of D values these are the code's mean (N, D).
        """
        if self.bottleneck is not None:
            return self.distribution(last)[0]
        return self._averaged(last)

    def distribution(self, last: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the code, each (N, D), of the last map (N, C, H, W).

        The deviation is softplus(s - 5) (Alemi et al. 2017), which starts near 0.

        Raises:
            ValueError: the network has no bottleneck.
        """
        if self.bottleneck is None:
            raise ValueError("this network has no bottleneck")
        mean, spread = self.bottleneck(self._averaged(last)).chunk(2, dim=1)
        return mean, F.softplus(spread - 5.0)

    def _averaged(self, last: Tensor) -> Tensor:
        return F.relu(self.norm(last)).mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.pool(self.stage_maps(x)[-1]))
        return logits


def _stages_named(numbers: Sequence[int], stages: int) -> frozenset[int]:
    outside = next((i for i in numbers if not -stages <= i < stages), None)
    if outside is not None:
        raise ValueError(f"no stage {outside}: the network has {stages}")
    return frozenset(i % stages for i in numbers)


@dataclass(frozen=True)
class SavedClassifier:
    """A classifier with its class order, input shape and normalisation."""

    module: Classifier
    architecture: ClassifierArchitecture
    width: int
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    options: NetworkOptions = PLAIN_NETWORK


def build_classifier(
    architecture: ClassifierArchitecture,
    *,
    classes: Sequence[str],
    image_shape: tuple[int, int, int],
    width: int,
    mean: Sequence[float],
    std: Sequence[float],
    rng: torch.Generator,
    options: NetworkOptions = PLAIN_NETWORK,
) -> SavedClassifier:
    """Return a new classifier for images of ``image_shape`` (C, S, S), initialised from ``rng``.

    Raises:
        ValueError: ``options`` do not fit the architecture.
    """
    module = Classifier(
        architecture,
        in_channels=image_shape[0],
        num_classes=len(classes),
        width=width,
        size=image_shape[1],
        options=options,
    )
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            nn.init.kaiming_normal_(child.weight, generator=rng)
        elif isinstance(child, nn.Linear):
            if child is module.bottleneck:  # small values here as well would hold the start up
                nn.init.kaiming_normal_(child.weight, nonlinearity="linear", generator=rng)
            else:
                nn.init.normal_(child.weight, std=0.01, generator=rng)
            nn.init.zeros_(child.bias)
    return SavedClassifier(
        module, architecture, width, tuple(classes), image_shape, tuple(mean), tuple(std), options
    )


def save_classifier(saved: SavedClassifier, path: Path) -> None:
    """Write ``saved`` to a safetensors file whose header holds all but the tensors."""
    facts: dict[str, Any] = {
        "architecture": saved.architecture,
        "width": saved.width,
        "classes": list(saved.classes),
        "image_shape": list(saved.image_shape),
        "mean": list(saved.mean),
        "std": list(saved.std),
    }
    if saved.options != PLAIN_NETWORK:  # else the file is as it was before there were options
        facts["options"] = asdict(saved.options)
    tensors = {k: v.detach().contiguous().cpu() for k, v in saved.module.state_dict().items()}
    save_file(tensors, path, metadata={_KEY: json.dumps(facts)})


def load_classifier(path: Path) -> SavedClassifier:
    """Read a classifier that :func:`save_classifier` wrote, from its file or the folder it is in.

    Raises:
        TargetError: the file is missing, damaged, or was not written by inversight.
    """
    file = path / FILE_NAME if path.is_dir() else path
    if not file.is_file():
        raise TargetError(f"{file}: no such file; `inversight train` writes {FILE_NAME}")
    try:
        metadata, tensors = read_tensors(file)
    except (SafetensorError, OSError) as error:
        raise TargetError(f"{file}: not a readable safetensors file ({error})") from error
    if _KEY not in metadata:
        raise TargetError(
            f"{file}: these weights were not written by `inversight train`; name the network "
            f"they belong to, as in timm:resnet18?weights={file} or package.module:factory?weights={file}"
        )
    try:
        facts = json.loads(metadata[_KEY])
        saved = build_classifier(
            facts["architecture"],
            classes=facts["classes"],
            image_shape=tuple(facts["image_shape"]),
            width=facts["width"],
            mean=facts["mean"],
            std=facts["std"],
            rng=torch.Generator(),
            options=_options_from(facts.get("options", {})),
        )
        saved.module.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise TargetError(
            f"{file}: the header and the weights do not fit ({one_line(error)})"
        ) from error
    saved.module.eval().requires_grad_(False)
    return saved


def _options_from(facts: Mapping[str, Any]) -> NetworkOptions:
    return NetworkOptions(**{**facts, "skipless": tuple(facts.get("skipless", ()))})
