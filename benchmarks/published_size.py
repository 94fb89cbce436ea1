"""Adaptation of a prior of the published size, 256 x 256: seconds a step and memory. Random weights.

uv run python benchmarks/published_size.py            StyleGAN2-ADA as paper256, on a GPU
uv run python benchmarks/published_size.py --tiny     a small network at 16 x 16: whether it runs

ARM_step_seconds   a step of the game, with its share of the lazy penalties
ARM_over_vanilla   the same over vanilla's
ARM_gib            peak GPU memory held by PyTorch
half_difference    mean absolute difference between images in half and full precision, in [0, 1]
samples_a_second   images drawn, as for an attack's pool

The game continues as with an imported network (batch and penalties of the authors' --cfg=auto). Images are
crops of the two photographs in scikit-learn; the metric is LPIPS with VGG16.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from typing import Any

import torch

from common import finish, parser
from inversight.adaptation import adapt
from inversight.core.imaging import to_uint8
from inversight.core.seeding import generator
from inversight.priors import StylePrior, train_prior
from inversight.settings import PriorTraining, resolve_prior_training
from natural_gradient import LPIPS_LEAST, STANDARD, classifier, embedding_of, photographs, seconds

ARMS = ("vanilla", "entropy", "natural-gradient", "diverse", "conditional")


def images_of(prior: StylePrior, w: torch.Tensor, half: bool) -> torch.Tensor:
    images: torch.Tensor = prior.average(w, half=half)
    return ((images.float() + 1) / 2).clamp(0, 1)


def main() -> None:
    arguments = parser(__doc__ or "", small=False)
    arguments.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = arguments.parse_args()
    device = torch.device(options.device)
    small, gpu = options.small, device.type == "cuda"
    size, steps = (16, 2) if small else (256, 17)
    public = to_uint8(photographs(40 if small else 512, size, options.seed))
    target = classifier(size, options.seed, device)
    name = "public" if small else "lpips-vgg"
    metric = embedding_of(name, max(LPIPS_LEAST, size), options.seed, device)
    if small:
        network = training = PriorTraining(batch_size=4)
    else:
        network = resolve_prior_training({"config": "paper256"}, size=size)
        training = resolve_prior_training({"config": "auto"}, size=size)
    first = replace(network, steps=1, batch_size=training.batch_size)
    prior = train_prior(public, training=first, rng=generator(options.seed), device=device)

    with torch.no_grad():
        w = prior.sample(64, rng=generator(options.seed, "w"))
        exact, half = images_of(prior, w[:8], False), images_of(prior, w[:8], gpu)
        took = [seconds(lambda: [prior(part) for part in w.split(16)], device)[0] for _ in range(4)]
    figures: dict[str, Any] = {
        "half_difference": float((exact - half).abs().mean()),
        "samples_a_second": len(w) / statistics.median(took[1:]),
    }
    rows = []
    for name in ARMS:
        moments: list[float] = []

        def note(done: int, total: int, text: str = "", moments: list[float] = moments) -> None:
            if gpu:
                torch.cuda.synchronize()
            moments.append(time.perf_counter())

        if gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        adapt(
            prior,
            target,
            public,
            arm=name,
            adaptation=replace(STANDARD.adaptation, steps=steps),
            training=training,
            metric=metric,
            rng=generator(options.seed),
            progress=note,
        )
        # The first step is a warm-up; the others contain each lazy penalty equally often.
        figures[f"{name}_step_seconds"] = (moments[-1] - moments[0]) / (steps - 1)
        figures[f"{name}_over_vanilla"] = (
            figures[f"{name}_step_seconds"] / figures["vanilla_step_seconds"]
        )
        figures[f"{name}_gib"] = torch.cuda.max_memory_allocated() / 2**30 if gpu else None
        rows.append(
            {
                "arm": name,
                "a step (s)": figures[f"{name}_step_seconds"],
                "over vanilla": figures[f"{name}_over_vanilla"],
                "memory (GiB)": figures[f"{name}_gib"],
                "1,000 steps (min)": figures[f"{name}_step_seconds"] * 1000 / 60,
            }
        )
        print(rows[-1], flush=True)
    finish(
        f"adaptation at {size} x {size}, {training.batch_size} images a step, {device}",
        figures,
        rows,
        options,
    )


if __name__ == "__main__":
    main()
