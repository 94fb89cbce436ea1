"""``timm:NAME?weights=FILE.safetensors``: a network of timm with weights of one's own."""

from __future__ import annotations

from inversight.core.config import nearest
from inversight.models.loaders.base import LoadedModel, load_weights, read_safetensors
from inversight.models.spec import ModelSpec

PREFIX = "timm:"


def load_timm(model: ModelSpec, *, size: int) -> LoadedModel:
    """Build the network for as many classes and channels as its weights have.

    Raises:
        TargetError: unknown network, or the weights are missing or another network's.
    """
    import timm

    name = model.name.removeprefix(PREFIX)
    if model.weights is None:
        raise model.error(f"needs its trained weights, as {PREFIX}{name}?weights=FILE.safetensors")
    weights = read_safetensors(model.weights, model)
    if not timm.is_model(name):
        raise model.error(f"timm has no such model{nearest(name, timm.list_models())}")
    config = timm.get_pretrained_cfg(name).to_dict()

    def weight_shape(field: str) -> tuple[int, ...]:
        layer = config.get(field)
        layer = layer[0] if isinstance(layer, (tuple, list)) else layer
        if f"{layer}.weight" not in weights:
            raise model.error(
                f"{model.weights} has no {layer}.weight, which {name} needs; does it belong to "
                "another network?"
            )
        return tuple(weights[f"{layer}.weight"].shape)

    num_classes, channels = weight_shape("classifier")[0], weight_shape("first_conv")[1]
    options = {"num_classes": num_classes, "in_chans": channels}
    try:
        module = timm.create_model(name, **options, pretrained=False, img_size=size)
    except TypeError:  # convolutional networks take any size and no img_size
        module = timm.create_model(name, **options, pretrained=False)
    except Exception as error:
        raise model.error(f"could not be built ({error})") from error
    load_weights(module, weights, model)
    mean, std = tuple(config["mean"]), tuple(config["std"])
    if channels == 1:
        mean, std = (sum(mean) / len(mean),), (sum(std) / len(std),)
    return LoadedModel(module, size, channels, mean, std)
