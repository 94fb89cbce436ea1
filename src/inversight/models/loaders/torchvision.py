"""``torchvision:NAME?weights=FILE``: a network of torchvision with weights of one's own."""

from __future__ import annotations

from torch import nn

from inversight.core.config import nearest
from inversight.core.errors import one_line
from inversight.models.loaders.base import LoadedModel
from inversight.models.loaders.weights import load_weights, read_weights, weight_names
from inversight.models.spec import ModelSpec

PREFIX = "torchvision:"
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""The normalisation of all of torchvision's own weights for classification."""


def load_torchvision(model: ModelSpec, *, size: tuple[int, int]) -> LoadedModel:
    """Build the network for as many classes as its weights have.

    Raises:
        TargetError: unknown network, or the weights are missing or another network's.
    """
    from torchvision import models  # takes seconds

    name, known = model.name.removeprefix(PREFIX), models.list_models(module=models)
    if name not in known:
        raise model.error(f"torchvision has no such classifier{nearest(name, known)}")
    if model.weights is None:
        raise model.error(f"needs its trained weights, as {PREFIX}{name}?weights=FILE")

    def build(**options: int) -> nn.Module:
        try:
            module: nn.Module = models.get_model(name, weights=None, **options)
        except Exception as error:
            raise model.error(f"could not be built ({one_line(error)})") from error
        return module

    module = build()
    tensors, note = read_weights(model.weights, weight_names(module), model)
    head = list(module.state_dict())[-1]
    if head in tensors and tensors[head].dim() > 0:
        module = build(num_classes=len(tensors[head]))
    load_weights(module, tensors, model)
    return LoadedModel(module, size, 3, _MEAN, _STD, notes=(note,) if note else ())
