"""Loading the model under audit safely, and trying it before anything else is done."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from inversight.models.backbone import frozen_layer
from inversight.models.loaders.base import LoadedModel
from inversight.models.loaders.classifier import load_saved
from inversight.models.loaders.factory import load_factory
from inversight.models.loaders.folder import CONFIG, read_json
from inversight.models.loaders.hugging_face import load_hugging_face
from inversight.models.loaders.onnx import SUFFIX as ONNX
from inversight.models.loaders.onnx import load_onnx
from inversight.models.loaders.program import load_program
from inversight.models.loaders.timm import PREFIX as TIMM
from inversight.models.loaders.timm import load_timm
from inversight.models.loaders.timm_folder import load_timm_folder
from inversight.models.loaders.torchvision import PREFIX as TORCHVISION
from inversight.models.loaders.torchvision import load_torchvision
from inversight.models.spec import ModelSpec, read_classes
from inversight.models.target import Access, Target
from inversight.models.trial import try_target


def load_target(
    model: ModelSpec, *, classes: tuple[str, ...], size: int, channels: int,
    warn: Callable[[str], None] = warnings.warn,
) -> Target:  # fmt: skip
    """Load a model and try it on a few images. Nothing is unpickled but tensors, nothing is downloaded.

    Args:
        model: what to load.
        classes: names of the private images' classes, () if unknown; each must be one of the model's.
        size: height and width of the images; a model that takes any size is given these.
        channels: channels of the images, 1 or 3.
        warn: called with one line on each thing that is possible but seldom meant.

    Raises:
        TargetError: one line on what is wrong and what to do.
    """
    order = read_classes(model.classes) if model.classes else ()
    loaded = _load(model, size=model.shape(size))
    access = model.access_of(loaded.access)
    notes = list(loaded.notes)
    frozen = frozen_layer(loaded.module, model)
    module = loaded.module.eval().requires_grad_(False)
    narrow = {p.dtype for p in module.parameters() if p.is_floating_point()} - {torch.float32}
    if narrow:
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in narrow))
        notes.append(f"has weights in {names}; they are used in float32")
        module = module.float()
    target = Target(
        module=module,
        classes=order or loaded.classes or classes,
        image_shape=(loaded.channels or channels, *loaded.size),
        mean=model.mean or loaded.mean,
        std=model.std or loaded.std,
        spec=model.spec,
        resizing=loaded.resizing,
        label_names=loaded.classes,
    )
    source = "the file of --classes" if order else "its own list" if loaded.classes else "--private"
    target, found = try_target(
        target, model, source, classes, try_channels=loaded.channels is None,
        gradients=access is Access.WHITE_BOX,
    )  # fmt: skip
    check_private_classes(target, classes, model)
    if frozen is not None:
        inside = (name for name, one in target.module.named_modules() if one is frozen)
        target = replace(target, frozen_until=next(inside))
    more = [c for c in target.classes if c not in classes] if classes else []
    if len(more) == 1:
        found.append(f"has one class more than --private: {more[0]}")
    for note in (*notes, *found):
        warn(f"{model.role} {model.spec}: {note}")
    return target.restricted(access)


def check_private_classes(target: Target, classes: tuple[str, ...], model: ModelSpec) -> None:
    """Check that the private images' ``classes`` are among the target's.

    Raises:
        TargetError: one is not.
    """
    missing = next((c for c in classes if c not in target.classes), None)
    if missing is not None:
        raise model.error(
            f"class {missing} of --private is not among the {target.num_classes} classes of "
            f"{model.classes or 'the model'}, such as {target.classes[0]}; name the model's classes in "
            "the order of its outputs with --classes FILE"
        )


def _load(model: ModelSpec, *, size: tuple[int, int]) -> LoadedModel:
    """Choose the loader by the spec's form and by what is in the file."""
    path = Path(model.name)
    if model.is_service:
        raise model.error(
            "is a service, which only audit, attack and triage take, as --target; this needs the "
            "model itself, its layers or gradients"
        )
    if model.name.startswith(TIMM):
        return load_timm(model, size=size)
    if model.name.startswith(TORCHVISION):
        return load_torchvision(model, size=size)
    if path.exists():
        if model.weights is not None:
            raise model.error("a file takes no ?weights=")
        if (path / CONFIG).is_file():
            config = read_json(path / CONFIG, model)
            if "architecture" in config:
                return load_timm_folder(path, config, model)
            return load_hugging_face(path, config, model, size=size)
        if path.is_dir() or path.suffix == ".safetensors":
            return load_saved(path, model)
        if path.suffix.lower() == ONNX:
            return load_onnx(path, model, size=size)
        return load_program(path, model, size=size)
    if ":" in model.name and not model.name.startswith((".", "/")):
        return load_factory(model, size=size)
    raise model.error(
        "no such file; expected timm:NAME?weights=FILE, torchvision:NAME?weights=FILE, "
        "package.module:factory?weights=FILE, or a file or folder"
    )
