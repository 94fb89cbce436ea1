"""``timm:NAME?weights=FILE``: a network of timm with weights of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from inversight.core.config import nearest
from inversight.models.loaders.base import LoadedModel
from inversight.models.loaders.weights import load_weights, read_weights
from inversight.models.spec import ModelSpec

PREFIX = "timm:"


def load_timm(model: ModelSpec, *, size: tuple[int, int]) -> LoadedModel:
    """Build the network for as many classes and channels as its weights have.

    Raises:
        TargetError: unknown network, or the weights are missing or another network's.
    """
    name = model.name.removeprefix(PREFIX)
    if model.weights is None:
        raise model.error(f"needs its trained weights, as {PREFIX}{name}?weights=FILE")
    config = network_config(model)
    weights, note = timm_weights(model.weights, config, model)
    num_classes = weight_shape(model, weights, config, "classifier")[0]
    channels = weight_shape(model, weights, config, "first_conv")[1]
    module = build_network(model, num_classes=num_classes, channels=channels, size=size)
    load_weights(module, weights, model)
    mean, std = normalisation(config, channels)
    return LoadedModel(module, size, channels, mean, std, notes=(note,) if note else ())


def timm_weights(
    file: Path, config: Mapping[str, Any], model: ModelSpec
) -> tuple[dict[str, Tensor], str | None]:
    """Return the network's tensors in the file, and a note of what was left out."""
    first = [layers_of(config, field)[0] for field in ("classifier", "first_conv")]
    return read_weights(file, [frozenset({f"{layer}.weight"}) for layer in first], model)


def network_config(model: ModelSpec) -> dict[str, Any]:
    """Return what timm knows of the network: layers, mean, standard deviation.

    Raises:
        TargetError: unknown network.
    """
    import timm

    name = model.name.removeprefix(PREFIX)
    if not timm.is_model(name):
        raise model.error(f"timm has no such model{nearest(name, timm.list_models())}")
    config: dict[str, Any] = timm.get_pretrained_cfg(name).to_dict()
    return config


def layers_of(config: Mapping[str, Any], field: str) -> tuple[str, ...]:
    """Return the names of the network's "classifier" or "first_conv" layers."""
    layers = config.get(field)
    return tuple(layers) if isinstance(layers, (tuple, list)) else (str(layers),)


def weight_shape(
    model: ModelSpec, weights: Mapping[str, Tensor], config: Mapping[str, Any], field: str
) -> tuple[int, ...]:
    """Return the shape of the first of the "classifier" or "first_conv" layers.

    Raises:
        TargetError: the weights lack it.
    """
    name, layer = model.name.removeprefix(PREFIX), layers_of(config, field)[0]
    if f"{layer}.weight" not in weights:
        raise model.error(
            f"{model.weights} has no {layer}.weight, which {name} needs; does it belong to "
            "another network?"
        )
    return tuple(weights[f"{layer}.weight"].shape)


def normalisation(
    config: Mapping[str, Any], channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of the network's input, for 1 or 3 channels."""
    mean, std = tuple(config["mean"]), tuple(config["std"])
    if channels == 1:
        mean, std = (sum(mean) / len(mean),), (sum(std) / len(std),)
    return mean, std


def build_network(
    model: ModelSpec, *, num_classes: int, channels: int, size: tuple[int, int]
) -> nn.Module:
    """Return the network with random weights, drawn from PyTorch's random state.

    Raises:
        TargetError: timm cannot build it.
    """
    import timm

    name = model.name.removeprefix(PREFIX)
    options = {"num_classes": num_classes, "in_chans": channels}
    try:
        module: nn.Module = timm.create_model(name, **options, pretrained=False, img_size=size)
    except TypeError:  # convolutional networks take any size and no img_size
        module = timm.create_model(name, **options, pretrained=False)
    except Exception as error:
        raise model.error(f"could not be built ({error})") from error
    return module
