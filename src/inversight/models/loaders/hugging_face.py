"""A folder that transformers wrote: ``config.json``, ``preprocessor_config.json``, ``model.safetensors``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from inversight.core.errors import one_line
from inversight.core.imaging import Resizing, normalise, to_float
from inversight.models.loaders.base import LoadedModel
from inversight.models.loaders.folder import check_safetensors, class_names, read_json
from inversight.models.spec import ModelSpec

_PROCESSOR = "preprocessor_config.json"
_OWN_CODE = "auto_map"
"""What a configuration calls code of its own, which is never run."""
_FILTERS: dict[int | None, Literal["bilinear", "bicubic"]] = {2: "bilinear", 3: "bicubic"}
"""Pillow's numbers."""
_TOLERANCE = 2.0 / 255.0
"""Most that images may differ after resizing: the library rounds to 8 bits, which is 1 of 255."""


@dataclass(frozen=True)
class _Preprocessing:
    """What a processor does. size: (H, W), None: that of the images. flipped: channels become BGR."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int] | None
    resizing: Resizing | None = None
    flipped: bool = False


def load_hugging_face(
    folder: Path, config: Mapping[str, Any], model: ModelSpec, *, size: tuple[int, int]
) -> LoadedModel:
    """Load an image classifier with its processor and class names; only code of transformers runs.

    Raises:
        TargetError: another kind of model, with code or an adapter of its own, incomplete, or its
            processor does what cannot be followed.
    """
    try:
        import transformers
    except ImportError:
        raise model.error(
            "is a folder of transformers, which is not installed; install inversight[hf]"
        ) from None
    _check_config(folder, config, model)
    check_safetensors(folder, model)
    try:
        with _quiet():
            kind = transformers.CONFIG_MAPPING[config["model_type"]]
            settings = kind.from_dict(_without_kernels(config))
            # Eager attention has derivatives of any order.
            module, loading = transformers.AutoModelForImageClassification.from_pretrained(
                str(folder.absolute()), config=settings, local_files_only=True, trust_remote_code=False,
                use_safetensors=True, attn_implementation="eager", output_loading_info=True,
            )  # fmt: skip
    except Exception as error:
        raise model.error(f"transformers cannot load it ({one_line(error)})") from error
    missing = sorted(loading["missing_keys"])
    if missing:
        raise model.error(
            f"its weights lack {len(missing)} tensor(s), such as {missing[0]}; a head that was "
            "never trained cannot be audited"
        )
    channels = int(getattr(module.config, "num_channels", 3))
    found = _preprocessing(folder, channels, model, size)
    extra = sorted(loading["unexpected_keys"])
    note = f"{len(extra)} tensor(s) left out that it does not use, as {extra[0]}" if extra else ""
    return LoadedModel(
        nn.Sequential(_Flip(), module) if found.flipped else module,
        found.size or size, channels, found.mean, found.std,
        class_names(module.config.id2label, model), found.resizing, notes=(note,) if note else (),
    )  # fmt: skip


def _without_kernels(value: Any) -> Any:
    """Return a configuration without names of implementations, which may be code to download and run."""
    if isinstance(value, Mapping):
        return {
            name: _without_kernels(one)
            for name, one in value.items()
            if not name.endswith(("_implementation", "_implementation_internal"))
        }
    return value


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from printing reports and progress; what is wrong is said here."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        logging.enable_progress_bar()


class _Flip(nn.Module):
    """RGB to BGR."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flip(1)


def _check_config(folder: Path, config: Mapping[str, Any], model: ModelSpec) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

    if _OWN_CODE in config:
        raise model.error(
            "comes with code of its own (auto_map), which is not run; name the model as "
            "package.module:factory, a function of yours that loads it"
        )
    if (folder / "adapter_config.json").exists() or "quantization_config" in config:
        what = "quantised" if "quantization_config" in config else "an adapter of another model"
        raise model.error(f"is {what}; save the whole model in full precision first")
    kind, classes = str(config.get("model_type")), config.get("architectures") or ()
    classes = [str(name) for name in classes] if isinstance(classes, list) else [str(classes)]
    known = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES.get(kind)
    known = (known,) if isinstance(known, str) else known or ()
    if not known or (classes and not set(classes) & set(known)):
        expected = f"; expected {' or '.join(known)}" if known else ""
        raise model.error(
            f"is no image classifier of transformers ({', '.join(classes) or kind})" + expected
        )


def _preprocessing(
    folder: Path, channels: int, model: ModelSpec, size: tuple[int, int]
) -> _Preprocessing:
    """Read the processor and measure what it does with images of 8 bits."""
    if not (folder / _PROCESSOR).is_file():
        if model.mean is None or model.std is None or model.size is None:
            raise model.error(f"has no {_PROCESSOR}; give --mean, --std and --size")
        return _Preprocessing(model.mean, model.std, None)
    facts = read_json(folder / _PROCESSOR, model)
    name = (
        facts.get("image_processor_type") or facts.get("feature_extractor_type") or "its processor"
    )
    if _OWN_CODE in facts:
        raise model.error(f"{_PROCESSOR} comes with code of its own (auto_map), which is not run")
    try:
        from transformers import AutoImageProcessor

        processor = AutoImageProcessor.from_pretrained(
            str(folder.absolute()), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:
        raise model.error(f"transformers does not know {name} ({one_line(error)})") from error

    def processed(image: np.ndarray[Any, Any]) -> Tensor:
        """Return what becomes of an image (H, W, C) of 8 bits, (C, H', W')."""
        try:
            picture = Image.fromarray(image if channels == 3 else image[:, :, 0])
            values: Tensor = processor(images=picture, return_tensors="pt")["pixel_values"]
        except Exception as error:
            raise model.error(f"{name} failed on an image ({one_line(error)})") from error
        if values.dim() != 4 or values.shape[1] != channels:
            raise model.error(f"{name} makes {tuple(values.shape)} of an image")
        return values[0].float()

    side = max(size)
    shape = (side, side, channels)
    black, white = (processed(np.full(shape, v, np.uint8)) for v in (0, 255))
    red = np.zeros(shape, np.uint8)
    red[:, :, 0] = 255
    flipped = channels == 3 and bool((processed(red)[0] == black[0]).all())
    scale, shift = (white - black)[:, 0, 0], black[:, 0, 0]
    if not bool(scale.all()):
        raise model.error(f"{name} gives the same for black and white")
    mean, std = (v.flip(0) if flipped else v for v in (-shift / scale, 1.0 / scale))
    fixed = bool(
        getattr(processor, "do_resize", False) or getattr(processor, "do_center_crop", False)
    )
    out = (int(black.shape[1]), int(black.shape[2]))
    numbers = (tuple(mean.tolist()), tuple(std.tolist()))
    sides = sorted({*out, 4 * out[0] // 3 + 1, max(out[0] // 2, 8), side}) if fixed else [side]
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (n, n, channels), np.uint8) for n in sides]
    expected = [processed(image) for image in noise]
    for resizing in _candidates(processor) if fixed else (None,):
        trial = _Preprocessing(*numbers, out if fixed else None, resizing, flipped)
        if all(_agrees(trial, x, y) for x, y in zip(noise, expected, strict=True)):
            return trial
    raise model.error(
        f"{name} does more than resize, crop, rescale and normalise, as trying it shows; name the "
        "model as package.module:factory, a function that does all of it"
    )


def _candidates(processor: Any) -> Iterator[Resizing]:
    """Yield ways to resize that the processor's settings may mean; their meaning is not the same in all."""
    size = getattr(processor, "size", None) or {}
    mode = _FILTERS.get(getattr(processor, "resample", None))
    if mode is None:
        return
    sizes: list[int | tuple[int, int]] = []
    if size.get("height") and size.get("width"):
        sizes.append((int(size["height"]), int(size["width"])))
    if size.get("shortest_edge"):
        edge = int(size["shortest_edge"])
        share = getattr(processor, "crop_pct", None)
        sizes += [int(edge / share)] if share else []
        sizes += [edge, (edge, edge), int(256 / 224 * edge)]
    for one in sizes:
        yield Resizing(one, mode, "down")
        yield Resizing(one, mode, "even")


def _agrees(ours: _Preprocessing, image: np.ndarray[Any, Any], expected: Tensor) -> bool:
    """Return whether ``ours`` gives what the processor gives for an image (H, W, C), up to rounding."""
    x = to_float(torch.from_numpy(image).permute(2, 0, 1)[None])
    if ours.resizing is not None and ours.size is not None:
        x = ours.resizing(x, ours.size)
    y = normalise(x, ours.mean, ours.std)[0]
    if y.shape != expected.shape:
        return False
    difference = (y.flip(0) if ours.flipped else y) - expected
    scale = torch.tensor(ours.std[::-1] if ours.flipped else ours.std)[:, None, None]
    return bool(((difference * scale).abs() <= _TOLERANCE).all())
