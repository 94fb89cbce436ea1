"""``package.module:factory[?weights=FILE]``: a function of one's own that returns the model."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from inversight.core.config import import_object
from inversight.core.errors import ConfigError, TargetError, one_line
from inversight.models.loaders.base import LoadedModel
from inversight.models.loaders.weights import (
    load_weights,
    read_parts,
    read_weights,
    weight_names,
)
from inversight.models.spec import ModelSpec


def load_factory(model: ModelSpec, *, size: tuple[int, int]) -> LoadedModel:
    """Import the function and call it.

    A function with an argument ``weights`` gets the path of the file and loads it itself; into what
    another one returns, the weights are loaded here.

    Raises:
        TargetError: it cannot be imported or called, returns something else than a module, or the
            weights do not fit.
    """
    weights = model.weights
    if weights is not None:
        read_parts(weights, model)  # refuses what is hostile before own code sees it
    try:
        factory = import_object(model.name, role=model.role)
    except ConfigError as error:
        raise TargetError(str(error)) from error
    loads = weights is not None and _takes_weights(factory)
    if loads and model.key is not None:
        raise model.error("a function that loads its weights itself takes no &key=")
    try:
        module = factory(weights=str(weights)) if loads else factory()
    except Exception as error:
        text = f"{type(error).__name__}: {one_line(error)}"
        raise model.error(f"calling it failed ({text})") from error
    if not isinstance(module, nn.Module):
        raise model.error(
            "expected a function that returns a torch.nn.Module, it returned "
            f"{type(module).__name__}"
        )
    note = None
    if weights is not None and not loads:
        tensors, note = read_weights(weights, weight_names(module), model)
        load_weights(module, tensors, model)
    return LoadedModel(module, size, None, notes=(note,) if note else ())


def _takes_weights(factory: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # some built-in callables have none
        return True
    return "weights" in parameters or any(
        p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()
    )
