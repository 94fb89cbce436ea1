"""Where does an audit of 64 x 64 images spend its time and memory? The standard preset, stage by stage.

uv run python benchmarks/stages.py            64 x 64, 200 private images, four shadow models
uv run python benchmarks/stages.py --tiny     16 x 16, a fifth of the images: whether it runs

STAGE_seconds   time of a stage
STAGE_gib       peak of the GPU memory that PyTorch held until the next stage began, by the names of the
                progress bars; none on a CPU
whole_seconds   the same for training that was cut short, at its full number of steps

Prior and adaptation are trained for a part of their steps, since each step takes as long as another. Images are
crops of the two photographs in scikit-learn, tinted by class; distances and guidance are those of the audit's
public network, since nothing is downloaded. What the audit finds says nothing.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from common import finish, parser
from inversight import audit
from inversight.core.console import Terminal
from inversight.core.imaging import to_uint8
from inversight.core.progress import Progress
from inversight.core.run import read_manifest
from inversight.data import write_images
from inversight.settings import PriorTraining, prior_training, resolve
from natural_gradient import photographs

CLASSES = 10
SHORTER: dict[str, int] = {"prior": 300, "adaptation": 60}
"""Steps that are run of the stages that are trained for thousands."""
SMALL: dict[str, Any] = {
    "working_size": 16,
    "prior": {"steps": 20},
    "adaptation": {"steps": 4},
    **{f"{name}_training": {"epochs": 2} for name in ("target", "evaluator", "public")},
    "attack": [{"class": "plug-and-play", "pool": 100, "candidates": 6, "keep": 3, "steps": 4}],
}


class Watching(Terminal):
    """A terminal that notes the peak of the GPU memory between the beginnings of two stages."""

    def __init__(self) -> None:
        super().__init__()
        self.peaks: dict[str, float] = {}
        self._now = "start"

    def stage(self, name: str) -> Progress:
        self.note()
        self._now = name
        return super().stage(name)

    def note(self) -> None:
        """Note the peak of the stage that ends, in GiB."""
        if torch.cuda.is_available():
            gib = torch.cuda.max_memory_allocated() / 2**30
            self.peaks[self._now] = max(gib, self.peaks.get(self._now, 0.0))
            torch.cuda.reset_peak_memory_stats()


def main() -> None:
    arguments = parser(__doc__ or "", small=False)
    options = arguments.parse_args()
    each, size = (4, 16) if options.small else (20, 64)
    given: dict[str, Any] = {
        "preset": "standard", "seed": options.seed, "shadows": 4,
        "embedding": "public", "features": "public", "guidance_embedding": "public",
        **{name: {"steps": steps} for name, steps in SHORTER.items()},
    }  # fmt: skip
    if options.small:
        given |= SMALL
    reporter = Watching()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        for number, (part, count) in enumerate(
            (("private", each), ("holdout", each), ("public", 5 * each))
        ):
            images = photographs(CLASSES * count, size, options.seed + number)
            labels = torch.arange(CLASSES).repeat_interleave(count)
            tints = photographs(CLASSES, 8, options.seed).mean((2, 3))[labels, :, None, None]
            names = [f"{label}/{i:04d}.png" for i, label in enumerate(labels.tolist())]
            write_images(home / part, to_uint8((0.6 * images + 0.4 * tints).clamp(0, 1)), names)
            given[part] = home / part
        audit(**given, out=home / "run", reporter=reporter)
        reporter.note()
        stages = read_manifest(home / "run")["stages"]
    whole = resolve(given | {name: {} for name in SHORTER})
    whole_steps = {
        "prior": (prior_training(whole) or PriorTraining()).steps,
        "adaptation": whole.adaptation.steps,
    }
    figures: dict[str, Any] = {f"{name}_gib": peak for name, peak in reporter.peaks.items()}
    rows = []
    for stage in stages:
        name, seconds = stage["name"], stage["seconds"]
        peak = reporter.peaks.get(name.removeprefix("attack-"), "")  # some stages show no progress
        row = {"stage": name, "seconds": seconds, "memory (GiB)": peak}
        if name in SHORTER:
            row["whole (s)"] = seconds * whole_steps[name] / given[name]["steps"]
            figures[f"{name}_whole_seconds"] = row["whole (s)"]
        figures[f"{name}_seconds"] = seconds
        rows.append(row)
    keys = list(dict.fromkeys(key for row in rows for key in row))
    shown = [{key: row.get(key, "") for key in keys} for row in rows]
    finish(f"stages of an audit at {size} x {size}, standard preset", figures, shown, options)


if __name__ == "__main__":
    main()
