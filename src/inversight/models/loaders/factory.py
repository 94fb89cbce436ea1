"""``package.module:factory[?weights=FILE]``: a function of one's own that returns the model."""

from __future__ import annotations

from torch import nn

from inversight.core.config import import_object
from inversight.core.errors import ConfigError, TargetError, one_line
from inversight.models.loaders.base import LoadedModel, read_safetensors
from inversight.models.spec import ModelSpec


def load_factory(model: ModelSpec, *, size: int) -> LoadedModel:
    """Import the function and call it, with the argument ``weights`` if the spec has one.

    Raises:
        TargetError: it cannot be imported or called, or returns something else than a module.
    """
    weights = model.weights
    if weights is not None:
        read_safetensors(weights, model)
    try:
        factory = import_object(model.name, role=model.role)
    except ConfigError as error:
        raise TargetError(str(error)) from error
    try:
        module = factory() if weights is None else factory(weights=str(weights))
    except Exception as error:
        text = f"{type(error).__name__}: {one_line(error)}"
        raise model.error(f"calling it failed ({text})") from error
    if not isinstance(module, nn.Module):
        raise model.error(
            "expected a function that returns a torch.nn.Module, it returned "
            f"{type(module).__name__}"
        )
    return LoadedModel(module, size, None)
