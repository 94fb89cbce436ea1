"""Signals of each private image that the target alone gives, without any attack.

Each signal has a direction that was fixed before anything was measured: attacks optimise the target's
confidence, so images that look typical to it are expected to be nearest to a reconstruction.
:mod:`inversight.risk.triage` measures how far that holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from inversight.core.errors import ConfigError, StageError, TargetError
from inversight.core.progress import Progress, silent
from inversight.data import ImageSet
from inversight.embeddings.distances import exact_products, squared_distances
from inversight.embeddings.network import PooledEmbedding
from inversight.models.target import Access, Target

NEIGHBOURS = 5
"""Number of nearest images of the class in the local density; all others in smaller classes."""

_CLOSEST = 1e-6
"""Lower bound of the mean distance to the neighbours, so that copies have a finite density."""

_SCRATCH = 1 << 22
"""Distances held at once: 32 MiB of float64."""

Family = Literal["confidence", "place", "training"]


@dataclass(frozen=True)
class Signal:
    """A signal. sign: +1 where higher is expected to mean more risk, -1 where lower is."""

    family: Family
    sign: int
    range: str
    meaning: str


SIGNALS: dict[str, Signal] = {
    "loss": Signal("confidence", -1, "[0, inf) nats",
        "cross-entropy of the target's prediction and the class"),
    "margin": Signal("confidence", +1, "(-inf, inf)",
        "logit of the class less the largest other logit"),
    "entropy": Signal("confidence", -1, "[0, log K] nats",
        "entropy of the target's prediction over K classes"),
    "gradient_norm": Signal("confidence", -1, "[0, inf)",
        "length of the loss's gradient with respect to the last linear layer's weight and bias"),
    "centre_distance": Signal("place", -1, "[0, inf)",
        "Euclidean distance to the mean of the class's other images in the target's features"),
    "local_density": Signal("place", +1, "(0, 1e6]",
        "1 / mean Euclidean distance to the nearest images of the class in the target's features"),
    "forgetting": Signal("training", -1, "0, 1, 2, ... or inf",
        "times the image went from right to wrong along the checkpoints; inf: never right"),
}  # fmt: skip
"""Every signal, by the name of its column."""


@dataclass(frozen=True)
class Signals:
    """Signals of N private images, in the order they came.

    labels: (N,) int64. values: by name in ``SIGNALS``, each (N,) float64; NaN for the only image of a
    class where others are needed. missing: why a signal is missing.
    """

    ids: tuple[str, ...]
    labels: Tensor
    values: Mapping[str, Tensor]
    missing: Mapping[str, str]


@torch.no_grad()
def signals(
    target: Target,
    private: ImageSet,
    *,
    checkpoints: Sequence[Target] = (),
    batch_size: int = 64,
    progress: Progress = silent,
) -> Signals:
    """Return the signals of every private image from one forward pass of each model.

    Scores access gives loss, margin and entropy; label access forgetting alone. If the network does not
    end in ``torch.nn.Linear``, the signals of its features are missing; if that layer's output is not
    the logits, the gradient's is. The result does not depend on row order. Memory: images (N, C, H, W)
    uint8, features (N, D) float32, and distances of a block of rows of one class.

    Args:
        private: labels index ``target.classes``.
        checkpoints: earlier states of the same training in their order; ``target`` counts as the last
            one (forgetting: Toneva et al. 2019, An Empirical Study of Example Forgetting, algorithm 1).

    Raises:
        ConfigError: classes differ.
        StageError: the target returned a NaN or an infinity.
    """
    for model in (target, *checkpoints):
        if model.classes != private.classes:
            raise ConfigError(
                f"signals: {model.spec} has other classes than the private images, or another order"
            )
    order = torch.tensor(sorted(range(len(private)), key=private.ids.__getitem__))
    rows = private.select(order)
    done, total = 0, len(private) * (1 + len(checkpoints))

    def batches(model: Target) -> Iterator[tuple[ImageSet, Tensor]]:
        nonlocal done
        for index in torch.arange(len(rows)).split(batch_size):
            batch = rows.select(index)
            yield batch, batch.floats().to(model.device)
            done += len(index)
            progress(done, total, "signals")

    features, missing = _features(target, rows)
    found = [_batch_signals(target, features, missing, *batch) for batch in batches(target)]
    values = {name: torch.cat([part[name] for part in found]) for name in found[0]}
    right = values.pop("right")
    if "features" in values:
        inputs = values.pop("features")
        values["centre_distance"] = centre_distance(inputs, rows.labels)
        values["local_density"] = local_density(inputs, rows.labels)
    if checkpoints:
        with exact_products():
            hits = [
                model(images).argmax(1).cpu() == batch.labels
                for model in checkpoints
                for batch, images in batches(model)
            ]
        states = torch.cat([*hits, right]).view(-1, len(rows))
        values["forgetting"] = forgetting_events(states)
    else:
        missing["forgetting"] = "needs earlier checkpoints of the target"
    back = order.argsort()
    return Signals(
        private.ids,
        private.labels,
        {name: values[name][back] for name in SIGNALS if name in values},
        missing,
    )


def forgetting_events(right: Tensor) -> Tensor:
    """In 0, 1, 2, ... or inf, (N,) float64: how often each image went from right to wrong.

    right: (T, N) bool, whether each of T states of a training, in order, classifies each image
    correctly. An image that is never right has infinitely many events (Toneva et al. 2019).
    """
    events = (right[:-1] & ~right[1:]).sum(0).double()
    return events.where(right.any(0), torch.full_like(events, float("inf")))


def confidence(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return loss, margin and entropy, each (N,) float64, of logits or log-probabilities (N, K)."""
    z = logits.double()
    log_p = z.log_softmax(1)
    own = labels[:, None]
    others = z.scatter(1, own, float("-inf"))
    log = log_p.where(log_p.isfinite(), torch.zeros_like(log_p))
    return {
        "loss": -log_p.gather(1, own).squeeze(1),
        "margin": z.gather(1, own).squeeze(1) - others.amax(1),
        "entropy": -(log_p.exp() * log).sum(1),
    }


def last_layer_gradient_norm(
    features: Tensor, logits: Tensor, labels: Tensor, *, bias: bool = True
) -> Tensor:
    """In [0, inf), (N,) float64: the length of each image's gradient of the cross-entropy.

    With logits W h + b the gradient is (p - y) h^T for W and p - y for b, so that its length is
    |p - y| sqrt(|h|^2 + 1), without the 1 if there is no bias. features: h (N, D); logits: (N, K).
    """
    p = logits.double().softmax(1)
    residual = p - F.one_hot(labels, p.shape[1])
    # p - 1 cancels for confident predictions; the sum of the other probabilities does not.
    others = p.scatter(1, labels[:, None], 0.0).sum(1)
    residual = residual.scatter(1, labels[:, None], -others[:, None])
    inputs = features.double().square().sum(1) + (1.0 if bias else 0.0)
    return (residual.square().sum(1) * inputs).sqrt()


def centre_distance(features: Tensor, labels: Tensor) -> Tensor:
    """In [0, inf), (N,) float64: distance to the mean of the class's other images; NaN without any.

    features: (N, D); labels: (N,).
    """
    found = torch.full((len(labels),), float("nan"), dtype=torch.float64)
    for at in _classes_of_two(labels):
        own = features[at].double()
        # From the mean of all images: leaving one out moves the mean away from it.
        found[at] = (own - own.mean(0)).square().sum(1).sqrt() * (len(at) / (len(at) - 1))
    return found


def local_density(features: Tensor, labels: Tensor, neighbours: int = NEIGHBOURS) -> Tensor:
    """In (0, 1e6], (N,) float64, higher is denser: 1 / mean distance to the class's nearest images.

    features: (N, D); labels: (N,). NaN for the only image of a class.
    """
    found = torch.full((len(labels),), float("nan"), dtype=torch.float64)
    for at in _classes_of_two(labels):
        own = features[at].float()
        for part in torch.arange(len(at)).split(max(1, _SCRATCH // len(at))):
            squared = squared_distances((own[part],), (own,))
            squared[torch.arange(len(part)), part] = float("inf")
            near = squared.topk(min(neighbours, len(at) - 1), dim=1, largest=False).values
            found[at[part]] = 1.0 / near.sqrt().mean(1).clamp_min(_CLOSEST)
    return found


def _classes_of_two(labels: Tensor) -> Iterator[Tensor]:
    """Yield the rows of each class with at least two images."""
    for label in labels.unique().tolist():
        rows = (labels == label).nonzero().squeeze(1)
        if len(rows) > 1:
            yield rows


def _features(target: Target, rows: ImageSet) -> tuple[PooledEmbedding | None, dict[str, str]]:
    """Return the target's penultimate features if it has any, and why signals are missing."""
    deep = ("gradient_norm", "centre_distance", "local_density")
    if target.access is not Access.WHITE_BOX:
        scores = ("loss", "margin", "entropy") if target.access is Access.LABEL else ()
        reason = f"needs more than {target.access} access to the target"
        return None, dict.fromkeys((*scores, *deep), reason)
    try:
        features = PooledEmbedding("target", target)
        few = rows.select(torch.tensor([0, 0])).floats().to(target.device)
        with exact_products():
            inputs, logits = features.with_logits(few)
    except TargetError as error:
        return None, dict.fromkeys(deep, str(error).partition(": ")[2].partition(";")[0])
    if len(inputs) != len(few):
        reason = "the target's last torch.nn.Linear layer is called more than once for an image"
        return None, dict.fromkeys(deep, reason)
    layer = features.last_linear()
    shapes = inputs.shape[1] == layer.in_features and logits.shape[1] == layer.out_features
    if shapes and torch.allclose(layer(inputs), logits, rtol=1e-4, atol=1e-4):
        return features, {}
    return features, {"gradient_norm": "the last linear layer's output is not the logits"}


def _batch_signals(
    target: Target,
    features: PooledEmbedding | None,
    missing: Mapping[str, str],
    batch: ImageSet,
    images: Tensor,
) -> dict[str, Tensor]:
    """Return the signals of a batch, ``features``, and whether each prediction is ``right``."""
    with exact_products():
        if features is None:
            logits = target(images).cpu()
        else:
            inputs, logits = (x.cpu() for x in features.with_logits(images))
    # A probability of 0 has a logarithm of minus infinity, which is a valid score.
    bad = logits.isnan() if target.access is Access.SCORES else ~logits.isfinite()
    if bool(bad.any()):
        first = batch.ids[int(bad.any(1).nonzero()[0])]
        raise StageError(f"{target.spec}: not a finite number for image {first}")
    found = {"right": logits.argmax(1) == batch.labels}
    if target.access is not Access.LABEL:
        found |= confidence(logits, batch.labels)
    if features is not None:
        found["features"] = inputs.float()
        if "gradient_norm" not in missing:
            bias = features.last_linear().bias is not None
            found["gradient_norm"] = last_layer_gradient_norm(
                found["features"], logits, batch.labels, bias=bias
            )
    return found
