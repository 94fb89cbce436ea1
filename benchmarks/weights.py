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
together   pairs of images of a class, of all of them, on the same side of every neuron of the first layer: of
           these the weights hold a sum alone
span       dimension of the span of training images that the weights show; - where they show none
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common import digest, finish, is_current, keep, listed, numbers, parser, pyplot, save_figure
from inversight.attacks import Reconstructions, run_attack
from inversight.attacks.mlp import Mlp, read_mlp
from inversight.attacks.signals import FirstLayer
from inversight.attacks.stationarity import Objective, span_of, stationarity_residual, whole_space
from inversight.attacks.weight_reconstruction import WeightReconstruction
from inversight.core.seeding import generator
from inversight.models.target import Target
from weights_networks import (
    CLASSES,
    Case,
    Images,
    backbone_of,
    first_inputs,
    held,
    images_of,
    initial_layers,
    inputs_of,
    start_of,
    target_from,
    train,
    vectors_of,
)

EXACT = 1e-4
BASE = Case()
PARTS: dict[str, list[Case]] = {
    "faces": [replace(BASE, hidden=hidden) for hidden in ((1000,), (400,), (400, 400))],
    "width": [replace(BASE, hidden=(width,)) for width in (100, 200, 400, 1000, 2000)],
    "decay": [replace(BASE, decay=decay) for decay in (5e-4, 1e-3, 2e-3, 5e-3)],
    "images": [replace(BASE, each=each) for each in (1, 2, 3, 5)],
    "training": [replace(BASE, steps=steps) for steps in (1000, 3000, 7000, 15000)],
    "longer": [replace(BASE, steps=60000)],
    "converged": [replace(BASE, hidden=(400, 400), steps=60000, momentum=0.98, rising=5000)],
    "mnist": [Case("mnist", (1000,), 10)],
    "head": [Case("head", (1000,))],
}


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
    sets, public = images_of(case, seed, options.data, options.work)
    private, holdout = sets[half], sets[1 - half]
    started = time.process_time()
    head = case.data == "head"
    backbone = backbone_of(public, seed, 1 if options.tiny else 20) if head else None
    start = start_of(public, backbone)
    x = inputs_of(start, private.pixels)
    layers = initial_layers(case, x.shape[1], seed)
    train(case, layers, x, private.labels)
    target = target_from(start, layers, public, head=head)
    trained = time.process_time() - started
    facts = held(target, private, case.decay)
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
        "truth's": round(_truths(mlp, target, private), 4),
        "objective": round(min(objective), 4) if objective else "-",
        "span": "-" if span is None else len(span.basis),
        "distinct": 0 if span is None else int(FirstLayer(mlp, span).distinct.sum()),
        "auc": round(float((own[:, None] < other[None]).double().mean()), 3),
        "nearer": int((own < other.min()).sum()), "of": len(own), "exact": int((own < EXACT).sum()),
        "certified": int(certified.sum()), "right": right,
        "mse_private": round(float(own.median()), 5), "mse_holdout": round(float(other.median()), 5),
        "train_s": round(trained), "attack_s": round(seconds),
    }  # fmt: skip


def _truths(mlp: Mlp, target: Target, images: Images) -> float:
    """Return the published objective at the training images themselves."""
    vectors = vectors_of(images.pixels, target).double()
    _, decay = stationarity_residual(mlp, vectors, images.labels)
    doubts = 1.0 - mlp.answers(vectors).softmax(1).gather(1, images.labels[:, None]).squeeze(1)
    objective = Objective(mlp, whole_space(mlp), WeightReconstruction().sharpness)
    inputs = first_inputs(mlp, vectors)[None]
    found: float = objective(inputs, images.labels, doubts[None] / (len(doubts) * decay)).item()
    return found


class _Public:
    """Stands for the prior, which the attack uses for heads alone: its samples are public images."""

    def __init__(self, images: Tensor) -> None:
        self.images = images
        self.image_shape: tuple[int, int, int] = tuple(images.shape[1:])

    def sample(self, n: int, *, rng: torch.Generator) -> Tensor:
        return self.images[torch.randperm(len(self.images), generator=rng)[:n]]

    def __call__(self, latents: Tensor) -> Tensor:
        return latents


def _distances(images: Images, found: Reconstructions, target: Target) -> Tensor:
    """Return the mean squared distances (N, M) from reconstructions of the class, others infinite."""
    real = vectors_of(images.pixels, target)
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
