"""Trying a model on a few images before anything else is done with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from inversight.core.errors import one_line
from inversight.core.imaging import normalise
from inversight.core.seeding import generator
from inversight.models.outputs import LogitsOf, OutputForm, find_part, is_probability, part_of
from inversight.models.spec import ModelSpec
from inversight.models.target import Target

_IMAGES = 4
_RELATIVE = 1e-3
"""Difference between two answers, of the largest logit, that is no rounding."""
_FAR = 30.0
"""Factor that takes logits out of [0, 1], and no probability."""


def try_target(
    target: Target, model: ModelSpec, source: str, private: Sequence[str], *, try_channels: bool,
    gradients: bool,
) -> tuple[Target, list[str]]:  # fmt: skip
    """Return the target with the channels that it takes and with logits as answers, and notes.

    Args:
        target: the model with white-box access, as loaded.
        source: where its class names are from, in words.
        private: names of the private images' classes, for messages.
        try_channels: try 1 and 3 channels.
        gradients: gradients are needed.

    Raises:
        TargetError: it fails, answers with something else than logits or probabilities of its classes,
            ignores images, mixes them, or has no gradient where one is needed.
    """
    c, height, width = target.image_shape
    if not try_channels:
        for values, option in ((target.mean, "--mean"), (target.std, "--std")):
            if len(values) not in (1, c):
                raise model.error(f"takes {c} channel(s), but {option} has {len(values)} numbers")
    failures: list[Exception] = []
    for channels in (c, 4 - c) if try_channels else (c,):
        candidate = replace(target, image_shape=(channels, height, width))
        x = _images(channels, height, width)
        try:
            with torch.no_grad():
                answer: object = candidate(x)
        except Exception as error:
            failures.append(error)
            continue
        form = _form(candidate, answer, x, model)
        if form != OutputForm():
            candidate = replace(candidate, module=LogitsOf(candidate.module, form).eval())
        notes = form.notes()
        logits = _checked(candidate, x, model, source, private)
        if bool((logits == logits[:1]).all()):
            if not form.probabilities:
                raise model.error("ignores its input: it answers the same to different images")
            notes.append(
                "answers the same to different images; does it round probabilities to 0 and 1?"
            )
        notes += _repeated(candidate, x, logits, model)
        if gradients:
            _check_gradient(candidate, x, model)
        return candidate, notes
    raise model.error(
        f"failed on images of {height}x{width} ({one_line(failures[0])}); does it need another --size?"
    ) from failures[0]


def _images(channels: int, height: int, width: int) -> Tensor:
    """Return a ramp, noise, faint noise and white."""
    shape = (channels, height, width)
    ramp = torch.linspace(0.0, 1.0, channels * height * width).view(shape)
    noise = torch.rand(2, *shape, generator=generator(0))
    return torch.stack([ramp, noise[0], 0.4 + 0.2 * noise[1], torch.ones(shape)])


def _form(target: Target, answer: Any, x: Tensor, model: ModelSpec) -> OutputForm:
    """Return the form of the model's answers.

    Raises:
        TargetError: logits are not found in them.
    """
    expected = f"expected logits of shape (images, classes) = ({len(x)}, K) for {len(x)} images"
    try:
        part = find_part(answer, len(x), target.num_classes or None)
    except ValueError as error:
        raise model.error(f"{expected}, found {error}") from None
    values = part_of(answer, part)
    if values.dim() != 2 or len(values) != len(x):
        raise model.error(f"{expected}, found {tuple(values.shape)}")
    values = values.float()
    single = values.shape[1] == 1 and target.num_classes == 2
    probabilities = is_probability(values)
    if probabilities and values.shape[1] == 1:
        with torch.no_grad():
            far = [target.module(factor * _normalised(target, x)) for factor in (-_FAR, _FAR)]
        probabilities = all(is_probability(part_of(one, part).float()) for one in far)
    return OutputForm(part, probabilities and (single or values.shape[1] > 1), single)


def _normalised(target: Target, x: Tensor) -> Tensor:
    return normalise(x, target.mean, target.std)


def _checked(
    target: Target, x: Tensor, model: ModelSpec, source: str, private: Sequence[str]
) -> Tensor:
    """Return logits (N, K) of ``x`` after checking them.

    Raises:
        TargetError: they are not finite, or of another number of classes.
    """
    with torch.no_grad():
        logits = target(x)
    if not bool(logits.isfinite().all()):
        raise model.error("returned NaN or infinity; check its weights and --mean / --std")
    outputs, given = logits.shape[1], target.num_classes
    if not given:
        raise model.error(
            f"does not name its {outputs} classes; give their names in the order of its "
            "outputs with --classes FILE"
        )
    if outputs != given:
        raise model.error(
            f"has {outputs} outputs, {source} has {given} classes{_extra(target, outputs, private)}; name the "
            "model's classes in the order of its outputs with --classes FILE"
        )
    return logits


def _extra(target: Target, outputs: int, private: Sequence[str]) -> str:
    """Return in brackets which names are too many or too few, as far as that is known."""
    lacking = [name for name in target.label_names if name not in target.classes]
    alone = [name for name in target.classes if private and name not in private]
    if lacking:
        return f" (without {_first(lacking)})"
    if alone:
        return f" (with {_first(alone)}, of which there are no private images)"
    if outputs == target.num_classes + 1:
        return (
            " (one output more is often a background class, the first in networks from TensorFlow)"
        )
    return ""


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _repeated(target: Target, x: Tensor, logits: Tensor, model: ModelSpec) -> list[str]:
    """Return a warning of answers that change from call to call.

    Raises:
        TargetError: an answer depends on the other images in the batch.
    """
    tolerance = _RELATIVE * max(1.0, float(logits.abs().max()))
    with torch.no_grad():
        change = float((target(x) - logits).abs().max())
        if change > tolerance:
            return [
                f"answers the same image differently from call to call (logits by up to {change:.2g}); is "
                "a dropout on in evaluation mode? Figures will not repeat exactly"
            ]
        try:
            alone = torch.cat([target(one) for one in x.split(1)])
        except Exception as error:
            raise model.error(f"fails on one image alone ({one_line(error)})") from error
    if alone.shape != logits.shape:
        raise model.error(
            f"answers {tuple(alone.shape[1:])} to one image alone, {tuple(logits.shape[1:])} to several"
        )
    change = float((alone - logits).abs().max())
    if change > tolerance:
        raise model.error(
            f"its answer to an image depends on the rest of the batch (logits by up to {change:.2g}); "
            "does a batch normalisation ignore evaluation mode?"
        )
    return []


def _check_gradient(target: Target, x: Tensor, model: ModelSpec) -> None:
    images = x.clone().requires_grad_(True)
    with torch.enable_grad():
        logits = target(images)
    gradient = None
    if logits.requires_grad:
        (gradient,) = torch.autograd.grad(logits.square().sum(), images, allow_unused=True)
    if gradient is None:
        raise model.error(
            "gives no gradient with respect to its input, which white-box attacks need; was it "
            "exported under no_grad? Audit it with --access scores"
        )
