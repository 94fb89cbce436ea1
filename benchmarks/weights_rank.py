"""What do the weights of a multilayer perceptron hold of its training images, the longer it is trained?

uv run python benchmarks/weights_rank.py            60 trainings: two minutes on a GPU, hours on a CPU
uv run python benchmarks/weights_rank.py --small    two trainings, on a CPU
uv run python benchmarks/weights_rank.py --table    what is kept in --evidence, and the figure

Networks and images are those of benchmarks/weights.py, with its columns `at_kinks`, `kinks`, `rank` and
`together`, without the attack: weight decay, steps, momentum and the size of the initial weights change.

alive      neurons of the first layer whose weights are not zero
distinct   those that are no copies of others
Trainings that diverged have no figures.
"""

from __future__ import annotations

import json
import math
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common import finish, parser, pyplot, save_figure
from inversight.attacks.mlp import read_mlp
from inversight.attacks.signals import FirstLayer
from inversight.attacks.stationarity import span_of
from weights_networks import (
    CLASSES,
    LOWEST,
    RATE,
    Case,
    Images,
    held,
    images_of,
    initial_layers,
    inputs_of,
    start_of,
    target_from,
)

DECAYS = (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3)
SCHEDULES = (
    (0.9, 15000, 0),
    (0.9, 60000, 0),
    (0.98, 15000, 3000),
    (0.98, 60000, 5000),
    (0.98, 120000, 5000),
)
"""Momentum, steps, and steps in which the step size rises."""
_AT_ONCE = 20
"""Steps in a CUDA graph."""


def cases_of(hidden: tuple[int, ...]) -> list[Case]:
    """Return the trainings of a network."""
    chosen = SCHEDULES if len(hidden) > 1 else (SCHEDULES[0], SCHEDULES[1], SCHEDULES[3])
    cases = [
        Case(hidden=hidden, decay=decay, momentum=momentum, steps=steps, rising=rising)
        for momentum, steps, rising in chosen for decay in DECAYS
    ]  # fmt: skip
    if len(hidden) > 1:
        others = [case for case in cases if case.steps == 60000]
        cases += [replace(case, initial=initial) for initial in (0.3, 2.0) for case in others]
    return cases


def train_together(
    cases: list[Case], x: Tensor, y: Tensor, seed: int, device: torch.device
) -> list[list[nn.Linear]]:
    """Return the trained layers of each case, all of one shape: what `train` does, with batched products."""
    layers = [initial_layers(case, x.shape[1], seed) for case in cases]
    joined = [[torch.cat([one[0].weight, one[0].bias[:, None]], 1).detach()] for one in layers]
    for row, one in zip(joined, layers, strict=True):
        row += [layer.weight.detach() for layer in one[1:]]
    weights = [torch.stack(of_layer).to(device) for of_layer in zip(*joined, strict=True)]
    velocities = [torch.zeros_like(weight) for weight in weights]
    inputs = F.pad(x, (0, 1), value=1.0).to(device).expand(len(cases), -1, -1).contiguous()
    labels = F.one_hot(y, CLASSES).float().to(device)

    def column(name: str) -> Tensor:
        values = [float(getattr(case, name)) for case in cases]
        return torch.tensor(values, device=device)[:, None, None]

    decay, momentum, steps, rising = map(column, ("decay", "momentum", "steps", "rising"))
    done = torch.zeros((), device=device)

    def step() -> None:
        before = [inputs]
        for number, weight in enumerate(weights):
            outputs = torch.bmm(before[-1], weight.mT)
            before.append(outputs.relu() if number < len(weights) - 1 else outputs)
        slopes = (before[-1].softmax(-1) - labels) / len(y)
        gradients = []
        for number in range(len(weights) - 1, -1, -1):
            gradients.append(torch.bmm(slopes.mT, before[number]))
            if number:
                slopes = torch.bmm(slopes, weights[number]) * (before[number] > 0)
        rise = (LOWEST + (1.0 - LOWEST) * done / rising.clamp_min(1e-9)).clamp(max=1.0)
        fall = 0.5 * (1.0 + torch.cos(math.pi * (done / steps).clamp(max=1.0)))
        rate = RATE * rise * fall  # 0 for trainings that have ended
        for weight, velocity, gradient in zip(weights, velocities, gradients[::-1], strict=True):
            velocity.mul_(momentum).add_(gradient).addcmul_(weight, decay.expand_as(weight))
            weight.addcmul_(velocity, rate.expand_as(weight), value=-1.0)
        done.add_(1.0)

    longest = max(case.steps for case in cases)
    if device.type == "cuda":
        _replay(step, longest)
    else:
        for _ in range(longest):
            step()
    for number, one in enumerate(layers):
        first = weights[0][number].cpu()
        with torch.no_grad():
            one[0].weight.copy_(first[:, :-1])
            one[0].bias.copy_(first[:, -1])
            for layer, weight in zip(one[1:], weights[1:], strict=True):
                layer.weight.copy_(weight[number].cpu())
    return layers


def _replay(step: Any, steps: int) -> None:
    """Call ``step`` by a CUDA graph, after three calls that warm up."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(_AT_ONCE):
            step()
    for _ in range(math.ceil((steps - 3) / _AT_ONCE)):
        graph.replay()
    torch.cuda.synchronize()


def row_of(case: Case, layers: list[nn.Linear], private: Images, public: Images) -> dict[str, Any]:
    """Return what a trained network holds."""
    row = {**asdict(case), "hidden": "-".join(map(str, case.hidden))}
    del row["data"], row["each"]
    if not all(bool(layer.weight.isfinite().all()) for layer in layers):
        return row
    target = target_from(start_of(public), layers, public, head=False)
    mlp = read_mlp(target)
    norms = mlp.first.norm(dim=1)
    span = span_of(mlp, len(private.labels))
    distinct = 0 if span is None else int(FirstLayer(mlp, span).distinct.sum())
    alive = int((norms > 1e-3 * norms.max()).sum())
    return {**row, **held(target, private, case.decay), "alive": alive, "distinct": distinct}


def draw(rows: list[dict[str, Any]], images: int, file: Path) -> None:
    """Draw rank, distinct neurons and kinks against the residual."""
    figure, axes = pyplot().subplots(1, 3, figsize=(11, 3.4))
    known = [row for row in rows if "rank" in row]
    shown = (
        ("rank", "rank of the first layer"),
        ("distinct", "distinct neurons"),
        ("kinks", "kinks an image"),
    )
    for axis, (name, label) in zip(axes, shown, strict=True):
        for hidden, marker in zip(sorted({row["hidden"] for row in known}), "ox", strict=False):
            ours = [row for row in known if row["hidden"] == hidden]
            axis.plot(
                [row["at_kinks"] for row in ours], [row[name] for row in ours], marker, ms=5,
                label=f"576-{hidden}-10",
            )  # fmt: skip
        axis.set(xscale="log", xlabel="residual (best derivative at kinks)", ylabel=label)
        axis.invert_xaxis()
        axis.grid(alpha=0.3)
    axes[0].set_ylim(0, 2 * images)
    axes[0].axhline(images, color="grey", lw=1)
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    save_figure(figure, file)


def main() -> None:
    arguments = parser(__doc__ or "")
    arguments.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments.add_argument("--data", type=Path, default=Path("../shared/data"))
    arguments.add_argument("--evidence", type=Path, default=Path("docs/evidence/weights/rank.json"))
    arguments.add_argument("--figure", type=Path, help="draw it to this file")
    arguments.add_argument("--table", action="store_true", help="run nothing")
    options = arguments.parse_args()
    networks = {hidden: cases_of(hidden) for hidden in ((400, 400), (1000,))}
    if options.small:
        networks = {
            (400, 400): [case for case in networks[400, 400][:5] if case.decay in (5e-4, 2e-3)]
        }
    if options.tiny:
        networks = {(40, 40): [replace(networks[400, 400][0], hidden=(40, 40), steps=100)]}
    rows = json.loads(options.evidence.read_text())["rows"] if options.table else []
    with tempfile.TemporaryDirectory() as folder:
        (private, _), public = images_of(Case(), options.seed, options.data, Path(folder))
    for cases in () if options.table else networks.values():
        x = inputs_of(start_of(public), private.pixels)
        trained = train_together(
            cases, x, private.labels, options.seed, torch.device(options.device)
        )
        for case, layers in zip(cases, trained, strict=True):
            rows.append(row_of(case, layers, private, public))
            print(rows[-1], flush=True)
    if options.figure:
        draw(rows, len(private.labels), options.figure)
    finish("what weights hold", {}, rows, options)


if __name__ == "__main__":
    main()
