"""Targets whose backbone was frozen: where the backbone ends, and the features that it gives its head.

A model is often made by training a small head on the features of a public network, which stays as it is.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from inversight.core.config import nearest
from inversight.core.errors import TargetError
from inversight.models.spec import ModelSpec
from inversight.models.target import Target


def frozen_layer(module: nn.Module, model: ModelSpec) -> nn.Module | None:
    """Return the last layer that training did not change; None if training changed all, or none.

    It is the one that ``model.frozen_until`` names. Without it, it is the last one whose parameters have no
    gradient, where all layers before have none either and all behind have.

    Raises:
        TargetError: there is no layer of that name.
    """
    if model.frozen_until is not None:
        named = dict(module.named_modules())
        if model.frozen_until not in named or model.frozen_until == "":
            known = [name for name in named if name]
            raise model.error(
                f"has no layer {model.frozen_until}, the one of --frozen-until"
                f"{nearest(model.frozen_until, known)}; its layers are {_few(known)}"
            )
        found: nn.Module = named[model.frozen_until]
        return found
    owners = [m for m in module.modules() if list(m.parameters(recurse=False))]
    trained = [any(p.requires_grad for p in m.parameters(recurse=False)) for m in owners]
    first = trained.index(True) if True in trained else 0
    return owners[first - 1] if first > 0 and all(trained[first:]) else None


def layers_after(module: nn.Module, name: str | None) -> list[nn.Module]:
    """Return the layers without children behind the one called ``name``, as registered; None: all."""
    named = list(module.named_modules())
    inside = [i for i, (one, _) in enumerate(named) if one == name or one.startswith(f"{name}.")]
    last = max(inside, default=-1)
    return [m for _, m in named[last + 1 :] if not list(m.children())]


def features_of(target: Target, images: Tensor) -> Tensor:
    """Return the features (N, D) of images (N, C, H, W), with gradients. No counted query is sent.

    They are the input of the first linear layer behind ``target.frozen_until``.

    Raises:
        TargetError: there is no such layer.
    """
    linear = [m for m in layers_after(target.module, target.frozen_until) if _is_linear(m)]
    if not linear:
        raise TargetError(
            f"--target {target.spec}: no linear layer comes behind {target.frozen_until}, so it has no head"
        )
    seen: list[Tensor] = []
    hook = linear[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        replace(target, before=None)(images)
    finally:
        hook.remove()
    return seen[0].flatten(1)


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear)


def _few(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
