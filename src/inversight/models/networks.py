"""Small classifiers that the audit trains itself, and their checkpoints.

There are two families, so that an evaluator can differ in structure from the target: ``resnet``
(pre-activation residual blocks) and ``vgg`` (plain convolutions with pooling). Both take square images
of size 8 or more, and return the feature maps of their stages as well as logits.
:class:`NetworkOptions` holds the differences that defences need.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

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
    """Differences from the plain network; the default is the plain one.

    norm: ``batch`` normalisation, or ``group`` normalisation (Wu & He 2018), which treats each image
    separately. skipless: indices of a resnet's stages without skip connections; negative ones count
    from the last stage. bottleneck: dimension of a normally distributed code between the penultimate
    features and the logits; 0: none.
    """

    norm: Norm = "batch"
    skipless: tuple[int, ...] = ()
    bottleneck: int = 0


PLAIN_NETWORK = NetworkOptions()


def _norm(channels: int, kind: Norm) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(math.gcd(8, channels), channels)


class ResidualBlock(nn.Module):
    """Pre-activation residual block (He et al. 2016b), (N, C, H, W) -> (N, C', H / s, W / s).

    Without ``skip`` it has no skip connection.
    """

    def __init__(
        self, channels_in: int, channels_out: int, stride: int, norm: Norm = "batch", skip: bool = True
    ) -> None:  # fmt: skip
        super().__init__()
        self.norm1 = _norm(channels_in, norm)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.norm2 = _norm(channels_out, norm)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.shortcut = (
            nn.Conv2d(channels_in, channels_out, 1, stride, bias=False) if skip else None
        )

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.norm1(x))
        passed = None if self.shortcut is None else self.shortcut(activated)
        y: Tensor = self.conv2(F.relu(self.norm2(self.conv1(activated))))
        return y if passed is None else passed + y


def _plain_block(channels_in: int, channels_out: int, norm: Norm) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (channels_in, channels_out):
        convolution = nn.Conv2d(channels, channels_out, 3, 1, 1, bias=False)
        layers += [convolution, _norm(channels_out, norm), nn.ReLU()]
    return nn.Sequential(*layers, nn.MaxPool2d(2))


def stages_for(size: int) -> int:
    """Return the number of stages, 1 to 4, of a network for images of height and width ``size``.

    Each stage halves the feature map, down to 4x4.
    """
    return max(1, min(4, size.bit_length() - 3))


class Classifier(nn.Module):
    """Stages of blocks, global average pooling, one linear layer.

    Input (N, C, S, S), already normalised; output logits (N, K). With a bottleneck, the input of the
    linear layer is the mean of a normally distributed code; a loss can sample from :meth:`distribution`.

    Raises:
        ValueError: unknown architecture, or ``options.skipless`` names a missing stage or is set for a vgg.
    """

    def __init__(
        self, architecture: ClassifierArchitecture, *, in_channels: int, num_classes: int, width: int,
        size: int, options: NetworkOptions = PLAIN_NETWORK,
    ) -> None:  # fmt: skip
        super().__init__()
        stages, norm, code = stages_for(size), options.norm, options.bottleneck
        self.stem = nn.Conv2d(in_channels, width, 3, 2 if size > 64 else 1, 1, bias=False)
        channels = [width * 2**i for i in range(stages + 1)]
        if architecture not in get_args(ClassifierArchitecture):
            raise ValueError(f"unknown architecture {architecture}")
        missing = next((i for i in options.skipless if not -stages <= i < stages), None)
        if missing is not None:
            raise ValueError(f"no stage {missing}: the network has {stages}")
        if options.skipless and architecture != "resnet":
            raise ValueError(f"a {architecture} has no skip connections that could be left out")
        skipless = {i % stages for i in options.skipless}
        self.stages = nn.ModuleList(
            ResidualBlock(a, b, 2, norm, skip=i not in skipless)
            if architecture == "resnet"
            else _plain_block(a, b, norm)
            for i, (a, b) in enumerate(itertools.pairwise(channels))
        )
        self.norm = _norm(channels[-1], norm)
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

        With a bottleneck of dimension D, return the mean of the code, (N, D).
        """
        return self._averaged(last) if self.bottleneck is None else self.distribution(last)[0]

    def distribution(self, last: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the code, each (N, D), for the last map (N, C, H, W).

        The standard deviation is softplus(s - 5) (Alemi et al. 2017), near 0 before training.

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
    architecture: ClassifierArchitecture, *, classes: Sequence[str], image_shape: tuple[int, int, int],
    width: int, mean: Sequence[float], std: Sequence[float], rng: torch.Generator,
    options: NetworkOptions = PLAIN_NETWORK,
) -> SavedClassifier:  # fmt: skip
    """Return a new classifier for images of ``image_shape`` (C, S, S), initialised from ``rng``.

    Raises:
        ValueError: ``options`` do not fit the architecture.
    """
    channels, size, _ = image_shape
    module = Classifier(
        architecture, in_channels=channels, num_classes=len(classes), width=width, size=size,
        options=options,
    )  # fmt: skip
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            nn.init.kaiming_normal_(child.weight, generator=rng)
        elif isinstance(child, nn.Linear):
            if child is module.bottleneck:  # small weights here as well would slow down training
                nn.init.kaiming_normal_(child.weight, nonlinearity="linear", generator=rng)
            else:
                nn.init.normal_(child.weight, std=0.01, generator=rng)
            nn.init.zeros_(child.bias)
    shape = (channels, size, size)
    return SavedClassifier(
        module, architecture, width, tuple(classes), shape, tuple(mean), tuple(std), options
    )


def save_classifier(saved: SavedClassifier, path: Path) -> None:
    """Write a classifier to a safetensors file; all but the tensors is in its header."""
    facts = {name: value for name, value in vars(saved).items() if name != "module"}
    facts["options"] = asdict(saved.options)
    tensors = {k: v.detach().contiguous().cpu() for k, v in saved.module.state_dict().items()}
    save_file(tensors, path, metadata={_KEY: json.dumps(facts)})


def load_classifier(path: Path) -> SavedClassifier:
    """Read a classifier that :func:`save_classifier` wrote; ``path`` is its file or the folder of it.

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
        options = facts.pop("options")
        options["skipless"] = tuple(options["skipless"])
        saved = build_classifier(**facts, options=NetworkOptions(**options), rng=torch.Generator())
        saved.module.load_state_dict(tensors)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise TargetError(
            f"{file}: the header and the weights do not fit ({one_line(error)})"
        ) from error
    saved.module.eval().requires_grad_(False)
    return saved
