"""A folder that timm wrote: ``config.json`` with ``pretrained_cfg``, and ``model.safetensors``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

from inversight.core.config import nearest
from inversight.core.errors import one_line
from inversight.core.imaging import Resizing
from inversight.models.loaders.base import LoadedModel
from inversight.models.loaders.folder import WEIGHTS, check_safetensors, class_names
from inversight.models.loaders.timm import normalisation, timm_weights
from inversight.models.loaders.weights import load_weights
from inversight.models.spec import ModelSpec

_NOT_FROM_FILES = (
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "checkpoint_path",
    "cache_dir",
)
"""Arguments of ``timm.create_model`` that would load something else."""
_MALFORMED = (
    ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError,
)  # fmt: skip
"""What timm raises of a configuration whose values are of other types than expected."""


def load_timm_folder(folder: Path, config: Mapping[str, Any], model: ModelSpec) -> LoadedModel:
    """Build the network of ``config`` with its own preprocessing and class names.

    Raises:
        TargetError: unknown network or preprocessing, or the weights are missing or another network's.
    """
    import timm
    from timm.data import resolve_data_config

    name = str(config["architecture"])
    if not timm.is_model(name):
        raise model.error(f"timm has no model {name}{nearest(name, timm.list_models())}")
    check_safetensors(folder, model)
    if not (folder / WEIGHTS).is_file():
        raise model.error(f"its weights are in several files; save them as one {WEIGHTS}")
    try:
        given = config.get("pretrained_cfg")
        facts = {**timm.get_pretrained_cfg(name).to_dict(), **(given if given else config)}
        options = {
            k: v for k, v in (config.get("model_args") or {}).items() if k not in _NOT_FROM_FILES
        }
        data = resolve_data_config(pretrained_cfg=facts)
        channels, *size = (int(n) for n in data["input_size"])
        resizing = _resizing(data, (size[0], size[1]), model)
        num_classes = int(config.get("num_classes") or facts["num_classes"])
        options = {"num_classes": num_classes, "in_chans": channels, **options}
        if facts.get("fixed_input_size"):
            options.setdefault("img_size", size)
        module = timm.create_model(name, pretrained=False, **options)
    except _MALFORMED as error:
        raise model.error(f"config.json does not fit timm ({one_line(error)})") from error
    tensors, note = timm_weights(folder / WEIGHTS, facts, model)
    load_weights(module, tensors, model)
    mean, std = normalisation(data, channels)
    names = config.get("label_names") or facts.get("label_names") or facts.get("labels")
    return LoadedModel(
        module, (size[0], size[1]), channels, mean, std, class_names(names, model), resizing,
        notes=(note,) if note else (),
    )  # fmt: skip


def _resizing(data: Mapping[str, Any], size: tuple[int, int], model: ModelSpec) -> Resizing:
    """Return what ``timm.data.create_transform`` does with an image before normalisation."""
    mode, crop = data["interpolation"], data.get("crop_mode") or "center"
    if mode not in ("bilinear", "bicubic"):
        raise model.error(f"interpolation {mode} is not known; expected bilinear or bicubic")
    before = tuple(math.floor(side / data["crop_pct"]) for side in size)
    if crop == "border" or (crop == "center" and before[0] != before[1]):
        raise model.error(
            f"crop_mode {crop} of {size[0]}x{size[1]} is not known; name the model as "
            "package.module:factory"
        )
    filter_ = cast(Literal["bilinear", "bicubic"], mode)
    return Resizing(before[0] if crop == "center" else (before[0], before[1]), filter_)
