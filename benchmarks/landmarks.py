"""What scores are worth: images that nobody reconstructed, scored as if an attack had made them.

uv run python benchmarks/landmarks.py                                  what is missing
uv run python benchmarks/landmarks.py --datasets faces-32 --seeds 5-9
uv run python benchmarks/landmarks.py --table                          the table of what is there

random    public images, given out to the classes at random: nobody asked the target anything
surest    of each class the public images that the target is surest of: no prior, no search
holdout   other images of the private classes: about as near as an honest model of a class comes

On the study's data sets, with its targets, as many images of each class as its attack keeps, at the
size at which its priors draw. An attack whose scores are those of `surest` has only chosen.
Each seed and data set leaves a JSON file under --evidence, from which a stopped benchmark goes on.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common import finish, machine, parser
from inversight.attacks import ATTACKS, Attack
from inversight.audit import Plan
from inversight.config import build
from inversight.console import Quiet
from inversight.data import ImageSet
from inversight.embeddings import named_embedding
from inversight.evaluation import evaluate
from inversight.networks import load_classifier
from inversight.seeding import generator
from inversight.settings import AuditSettings, resolve
from inversight.target import Target, target_of
from study import BASE, MEASURES, SMALL, audit_arm, interval, numbers
from study_data import DATASETS

_NETWORKS_ALONE: dict[str, Any] = {
    "prior": {"steps": 1},
    "adaptation": {"steps": 0},
    "attack": [
        {"class": "plug-and-play", "pool": 40, "candidates": 2, "keep": 1, "steps": 1, "crops": 1}
    ],
}
"""Nothing but target, evaluator and public network is used of an audit with these settings."""
LANDMARKS = ("random", "surest", "holdout")


def main() -> None:
    made = parser(__doc__ or "")
    made.add_argument("--datasets", default=",".join(DATASETS), type=lambda text: text.split(","))
    made.add_argument("--seeds", default=None, help="for example 5-9 or 0,3")
    made.add_argument("--data", type=Path, default=Path("../shared/data"), help="the image folders")
    made.add_argument("--work", type=Path, default=Path("benchmarks/out/landmarks"))
    made.add_argument("--evidence", type=Path, default=Path("docs/landmarks"))
    made.add_argument("--table", action="store_true", help="run nothing")
    options = made.parse_args()
    options.seeds = numbers(options.seeds or ("0" if options.small else "5-9"))
    with tempfile.TemporaryDirectory() as temporary:
        if options.small:
            options.datasets = ["digits"]
            options.evidence, options.work = Path(temporary) / "evidence", Path(temporary) / "work"
        for name in [] if options.table else options.datasets:
            for seed in options.seeds:
                file = _file(options, name, seed)
                if not file.is_file():
                    _write(file, measured(name, seed, options))
        rows = table(options)
    if not rows:
        raise SystemExit(f"{options.evidence}: no results of seeds {options.seeds} yet")
    finish(f"landmarks, seeds {options.seeds}", {}, rows, options)


def measured(name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """The measures of each landmark."""
    given: dict[str, Any] = {**DATASETS[name].given(seed, options.data, options.work)}
    given |= {"seed": seed, "arm": BASE} | (SMALL if options.small else {})
    kept = _kept(resolve(given))
    settings = resolve(given | _NETWORKS_ALONE)
    folder = options.work / f"{name}-{seed}"
    audit_arm(settings, folder, folder)
    judge = Judge.of(settings, folder)
    return {
        "data": name,
        "seed": seed,
        "kept": kept,
        "machine": machine(seed),
        "measures": {
            landmark: judge.measures(images)
            for landmark, images in judge.landmarks(kept, seed).items()
        },
    }


def _kept(settings: AuditSettings) -> int:
    """Images of each class that the study's attack keeps."""
    attack: Attack = build(settings.attack[0], ATTACKS, role="--attack")
    return int(attack.keep)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Judge:
    """An audit's images and networks."""

    settings: AuditSettings
    plan: Plan
    stages: Path
    target: Target
    evaluator: Target

    @classmethod
    def of(cls, settings: AuditSettings, folder: Path) -> Judge:
        stages = folder / "stages"
        return cls(
            settings,
            Plan.prepare(settings, Quiet()),
            stages,
            target_of(load_classifier(stages / "target"), "the target"),
            target_of(load_classifier(stages / "evaluator"), "the evaluator"),
        )

    def landmarks(self, kept: int, seed: int) -> dict[str, ImageSet]:
        """The sets of images, by name."""
        private, public = self.plan.inputs.private, self.plan.public_for_prior
        labels = private.labels.unique(sorted=True)
        with torch.no_grad():
            told = [self.target(x.float() / 255).softmax(1) for x in public.images.split(200)]
        sure = torch.cat(told)[:, labels]
        drawn = torch.randint(
            len(public), (kept * len(labels),), generator=generator(seed, "landmarks")
        )
        repeated = labels.repeat_interleave(kept)
        surest = sure.topk(min(kept, len(public)), dim=0).indices.T.flatten()
        found = {
            "random": self._set(public.images[drawn], repeated),
            "surest": self._set(public.images[surest], repeated),
        }
        held = self.plan.inputs.holdout
        if held is not None:
            _, size, _ = self.plan.prior_shape
            small = held.resized(size=size, channels=public.channels)
            found["holdout"] = self._set(small.images, small.labels)
        return found

    def _set(self, images: Tensor, labels: Tensor) -> ImageSet:
        names = tuple(f"{number:06d}" for number in range(len(images)))
        return ImageSet(images, labels, names, self.plan.inputs.private.classes, names)

    def measures(self, images: ImageSet) -> dict[str, float | None]:
        """What the study says of an attack, said of these images."""
        found = evaluate(
            self.plan.inputs.private,
            {"attack": images},
            distance=self._embedding("distance"),
            features=self._embedding("features"),
            evaluator=self.evaluator,
            holdout=None,
            memory=self.settings.memory,
            seed=self.settings.seed,
        )
        return {name: found.metrics[name]["value"] for name in MEASURES}

    def _embedding(self, use: Any) -> Any:
        name = self.settings.embedding if use == "distance" else self.settings.features
        return named_embedding(
            name,
            use=use,
            role=f"--{use}",
            size=self.plan.inputs.private.size,
            public_network=load_classifier(self.stages / "public-network"),
            evaluator=None,
        )


def table(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each data set and landmark: means over seeds, with half of their 95 % intervals."""
    rows = []
    for name in DATASETS:
        files = [f for f in (_file(options, name, seed) for seed in options.seeds) if f.is_file()]
        found = [json.loads(f.read_text())["measures"] for f in files]
        for landmark in LANDMARKS if found else ():
            row: dict[str, Any] = {"data": name, "images": landmark, "seeds": len(found)}
            for measure in MEASURES:
                mean, half = interval([one[landmark][measure] for one in found])
                row[measure] = f"{mean:.3g}" + ("" if half is None else f" ± {half:.2g}")
            rows.append(row)
    return rows


def _file(options: argparse.Namespace, name: str, seed: int) -> Path:
    file: Path = options.evidence / f"{name}-{seed}.json"
    return file


def _write(file: Path, facts: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(facts, indent=1) + "\n")
    partial.replace(file)


if __name__ == "__main__":
    main()
