"""Loading the model under audit safely, and trying it before anything else is done."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from inversight.core.errors import one_line
from inversight.models.loaders.base import LoadedModel
from inversight.models.loaders.classifier import load_saved
from inversight.models.loaders.factory import load_factory
from inversight.models.loaders.onnx import SUFFIX as ONNX
from inversight.models.loaders.onnx import load_onnx
from inversight.models.loaders.program import load_program
from inversight.models.loaders.timm import PREFIX as TIMM
from inversight.models.loaders.timm import load_timm
from inversight.models.spec import ModelSpec, read_classes
from inversight.models.target import Access, Target


def load_target(model: ModelSpec, *, classes: tuple[str, ...], size: int, channels: int) -> Target:
    """Load a model and try it on two images. Nothing is unpickled.

    Args:
        model: what to load.
        classes: names of the private images' classes, () if unknown; each must be one of the model's.
        size: height and width of the images; a model that takes any size is given these.
        channels: channels of the images, 1 or 3.

    Raises:
        TargetError: one line on what is wrong and what to do.
    """
    order = read_classes(model.classes) if model.classes else ()
    loaded = _load(model, size=model.size or size)
    access = model.access_of(loaded.access)
    target = Target(
        module=loaded.module.eval().requires_grad_(False),
        classes=order or loaded.classes or classes,
        image_shape=(loaded.channels or channels, loaded.size, loaded.size),
        mean=model.mean or loaded.mean,
        std=model.std or loaded.std,
        spec=model.spec,
    )
    named = bool(order or loaded.classes)
    target = _probe(
        target, model, try_channels=loaded.channels is None, named=named,
        gradients=access is Access.WHITE_BOX,
    ).restricted(access)  # fmt: skip
    check_private_classes(target, classes, model)
    return target


def check_private_classes(target: Target, classes: tuple[str, ...], model: ModelSpec) -> None:
    """Check that the private images' ``classes`` are among the target's.

    Raises:
        TargetError: one is not.
    """
    missing = next((c for c in classes if c not in target.classes), None)
    if missing is not None:
        raise model.error(
            f"class {missing} of --private is not among the {target.num_classes} classes of "
            f"{model.classes or 'the model'}; name the model's classes in the order of its outputs "
            "with --classes FILE"
        )


def _load(model: ModelSpec, *, size: int) -> LoadedModel:
    """Choose the loader by the spec's form and by what is in the file."""
    path = Path(model.name)
    if model.is_service:
        raise model.error(
            "is a service, which only audit, attack and triage take, as --target; this needs the "
            "model itself, its layers or gradients"
        )
    if model.name.startswith(TIMM):
        return load_timm(model, size=size)
    if path.exists():
        if model.weights is not None:
            raise model.error("a file takes no ?weights=")
        if path.is_dir() or path.suffix == ".safetensors":
            return load_saved(path, model)
        if path.suffix.lower() == ONNX:
            return load_onnx(path, model, size=size)
        return load_program(path, model, size=size)
    if ":" in model.name and not model.name.startswith((".", "/")):
        return load_factory(model, size=size)
    raise model.error(
        "no such file; expected timm:NAME?weights=FILE.safetensors, "
        "package.module:factory?weights=FILE.safetensors, or a file"
    )


def _probe(
    target: Target, model: ModelSpec, *, try_channels: bool, named: bool, gradients: bool
) -> Target:
    """Call the target on two images; return it with the number of channels that worked.

    ``gradients``: whether it has to give any.
    """
    c, s, _ = target.image_shape
    failures: list[Exception] = []
    if not try_channels:
        for values, option in ((target.mean, "--mean"), (target.std, "--std")):
            if len(values) not in (1, c):
                raise model.error(f"takes {c} channel(s), but {option} has {len(values)} numbers")
    for channels in (c, 4 - c) if try_channels else (c,):
        candidate = replace(target, image_shape=(channels, s, s))
        x = torch.linspace(0.0, 1.0, 2 * channels * s * s).view(2, channels, s, s)
        x.requires_grad_(True)
        try:
            with torch.enable_grad():
                logits = candidate(x)
        except Exception as error:
            failures.append(error)
            continue
        _check_logits(candidate, logits, model, named)
        if gradients:
            _check_gradient(logits, x, model)
        return candidate
    raise model.error(
        f"failed on images of {s}x{s} ({one_line(failures[0])}); does it need another --size?"
    ) from failures[0]


def _check_logits(target: Target, logits: object, model: ModelSpec, named: bool) -> None:
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != 2:
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise model.error(
            f"expected logits of shape (images, classes) = (2, K) for two images, found {found}"
        )
    if not bool(logits.isfinite().all()):
        raise model.error("returned NaN or infinity; check its weights and --mean / --std")
    if not target.classes:
        raise model.error(
            f"does not name its {logits.shape[1]} classes; give their names in the order of its "
            "outputs with --classes FILE"
        )
    if logits.shape[1] != target.num_classes:
        source = "the file of --classes" if named else "--private"
        raise model.error(
            f"has {logits.shape[1]} outputs, {source} has {target.num_classes} classes; name the "
            "model's classes in the order of its outputs with --classes FILE"
        )


def _check_gradient(logits: Tensor, x: Tensor, model: ModelSpec) -> None:
    gradient = None
    if logits.requires_grad:
        (gradient,) = torch.autograd.grad(logits.square().sum(), x, allow_unused=True)
    if gradient is None:
        raise model.error(
            "gives no gradient with respect to its input, which white-box attacks need; was it "
            "exported under no_grad? Audit it with --access scores"
        )
