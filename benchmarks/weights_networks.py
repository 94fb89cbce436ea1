"""The networks of benchmarks/weights.py and weights_rank.py: their images, their training, what they hold.

Ten people of the Olivetti faces at 24 x 24 pixels, whose ten shots are split at random into two halves: a
network is trained on one of them, the other is holdout. All images are in each step, with momentum and a step
size that falls to 0, so that weights come to rest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from scipy.optimize import lsq_linear
from torch import Tensor, nn
from torch.nn import functional as F

from exposure_data import mnist
from inversight.attacks.mlp import Mlp, read_mlp
from inversight.attacks.stationarity import stationarity_residual
from inversight.core.imaging import to_float
from inversight.core.seeding import generator
from inversight.data import load_images
from inversight.models.backbone import features_of
from inversight.models.target import Target
from study_data import faces

CLASSES = 10
SPREAD = 0.15
"""Standard deviation by which the networks' input is divided."""
RATE = 0.1
LOWEST = 0.02
"""Share of the step size at which a rise of it begins."""
KINK = 1e-5
"""Cosine between an image and a neuron's weights below which the image lies on the neuron's kink."""
_SMALL = 1e-4
"""Outputs below this, relative to their mean, are on a kink, for ``at_kinks``."""


@dataclass(frozen=True)
class Case:
    """A training: data, hidden layers, images of a class, weight decay and steps."""

    data: str = "faces"
    hidden: tuple[int, ...] = (1000,)
    each: int = 5
    decay: float = 2e-3
    steps: int = 15000
    momentum: float = 0.9
    rising: int = 0
    """Steps in which the step size rises to its usual value, without which a large momentum diverges."""
    initial: float = 1.0
    """Factor of the initial weights (He normal)."""

    @property
    def name(self) -> str:
        layers = "-".join(str(width) for width in self.hidden)
        name = f"{self.data}-{layers}-{self.each}-{self.decay:g}-{self.steps}"
        return name if self.momentum == Case.momentum else f"{name}-{self.momentum:g}"


class Centred(nn.Module):
    """Subtracts the mean of the public images, or of their features, and divides by a number or numbers."""

    mean: Tensor
    spread: Tensor

    def __init__(self, mean: Tensor, spread: Tensor | float = 1.0) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("spread", torch.as_tensor(spread))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.spread


@dataclass(frozen=True)
class Images:
    """pixels: (N, 1, S, S) in [0, 1]. labels: (N,)."""

    pixels: Tensor
    labels: Tensor


def images_of(
    case: Case, seed: int, data: Path, work: Path
) -> tuple[tuple[Images, Images], Images]:
    """Return the two halves, and the public images; write missing folders of images under ``work``."""
    if case.data == "mnist":
        folder, size, edge = mnist(seed, work), 32, 2  # padded with two pixels of black
    else:
        folder, edge = faces(seed, data / "olivetti", work), 0
        size = 32 if case.data == "head" else 24
    parts = []
    for part in ("private", "holdout", "public"):
        labelled = part != "public" or case.data != "mnist"
        found = load_images(folder / part, role=part, size=size, channels=1, labelled=labelled)
        pixels = to_float(found.images)[..., edge : size - edge, edge : size - edge]
        parts.append((pixels, found.labels))
    halves = []
    for pixels, labels in parts[:2]:
        rows = torch.cat([(labels == k).nonzero().flatten()[: case.each] for k in range(CLASSES)])
        halves.append(Images(pixels[rows], labels[rows]))
    return (halves[0], halves[1]), Images(*parts[2])


def backbone_of(public: Images, seed: int, epochs: int = 20) -> nn.Module:
    """Return 576 standardised features of a network that was trained to tell the public people apart."""
    widths = (1, 32, 64)
    blocks = [
        nn.Sequential(
            nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU(), nn.MaxPool2d(2)
        )
        for i, o in pairwise(widths)
    ]  # fmt: skip
    backbone = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(3), nn.Flatten())
    last = nn.Linear(9 * widths[-1], int(public.labels.max()) + 1)
    network = nn.Sequential(backbone, last)
    rng = generator(seed, "backbone")
    with torch.no_grad():
        for one in network.parameters():
            if one.dim() > 1:
                one.normal_(std=math.sqrt(2.0 / one[0].numel()), generator=rng)
    adam = torch.optim.Adam(network.parameters(), 1e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(public.labels), generator=rng).split(64):
            adam.zero_grad()
            logits = network((public.pixels[rows] - 0.5) / SPREAD)
            F.cross_entropy(logits, public.labels[rows]).backward()
            adam.step()
    backbone.eval().requires_grad_(False)
    features = backbone((public.pixels - 0.5) / SPREAD)
    spread = features.std(dim=0).clamp_min(0.1 * float(features.std()))
    return nn.Sequential(backbone, Centred(features.mean(dim=0), spread))


def start_of(public: Images, backbone: nn.Module | None = None) -> nn.Sequential:
    """Return what comes before the first layer of a network."""
    if backbone is not None:
        return nn.Sequential(backbone)
    mean = public.pixels.mean(dim=0).flatten()
    return nn.Sequential(nn.Flatten(), Centred((mean - 0.5) / SPREAD))


def inputs_of(start: nn.Module, pixels: Tensor) -> Tensor:
    """Return the inputs (N, D) of the first layer."""
    with torch.no_grad():
        inputs: Tensor = start((pixels - 0.5) / SPREAD)
    return inputs


def initial_layers(case: Case, inputs: int, seed: int) -> list[nn.Linear]:
    """Return linear layers before their training; only the first one has biases."""
    rng = generator(seed, "initial")
    widths = (inputs, *case.hidden, CLASSES)
    layers = [nn.Linear(i, o, bias=number == 0) for number, (i, o) in enumerate(pairwise(widths))]
    with torch.no_grad():
        for layer in layers:
            layer.weight.normal_(std=math.sqrt(2.0 / layer.in_features), generator=rng)
            layer.weight *= case.initial
        layers[0].bias.zero_()
    return layers


def train(case: Case, layers: list[nn.Linear], x: Tensor, y: Tensor) -> None:
    """Train layers on inputs (N, D) and labels (N,), in place."""
    inner = _with_relus(layers)
    optimiser = torch.optim.SGD(
        inner.parameters(), lr=RATE, momentum=case.momentum, weight_decay=case.decay
    )
    schedules: list[torch.optim.lr_scheduler.LRScheduler]
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, case.steps)]
    if case.rising:
        schedules.append(
            torch.optim.lr_scheduler.LinearLR(optimiser, LOWEST, total_iters=case.rising)
        )
    rates = torch.optim.lr_scheduler.ChainedScheduler(schedules)
    for _ in range(case.steps):
        optimiser.zero_grad()
        F.cross_entropy(inner(x), y).backward()
        optimiser.step()
        rates.step()


def target_from(start: nn.Module, layers: list[nn.Linear], public: Images, *, head: bool) -> Target:
    """Return the target of trained layers."""
    module = nn.Sequential(start, *_with_relus(layers)).eval().requires_grad_(False)
    names = tuple(str(label) for label in range(CLASSES))
    shape = (public.pixels.shape[1], public.pixels.shape[2], public.pixels.shape[3])
    return Target(
        module, names, shape, (0.5,), (SPREAD,), "weights", frozen_until="0" if head else None
    )


def _with_relus(layers: list[nn.Linear]) -> nn.Sequential:
    return nn.Sequential(*[step for layer in layers for step in (layer, nn.ReLU())][:-1])


def held(target: Target, images: Images, decay: float) -> dict[str, Any]:
    """Return what is known of a target that was trained on ``images``."""
    mlp, vectors = read_mlp(target), vectors_of(images.pixels, target).double()
    y = images.labels
    logits = mlp.answers(vectors)
    inputs = first_inputs(mlp, vectors)
    rows = mlp.first[mlp.first.norm(dim=1) > 1e-3 * mlp.first.norm(dim=1).max()]
    values = torch.linalg.svdvals(mlp.first)
    cosines = F.normalize(inputs) @ F.normalize(rows).T
    sides = (cosines > KINK).double()
    pairs = (y[:, None] == y).triu(1)
    together = torch.cdist(sides, sides, p=1)[pairs] == 0
    return {
        "residual": round(stationarity_residual(mlp, vectors, y)[0], 4),
        "at_kinks": round(residual_at_kinks(mlp, inputs, y, decay), 5),
        "loss": round(F.cross_entropy(logits, y).item(), 4),
        "accuracy": float((logits.argmax(1) == y).double().mean()),
        "kinks": int((cosines.abs() < KINK).sum(dim=1).median()),
        "rank": int((values > 1e-5 * values[0]).sum()),
        "together": round(float(together.double().mean()), 3) if len(together) else "-",
    }


def first_inputs(mlp: Mlp, vectors: Tensor) -> Tensor:
    """Return the first layer's inputs (N, D + 1) of pixels or features (N, D), with 1 for its bias."""
    return F.pad(mlp.scale * vectors + mlp.shift, (0, 1), value=1.0)


def residual_at_kinks(mlp: Mlp, inputs: Tensor, labels: Tensor, decay: float) -> float:
    """Return the residual with the best derivative of ReLU, in [0, 1], at each kink.

    inputs: (N, D + 1), of the first layer, with 1 for its bias. From the last layer down, the derivatives of
    each neuron are those that explain its own weights best.
    """
    weights = [mlp.first, *mlp.weights[1:]]
    before, outputs = [inputs], []
    for weight in weights:
        outputs.append(before[-1] @ weight.T)
        before.append(outputs[-1].relu())
    slopes = (outputs[-1].softmax(1) - F.one_hot(labels, outputs[-1].shape[1])) / len(labels)
    left = (slopes.T @ before[-2] + decay * weights[-1]).square().sum()
    for number in range(len(weights) - 2, -1, -1):
        back, out = slopes @ weights[number + 1], outputs[number]
        slopes = back * (out > 0)
        kinks = out.abs() < _SMALL * out.abs().mean()
        rest = slopes.T @ before[number] + decay * weights[number]
        for neuron in kinks.any(dim=0).nonzero().flatten().tolist():
            rows = kinks[:, neuron].nonzero().flatten()
            terms = (back[rows, neuron, None] * before[number][rows]).T
            own = slopes[rows, neuron] / back[rows, neuron]
            aim = terms @ own - rest[neuron]
            best = lsq_linear(terms.numpy(), aim.numpy(), bounds=(0.0, 1.0))
            slopes[rows, neuron] = back[rows, neuron] * torch.from_numpy(best.x)
        rest = slopes.T @ before[number] + decay * weights[number]
        left = left + rest.square().sum()
    whole = sum(float(weight.square().sum()) for weight in weights)
    return math.sqrt(float(left) / whole) / decay


def vectors_of(pixels: Tensor, target: Target) -> Tensor:
    """Return pixels (N, D), or the features (N, D) of a frozen backbone."""
    return pixels.flatten(1) if target.frozen_until is None else features_of(target, pixels)
