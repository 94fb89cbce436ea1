"""The attack that ``--attack strongest`` stands for, by the target at hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from inversight.attacks import WeightReconstruction, check_fits
from inversight.attacks.mlp import Mlp, read_mlp
from inversight.attacks.signals import FirstLayer
from inversight.attacks.stationarity import span_of
from inversight.core.config import build
from inversight.core.errors import InputError
from inversight.models.target import Access, Target
from inversight.priors import Prior
from inversight.settings import ATTACKS, STRONGEST, strongest_attack

_FROM_WEIGHTS = "weight-reconstruction"
_SHOWN = 0.9
"""Least share of the training images that the span of the first layer must have room for."""
_SAME = 1e-3
"""Columns of the first layer that are this much shorter than the longest, or have this much less than a cosine
of 1, are of pixels that never vary."""


def choose_attack(
    spec: Mapping[str, Any], access: Access, prior: Prior, target: Target | None,
    images: int | None = None,
) -> tuple[dict[str, Any], str]:  # fmt: skip
    """Return ``spec`` with the attack that ``strongest`` stands for, and why, in one sentence.

    target: with ``access``, or an untrained one like it; None: its weights cannot be read. images: number of
    its training images, if known.

    Raises:
        ConfigError: settings in ``spec`` that the attack does not have.
    """
    if target is not None and access is Access.WHITE_BOX:
        shown = _shown_images(target, {**spec, "class": _FROM_WEIGHTS}, prior, images)
        if shown is not None:
            return {**spec, "class": _FROM_WEIGHTS}, (
                f"--attack {STRONGEST} is {_FROM_WEIGHTS} here, as the weights of this multilayer perceptron "
                f"show the span of {shown} training images, and the attack reads some of them out of such "
                "weights exactly (docs/attacks.md)."
            )
    name, reason = strongest_attack(access, max(prior.image_shape[1:]))
    return {**spec, "class": name}, reason


def _shown_images(
    target: Target, spec: dict[str, Any], prior: Prior, images: int | None
) -> int | None:
    """Return how many training images the target's weights show, None if they cannot be read out."""
    try:
        mlp = read_mlp(target)
    except InputError:
        return None
    span = span_of(mlp)
    if span is None or len(span.basis) >= _columns(mlp) or not FirstLayer(mlp, span).many:
        return None
    attack: WeightReconstruction = build(spec, ATTACKS, role="--attack")
    try:
        check_fits(attack, target, prior)
    except InputError:
        return None
    shown = len(span.basis)
    return None if images is not None and shown < _SHOWN * images else shown


def _columns(mlp: Mlp) -> int:
    """Return the number of different columns of the first layer: of pixels that vary, and one of the bias.

    A span of no smaller dimension is that of all such images, and shows none.
    """
    lengths = mlp.first.norm(dim=0)
    columns = (mlp.first / lengths)[:, lengths > _SAME * lengths.max()]
    cosines = (columns.T @ columns).abs().triu(1)
    return int((cosines < 1.0 - _SAME).all(dim=0).sum())
