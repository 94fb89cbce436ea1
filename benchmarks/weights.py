"""Which training images can be read out of the weights of a multilayer perceptron?

uv run python benchmarks/weights.py                             faces, three networks, a model on each half
uv run python benchmarks/weights.py --parts width,decay,images,training     what limits it, on faces
uv run python benchmarks/weights.py --parts longer,converged    trained further
uv run python benchmarks/weights.py --parts mnist               10 x 10 digits of MNIST at 28 x 28
uv run python benchmarks/weights.py --parts head                the head of a frozen backbone, on faces
uv run python benchmarks/weights.py --small                     one network of faces, fewer rounds

Ten people of the Olivetti faces at 24 x 24 pixels, whose ten shots are split at random: a model is trained on
five of each, the other five are holdout, and the other way round. The attack sees weights alone. Distances are
mean squared differences of pixels in [0, 1] from the nearest reconstruction of the class.

auc        of the distance: how often a private image is nearer than a holdout image
nearer     private images nearer than every holdout image
exact      private images with a reconstruction at less than 0.0001
certified  reconstructions that the attack itself calls exact
right      those of them at less than 0.0001 from a private image
head: a small convolutional network is trained on the public people, and stays as it is. A perceptron is
trained on its features, standardised by those of public images, of five images of ten other people. Distances
are then between features, squared and divided by the features' mean square, and pictures show the public image
whose features are nearest to those found.

residual   stationarity_residual at the end of the training; it stays near 0.1, as images lie on kinks
at_kinks   the same with the best derivative in [0, 1] wherever an image lies on a kink: what is left is how
           much the network still changes
objective  the least of the candidates', and truth's, that of the training images: if the former is not higher,
           the objective does not tell candidates from training images
kinks      neurons on whose kink a training image lies (median over images)
distinct   neurons of the first layer that are no copies of others
rank       singular values of the first layer above a hundred-thousandth of the largest: with fewer than there
           are images, the weights hold sums of images alone
span       dimension of the span of training images that the weights show; - where they show none
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from scipy.optimize import lsq_linear
from torch import Tensor, nn
from torch.nn import functional as F

from common import digest, finish, is_current, keep, listed, numbers, parser, pyplot, save_figure
from exposure_data import mnist
from inversight.attacks import Reconstructions, run_attack
from inversight.attacks.mlp import Mlp, read_mlp
from inversight.attacks.signals import FirstLayer
from inversight.attacks.stationarity import Objective, span_of, stationarity_residual, whole_space
from inversight.attacks.weight_reconstruction import WeightReconstruction
from inversight.core.imaging import to_float
from inversight.core.seeding import generator
from inversight.data import load_images
from inversight.models.backbone import features_of
from inversight.models.target import Target
from study_data import faces

CLASSES = 10
_SPREAD = 0.15
"""Standard deviation by which the networks' input is divided."""
EXACT = 1e-4
KINK = 1e-4
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

    @property
    def name(self) -> str:
        layers = "-".join(str(width) for width in self.hidden)
        name = f"{self.data}-{layers}-{self.each}-{self.decay:g}-{self.steps}"
        return name if self.momentum == Case.momentum else f"{name}-{self.momentum:g}"


BASE = Case()
PARTS: dict[str, list[Case]] = {
    "faces": [replace(BASE, hidden=hidden) for hidden in ((1000,), (400,), (400, 400))],
    "width": [replace(BASE, hidden=(width,)) for width in (100, 200, 400, 1000, 2000)],
    "decay": [replace(BASE, decay=decay) for decay in (5e-4, 1e-3, 2e-3, 5e-3)],
    "images": [replace(BASE, each=each) for each in (1, 2, 3, 5)],
    "training": [replace(BASE, steps=steps) for steps in (1000, 3000, 7000, 15000)],
    "longer": [replace(BASE, hidden=hidden, steps=60000) for hidden in ((1000,), (400, 400))],
    "converged": [replace(BASE, hidden=(400, 400), steps=60000, momentum=0.98, rising=5000)],
    "mnist": [Case("mnist", (1000,), 10)],
    "head": [Case("head", (1000,))],
}


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


def main() -> None:
    arguments = parser(__doc__ or "")
    arguments.add_argument("--parts", default="faces", type=listed)
    arguments.add_argument("--seeds", default="0", type=numbers)
    arguments.add_argument("--halves", default="0-1", type=numbers, help="0: private, 1: holdout")
    arguments.add_argument("--rounds", default=20, type=int)
    arguments.add_argument("--data", type=Path, default=Path("../shared/data"))
    arguments.add_argument("--work", type=Path, default=Path("benchmarks/out/weights"))
    options = arguments.parse_args()
    cases = list(dict.fromkeys(case for part in options.parts for case in PARTS[part]))
    if options.small:
        cases, options.halves, options.rounds = cases[:1], [0], 6
    if options.tiny:
        cases, options.rounds = [replace(cases[0], hidden=(60,), each=1, steps=300)], 1
    with tempfile.TemporaryDirectory() as folder:
        if options.small:
            options.work = Path(folder)
        rows = [
            _measured(case, seed, half, options)
            for case in cases for seed in options.seeds for half in options.halves
        ]  # fmt: skip
    finish("images read out of weights", {}, rows, options)


def _measured(case: Case, seed: int, half: int, options: Any) -> dict[str, Any]:
    file = options.work / f"{case.name}-{seed}-{half}.json"
    settings = digest([case.name, options.rounds])
    if not is_current(file, settings):
        options.work.mkdir(parents=True, exist_ok=True)
        facts = _measure(case, seed, half, options, file.with_suffix(".png"))
        keep(file, {"settings": settings, "facts": facts})
    facts = json.loads(file.read_text())["facts"]
    print(facts, flush=True)
    return facts


def _measure(case: Case, seed: int, half: int, options: Any, picture: Path) -> dict[str, Any]:
    sets, public = _images(case, seed, options)
    private, holdout = sets[half], sets[1 - half]
    started = time.process_time()
    backbone = _backbone(public, seed, options) if case.data == "head" else None
    target, facts = _trained(case, private, public.pixels.mean(dim=0), seed, backbone)
    trained = time.process_time() - started
    mlp = read_mlp(target)
    span = span_of(mlp)
    attack = WeightReconstruction(
        images=len(private.labels), rounds=options.rounds, keep=max(10, 4 * case.each),
        steps=10 if options.tiny else 500, pool=len(public.pixels), inversion_steps=0,
    )  # fmt: skip
    started = time.process_time()
    found = run_attack(
        attack, target, _Public(public.pixels), torch.arange(CLASSES),
        rng=generator(seed, "weights"), progress=lambda done, whole, what="": None,
    )  # fmt: skip
    seconds = time.process_time() - started
    distance, others = (_distances(one, found, target) for one in (private, holdout))
    own, other = distance.min(dim=1).values, others.min(dim=1).values
    certified = found.losses < 0.45
    objective = [float(one) - 1.0 for one in found.losses if one >= 1.0]
    right = int((distance[:, certified].min(dim=0).values < EXACT).sum()) if certified.any() else 0
    _draw(private, holdout, found, distance, others, picture)
    return {
        "case": case.name, "seed": seed, "half": half, **facts,
        "objective": round(min(objective), 4) if objective else "-",
        "span": "-" if span is None else len(span.basis),
        "distinct": 0 if span is None else int(FirstLayer(mlp, span).distinct.sum()),
        "auc": round(float((own[:, None] < other[None]).double().mean()), 3),
        "nearer": int((own < other.min()).sum()), "of": len(own), "exact": int((own < EXACT).sum()),
        "certified": int(certified.sum()), "right": right,
        "mse_private": round(float(own.median()), 5), "mse_holdout": round(float(other.median()), 5),
        "train_s": round(trained), "attack_s": round(seconds),
    }  # fmt: skip


class _Public:
    """Stands for the prior, which the attack uses for heads alone: its samples are public images."""

    def __init__(self, images: Tensor) -> None:
        self.images = images
        self.image_shape: tuple[int, int, int] = tuple(images.shape[1:])

    def sample(self, n: int, *, rng: torch.Generator) -> Tensor:
        return self.images[torch.randperm(len(self.images), generator=rng)[:n]]

    def __call__(self, latents: Tensor) -> Tensor:
        return latents


@dataclass(frozen=True)
class Images:
    """pixels: (N, 1, S, S) in [0, 1]. labels: (N,)."""

    pixels: Tensor
    labels: Tensor


def _images(case: Case, seed: int, options: Any) -> tuple[tuple[Images, Images], Images]:
    """Return the two halves, and the public images."""
    if case.data == "mnist":
        folder, size, edge = mnist(seed, options.work), 32, 2  # padded with two pixels of black
    else:
        folder, edge = faces(seed, options.data / "olivetti", options.work), 0
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


def _backbone(public: Images, seed: int, options: Any) -> nn.Module:
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
    for _ in range(1 if options.tiny else 20):
        for rows in torch.randperm(len(public.labels), generator=rng).split(64):
            adam.zero_grad()
            logits = network((public.pixels[rows] - 0.5) / _SPREAD)
            F.cross_entropy(logits, public.labels[rows]).backward()
            adam.step()
    backbone.eval().requires_grad_(False)
    features = backbone((public.pixels - 0.5) / _SPREAD)
    spread = features.std(dim=0).clamp_min(0.1 * float(features.std()))
    return nn.Sequential(backbone, Centred(features.mean(dim=0), spread))


def _trained(
    case: Case, images: Images, mean: Tensor, seed: int, backbone: nn.Module | None
) -> tuple[Target, dict[str, Any]]:
    """Train with all images in each step, with momentum and a step size that falls to 0."""
    if backbone is None:
        before = nn.Sequential(nn.Flatten(), Centred((mean.flatten() - 0.5) / _SPREAD))
    else:
        before = nn.Sequential(backbone)
    with torch.no_grad():
        x = before((images.pixels - 0.5) / _SPREAD)
    y = images.labels
    widths = (x.shape[1], *case.hidden, CLASSES)
    rng = generator(seed, "initial")
    layers = [nn.Linear(i, o, bias=number == 0) for number, (i, o) in enumerate(pairwise(widths))]
    with torch.no_grad():
        for layer in layers:
            layer.weight.normal_(std=math.sqrt(2.0 / layer.in_features), generator=rng)
        layers[0].bias.zero_()
    steps = [step for layer in layers for step in (layer, nn.ReLU())][:-1]
    inner = nn.Sequential(*steps)
    parameters = list(inner.parameters())
    optimiser = torch.optim.SGD(parameters, lr=0.1, momentum=case.momentum, weight_decay=case.decay)
    schedules: list[torch.optim.lr_scheduler.LRScheduler]
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, case.steps)]
    if case.rising:
        schedules.append(
            torch.optim.lr_scheduler.LinearLR(optimiser, 0.02, total_iters=case.rising)
        )
    rates = torch.optim.lr_scheduler.ChainedScheduler(schedules)
    for _ in range(case.steps):
        optimiser.zero_grad()
        F.cross_entropy(inner(x), y).backward()
        optimiser.step()
        rates.step()
    module = nn.Sequential(before, *steps).eval().requires_grad_(False)
    names = tuple(str(label) for label in range(CLASSES))
    target = Target(
        module, names, tuple(mean.shape), (0.5,), (_SPREAD,), "weights",
        frozen_until=None if backbone is None else "0",
    )  # fmt: skip
    mlp, vectors = read_mlp(target), _vectors(images.pixels, target).double()
    residual, decay = stationarity_residual(mlp, vectors, y)
    with torch.no_grad():
        logits = inner(x).double()
    doubts = 1.0 - logits.softmax(1).gather(1, y[:, None]).squeeze(1)
    inputs = F.pad(mlp.scale * vectors + mlp.shift, (0, 1), value=1.0)
    objective = Objective(mlp, whole_space(mlp), WeightReconstruction().sharpness)
    truths = objective(inputs[None], y, doubts[None] / (len(y) * decay)).item()
    rows = mlp.first[mlp.first.norm(dim=1) > 1e-3 * mlp.first.norm(dim=1).max()]
    values = torch.linalg.svdvals(mlp.first)
    kinks = (F.normalize(inputs) @ F.normalize(rows).T).abs() < 1e-5
    return target, {
        "residual": round(residual, 4),
        "at_kinks": round(_residual_at_kinks(mlp, inputs, y, case.decay), 5),
        "loss": round(F.cross_entropy(logits, y).item(), 4),
        "accuracy": float((logits.argmax(1) == y).double().mean()), "truth's": round(truths, 4),
        "kinks": int(kinks.sum(dim=1).median()),
        "rank": int((values > 1e-5 * values[0]).sum()),
    }  # fmt: skip


def _residual_at_kinks(mlp: Mlp, inputs: Tensor, labels: Tensor, decay: float) -> float:
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
        kinks = out.abs() < KINK * out.abs().mean()
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


def _vectors(pixels: Tensor, target: Target) -> Tensor:
    """Return pixels (N, D), or the features (N, D) of a frozen backbone."""
    return pixels.flatten(1) if target.frozen_until is None else features_of(target, pixels)


def _distances(images: Images, found: Reconstructions, target: Target) -> Tensor:
    """Return the mean squared distances (N, M) from reconstructions of the class, others infinite."""
    real = _vectors(images.pixels, target)
    drawn = found.images.flatten(1) if found.features is None else found.features
    unit = 1.0 if found.features is None else float(real.square().mean())
    squared = torch.cdist(real, drawn).square() / (unit * real.shape[1])
    return squared.masked_fill(images.labels[:, None] != found.labels[None], torch.inf)


def _draw(
    private: Images,
    holdout: Images,
    found: Reconstructions,
    distances: Tensor,
    others: Tensor,
    file: Path,
) -> None:
    """Draw every fifth private image by distance, its nearest reconstruction and that one's nearest holdout."""
    order = distances.min(dim=1).values.argsort()
    shown = order[:: max(1, len(order) // 20)][:20]
    nearest = distances[shown].argmin(dim=1)
    beside = others[:, nearest].argmin(dim=0)
    rows = [private.pixels[shown], found.images[nearest], holdout.pixels[beside]]
    figure, axes = pyplot().subplots(3, len(shown), figsize=(len(shown), 3.2))
    for row, images in zip(axes, rows, strict=True):
        for axis, image in zip(row, images, strict=True):
            axis.imshow(image[0], cmap="gray", vmin=0, vmax=1)
            axis.axis("off")
    for column, number in enumerate(shown.tolist()):
        axes[0][column].set_title(f"{float(distances[number].min()):.4f}", fontsize=7)
    save_figure(figure, file)


if __name__ == "__main__":
    main()
