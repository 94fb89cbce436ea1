"""What a target itself says about each private image, without any attack.

Each signal has a direction, written down before anything was measured: reconstructions are drawn
towards what the target is surest of, so images that look typical to it are expected to be nearest to
one. How far that holds is what :mod:`inversight.risk.triage` measures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
"""Nearest images of the class that the local density looks at; all others in smaller classes."""

_CLOSEST = 1e-6
"""Mean distance to the neighbours below which it counts as this, so that copies have a density."""

_SCRATCH = 1 << 22
"""Distances held at once: 32 MiB of float64."""

Family = Literal["confidence", "place", "training"]
_Seen = Callable[[int], None]


@dataclass(frozen=True)
class Signal:
    """What a signal is. sign: +1 where higher is expected to be more exposed, -1 where lower is."""

    family: Family
    sign: int
    range: str
    meaning: str


SIGNALS: dict[str, Signal] = {
    "loss": Signal(
        "confidence", -1, "[0, inf) nats", "cross-entropy of the target's prediction and the class"
    ),
    "margin": Signal(
        "confidence", +1, "(-inf, inf)", "logit of the class less the largest other logit"
    ),
    "entropy": Signal(
        "confidence", -1, "[0, log K] nats", "entropy of the target's prediction over K classes"
    ),
    "gradient_norm": Signal(
        "confidence",
        -1,
        "[0, inf)",
        "length of the loss's gradient with respect to the last linear layer's weight and bias",
    ),
    "centre_distance": Signal(
        "place",
        -1,
        "[0, inf)",
        "Euclidean distance to the mean of the class's other images in the target's features",
    ),
    "local_density": Signal(
        "place",
        +1,
        "(0, 1e6]",
        "1 / mean Euclidean distance to the nearest images of the class in the target's features",
    ),
    "forgetting": Signal(
        "training",
        -1,
        "0, 1, 2, ... or inf",
        "times the image went from right to wrong along the checkpoints; inf: never right",
    ),
}
"""Every signal, by its column's name."""


@dataclass(frozen=True)
class Signals:
    """Signals of N private images, in the order they came.

    labels: (N,) int64. values: by name in ``SIGNALS``, each (N,) float64; NaN where a class of one
    image has no other to be compared with. missing: why a signal is not there.
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
    """Signals of every private image from one forward pass of each model; independent of row order.

    ``private.labels`` index ``target.classes``. ``checkpoints`` are earlier states of the same
    training in their order; ``target`` counts as the last one (forgetting: Toneva et al. 2019, An
    Empirical Study of Example Forgetting, algorithm 1). Scores access gives loss, margin and entropy;
    label access forgetting alone. Where the network does not end in ``torch.nn.Linear`` the features'
    signals are missing, where that layer's output is not the logits the gradient's is.

    Images and features are held, (N, C, H, W) uint8 and (N, D) float32, and distances for a block of
    rows of one class at a time.

    Raises:
        ConfigError: classes differ, or nothing can be had with this access.
        StageError: the target gave a NaN or an infinity.
    """
    for model in (target, *checkpoints):
        if model.classes != private.classes:
            raise ConfigError(
                f"signals: {model.spec} has other classes than the private images, or another order"
            )
    if target.access is Access.LABEL and not checkpoints:
        raise ConfigError(
            "signals: a target that gives labels alone gives none without earlier checkpoints"
        )
    order = torch.tensor(sorted(range(len(private)), key=private.ids.__getitem__))
    rows = private.select(order)
    done, total = 0, len(private) * (1 + len(checkpoints))

    def seen(images: int) -> None:
        nonlocal done
        done += images
        progress(done, total, "signals")

    forward = _forward(target, rows, batch_size, seen)
    values, missing = dict(forward.values), dict(forward.missing)
    if forward.features is not None:
        values |= _places(forward.features, rows.labels)
    if checkpoints:
        states = [_right(model, rows, batch_size, seen) for model in checkpoints]
        values["forgetting"] = forgetting_events(torch.stack([*states, forward.right]))
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
    rightly. An image that is never right counts as forgotten without end (Toneva et al. 2019).
    """
    events = (right[:-1] & ~right[1:]).sum(0).double()
    return events.where(right.any(0), torch.full_like(events, float("inf")))


def confidence(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """loss, margin and entropy, each (N,) float64, of logits or log-probabilities (N, K)."""
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
    # p - 1 cancels for sure predictions; what the others have does not.
    others = p.scatter(1, labels[:, None], 0.0).sum(1)
    residual = residual.scatter(1, labels[:, None], -others[:, None])
    inputs = features.double().square().sum(1) + (1.0 if bias else 0.0)
    return (residual.square().sum(1) * inputs).sqrt()


def centre_distance(features: Tensor, labels: Tensor) -> Tensor:
    """In [0, inf), (N,) float64: distance to the mean of the class's other images; NaN without any.

    features: (N, D); labels: (N,).
    """
    found = torch.full((len(labels),), float("nan"), dtype=torch.float64)
    for label in labels.unique().tolist():
        at = (labels == label).nonzero().squeeze(1)
        if len(at) < 2:
            continue
        own = features[at].double()
        # Beside the mean of all: leaving the image itself out moves the mean away from it.
        found[at] = (own - own.mean(0)).square().sum(1).sqrt() * (len(at) / (len(at) - 1))
    return found


def local_density(features: Tensor, labels: Tensor, neighbours: int = NEIGHBOURS) -> Tensor:
    """In (0, 1e6], (N,) float64, higher is denser: 1 / mean distance to the class's nearest images.

    features: (N, D); labels: (N,). NaN for the only image of a class.
    """
    found = torch.full((len(labels),), float("nan"), dtype=torch.float64)
    for label in labels.unique().tolist():
        at = (labels == label).nonzero().squeeze(1)
        if len(at) < 2:
            continue
        own = features[at].float()
        for part in torch.arange(len(at)).split(max(1, _SCRATCH // len(at))):
            squared = squared_distances((own[part],), (own,))
            squared[torch.arange(len(part)), part] = float("inf")
            near = squared.topk(min(neighbours, len(at) - 1), dim=1, largest=False).values
            found[at[part]] = 1.0 / near.sqrt().mean(1).clamp_min(_CLOSEST)
    return found


@dataclass(frozen=True)
class _Forward:
    """One pass over all images. right: (N,) bool. features: (N, D) float32 or None."""

    values: Mapping[str, Tensor]
    right: Tensor
    features: Tensor | None
    missing: Mapping[str, str]


def _places(features: Tensor, labels: Tensor) -> dict[str, Tensor]:
    return {
        "centre_distance": centre_distance(features, labels),
        "local_density": local_density(features, labels),
    }


def _forward(target: Target, rows: ImageSet, batch_size: int, seen: _Seen) -> _Forward:
    pooled, missing = _pooled(target, rows)
    gradients = pooled is not None
    kept: dict[str, list[Tensor]] = {}
    right, features = [], []
    for index in torch.arange(len(rows)).split(batch_size):
        batch = rows.select(index)
        images = batch.floats().to(_device(target))
        with exact_products():
            if pooled is None:
                logits = target(images).cpu()
            else:
                inputs, logits = pooled.with_logits(images)
                if gradients and not _is_last(pooled, inputs, logits):
                    gradients = False
                    missing["gradient_norm"] = "the last linear layer's output is not the logits"
                inputs, logits = inputs.float().cpu(), logits.cpu()
        # A probability of 0 has a logarithm of minus infinity, which is an answer.
        bad = logits.isnan() if target.access is Access.SCORES else ~logits.isfinite()
        if bool(bad.any()):
            first = batch.ids[int(bad.any(1).nonzero()[0])]
            raise StageError(f"{target.spec}: not a finite number for image {first}")
        right.append(logits.argmax(1) == batch.labels)
        found = {} if target.access is Access.LABEL else confidence(logits, batch.labels)
        if pooled is not None:
            features.append(inputs)
            if gradients:
                bias = pooled.last_linear().bias is not None
                found["gradient_norm"] = last_layer_gradient_norm(
                    inputs, logits, batch.labels, bias=bias
                )
        for name, value in found.items():
            kept.setdefault(name, []).append(value)
        seen(len(index))
    if not gradients:
        kept.pop("gradient_norm", None)
    return _Forward(
        {name: torch.cat(parts) for name, parts in kept.items()},
        torch.cat(right),
        torch.cat(features) if features else None,
        missing,
    )


def _right(model: Target, rows: ImageSet, batch_size: int, seen: _Seen) -> Tensor:
    """(N,) bool: whether the model puts each image in its class."""
    found = []
    for index in torch.arange(len(rows)).split(batch_size):
        batch = rows.select(index)
        with exact_products():
            predicted = model(batch.floats().to(_device(model))).argmax(1).cpu()
        found.append(predicted == batch.labels)
        seen(len(index))
    return torch.cat(found)


def _pooled(target: Target, rows: ImageSet) -> tuple[PooledEmbedding | None, dict[str, str]]:
    """The target's penultimate features where there are any, and why signals are missing if not."""
    deep = ("gradient_norm", "centre_distance", "local_density")
    if target.access is not Access.WHITE_BOX:
        scores = ("loss", "margin", "entropy") if target.access is Access.LABEL else ()
        reason = f"needs more than {target.access} access to the target"
        return None, dict.fromkeys((*scores, *deep), reason)
    try:
        pooled = PooledEmbedding("target", target)
        few = rows.select(torch.tensor([0, 0])).floats().to(_device(target))
        if len(pooled.with_logits(few)[0]) == len(few):
            return pooled, {}
        reason = "the target's last torch.nn.Linear layer is called more than once for an image"
    except TargetError as error:
        reason = str(error).partition(": ")[2].partition(";")[0]
    return None, dict.fromkeys(deep, reason)


def _is_last(pooled: PooledEmbedding, inputs: Tensor, logits: Tensor) -> bool:
    """Whether the layer whose input ``inputs`` are gives the logits themselves."""
    layer = pooled.last_linear()
    if inputs.shape != (len(logits), layer.in_features) or layer.out_features != logits.shape[1]:
        return False
    return torch.allclose(layer(inputs), logits, rtol=1e-4, atol=1e-4)


def _device(target: Target) -> torch.device:
    return next((p.device for p in target.module.parameters()), torch.device("cpu"))
