"""Which training images can be read out of the weights of a multilayer perceptron?

uv run python benchmarks/weights.py                             faces, three networks, a model on each half
uv run python benchmarks/weights.py --parts width,decay,images,training     what limits it, on faces
uv run python benchmarks/weights.py --parts mnist               10 x 10 digits of MNIST at 28 x 28
uv run python benchmarks/weights.py --small                     one network of faces, fewer rounds

Ten people of the Olivetti faces at 24 x 24 pixels, whose ten shots are split at random: a model is trained on
five of each, the other five are holdout, and the other way round. The attack sees weights alone. Distances are
mean squared differences of pixels in [0, 1] from the nearest reconstruction of the class.

auc        of the distance: how often a private image is nearer than a holdout image
nearer     private images nearer than every holdout image
exact      private images with a reconstruction at less than 0.0001
certified  reconstructions that the attack itself calls exact
right      those of them at less than 0.0001 from a private image
residual   stationarity_residual at the end of the training; it stays near 0.1, as images lie on kinks
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
from torch import Tensor, nn
from torch.nn import functional as F

from common import digest, finish, is_current, keep, listed, numbers, parser, pyplot, save_figure
from exposure_data import mnist
from inversight.attacks import Reconstructions, run_attack
from inversight.attacks.mlp import read_mlp
from inversight.attacks.stationarity import span_of, stationarity_residual
from inversight.attacks.weight_reconstruction import WeightReconstruction
from inversight.core.imaging import to_float
from inversight.core.seeding import generator
from inversight.data import load_images
from inversight.models.target import Target
from study_data import faces

CLASSES = 10
EXACT = 1e-4


@dataclass(frozen=True)
class Case:
    """A training: data, hidden layers, images of a class, weight decay and steps."""

    data: str = "faces"
    hidden: tuple[int, ...] = (1000,)
    each: int = 5
    decay: float = 2e-3
    steps: int = 15000

    @property
    def name(self) -> str:
        layers = "-".join(str(width) for width in self.hidden)
        return f"{self.data}-{layers}-{self.each}-{self.decay:g}-{self.steps}"


BASE = Case()
PARTS: dict[str, list[Case]] = {
    "faces": [replace(BASE, hidden=hidden) for hidden in ((1000,), (400,), (400, 400))],
    "width": [replace(BASE, hidden=(width,)) for width in (100, 200, 400, 1000, 2000)],
    "decay": [replace(BASE, decay=decay) for decay in (5e-4, 1e-3, 2e-3, 5e-3)],
    "images": [replace(BASE, each=each) for each in (1, 2, 3, 5)],
    "training": [replace(BASE, steps=steps) for steps in (1000, 3000, 7000, 15000)],
    "mnist": [Case("mnist", (1000,), 10)],
}


class Centred(nn.Module):
    """Subtracts the mean of the public images."""

    mean: Tensor

    def __init__(self, mean: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)

    def forward(self, x: Tensor) -> Tensor:
        return x - self.mean


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
    sets, mean = _images(case, seed, options)
    private, holdout = sets[half], sets[1 - half]
    started = time.process_time()
    target, facts = _trained(case, private, mean, seed)
    trained = time.process_time() - started
    mlp = read_mlp(target)
    span = span_of(mlp)
    attack = WeightReconstruction(
        images=len(private.labels), rounds=options.rounds, keep=max(10, 4 * case.each),
        steps=10 if options.tiny else 500,
    )  # fmt: skip
    started = time.process_time()
    found = run_attack(
        attack, target, _Nothing(target.image_shape), torch.arange(CLASSES),
        rng=generator(seed, "weights"), progress=lambda done, whole, what="": None,
    )  # fmt: skip
    seconds = time.process_time() - started
    own, other = (_nearest(one, found) for one in (private, holdout))
    certified = found.losses < 0.45
    distance = _distances(private, found)
    right = int((distance[:, certified].min(dim=0).values < EXACT).sum()) if certified.any() else 0
    _draw(private, holdout, found, picture)
    return {
        "case": case.name, "seed": seed, "half": half, **facts,
        "span": "-" if span is None else len(span.basis),
        "auc": round(float((own[:, None] < other[None]).double().mean()), 3),
        "nearer": int((own < other.min()).sum()), "of": len(own), "exact": int((own < EXACT).sum()),
        "certified": int(certified.sum()), "right": right,
        "mse_private": round(float(own.median()), 5), "mse_holdout": round(float(other.median()), 5),
        "train_s": round(trained), "attack_s": round(seconds),
    }  # fmt: skip


class _Nothing:
    """Stands for the prior, which this attack does not use."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.image_shape = shape

    def sample(self, n: int, *, rng: torch.Generator) -> Tensor:
        return torch.zeros(n, *self.image_shape)

    def __call__(self, latents: Tensor) -> Tensor:
        return latents


@dataclass(frozen=True)
class Images:
    """pixels: (N, 1, S, S) in [0, 1]. labels: (N,)."""

    pixels: Tensor
    labels: Tensor


def _images(case: Case, seed: int, options: Any) -> tuple[tuple[Images, Images], Tensor]:
    """Return the two halves, and the mean (1, S, S) of public images."""
    if case.data == "mnist":
        folder, size, edge = mnist(seed, options.work), 32, 2  # padded with two pixels of black
    else:
        folder, size, edge = faces(seed, options.data / "olivetti", options.work), 24, 0
    parts = []
    for part in ("private", "holdout", "public"):
        found = load_images(
            folder / part, role=part, size=size, channels=1, labelled=part != "public"
        )
        pixels = to_float(found.images)[..., edge : size - edge, edge : size - edge]
        parts.append((pixels, found.labels))
    halves = []
    for pixels, labels in parts[:2]:
        rows = torch.cat([(labels == k).nonzero().flatten()[: case.each] for k in range(CLASSES)])
        halves.append(Images(pixels[rows], labels[rows]))
    return (halves[0], halves[1]), parts[2][0].mean(dim=0)


def _trained(case: Case, images: Images, mean: Tensor, seed: int) -> tuple[Target, dict[str, Any]]:
    """Train with all images in each step, with momentum and a step size that falls to 0."""
    spread = 0.15
    x = ((images.pixels - mean) / spread).flatten(1)
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
    optimiser = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=case.decay)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, case.steps)
    for _ in range(case.steps):
        optimiser.zero_grad()
        F.cross_entropy(inner(x), y).backward()
        optimiser.step()
        rates.step()
    module = nn.Sequential(
        nn.Flatten(), Centred((mean.flatten() - 0.5) / spread), *steps
    ).eval().requires_grad_(False)  # fmt: skip
    names = tuple(str(label) for label in range(CLASSES))
    target = Target(module, names, tuple(mean.shape), (0.5,), (spread,), "weights")
    residual, _ = stationarity_residual(read_mlp(target), images.pixels, y)
    with torch.no_grad():
        logits = inner(x)
    return target, {
        "residual": round(residual, 4), "loss": round(F.cross_entropy(logits, y).item(), 4),
        "accuracy": float((logits.argmax(1) == y).double().mean()),
    }  # fmt: skip


def _distances(images: Images, found: Reconstructions) -> Tensor:
    """Return the mean squared distances (N, M) from reconstructions of the class, others infinite."""
    real, drawn = images.pixels.flatten(1), found.images.flatten(1)
    squared = torch.cdist(real, drawn).square() / real.shape[1]
    return squared.masked_fill(images.labels[:, None] != found.labels[None], torch.inf)


def _nearest(images: Images, found: Reconstructions) -> Tensor:
    return _distances(images, found).min(dim=1).values


def _draw(private: Images, holdout: Images, found: Reconstructions, file: Path) -> None:
    """Draw every fifth private image by distance, its nearest reconstruction and that one's nearest holdout."""
    distances = _distances(private, found)
    order = distances.min(dim=1).values.argsort()
    shown = order[:: max(1, len(order) // 20)][:20]
    nearest = distances[shown].argmin(dim=1)
    beside = _distances(holdout, found)[:, nearest].argmin(dim=0)
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
