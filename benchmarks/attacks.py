"""Speed of Plug & Play, and what each attack reconstructs.

uv run python benchmarks/attacks.py                    speed: Plug & Play, quick settings against plain ones
uv run python benchmarks/attacks.py --small            speed: two people instead of four, one seed; not compiled
uv run python benchmarks/attacks.py --run              compute what is missing in the table of attacks
uv run python benchmarks/attacks.py --table            print the table of existing results
uv run python benchmarks/attacks.py --rescore          compute the measures again, after they changed
uv run python benchmarks/attacks.py --sheet FILE       draw the nearest reconstructions by each attack

Speed: *plain* is the paper's procedure, all candidates for all steps in float32. Both run on the targets
and priors of benchmarks/base_audits.py and are scored in the same way.

Table: each attack as `inversight audit --preset quick` runs it, on a prior whose training was continued
without guidance (vanilla) and on one adapted to the target (natural-gradient); PLG-MI and KED-MI also on
the adaptations of their papers. Results are JSON files under --evidence; --run computes the missing ones.
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import load_file, save_file

from attack_problem import MEASURES, STEPS, AttackProblem
from common import (
    data_options,
    data_parser,
    finish,
    folders,
    interval,
    keep,
    listed,
    machine,
    plus_minus,
    pyplot,
    save_figure,
)
from inversight.attacks import PlugAndPlay, Reconstructions
from inversight.priors import StylePrior
from inversight.settings import ATTACKS
from study_data import DATASETS

ARMS = ("vanilla", "natural-gradient")
_ALL_ARMS = (*ARMS, "pseudo-labels", "target-aware")
BASELINES = ("unguided", "selection")
"""Samples of the prior assigned at random, and the most confident samples of the pool, unoptimised."""
COMPARED = tuple(name for name in ATTACKS if name != "weight-reconstruction")
"""Attacks on the targets here, which are convolutional."""
CONTROLS: dict[str, tuple[str, dict[str, Any]]] = {
    "ppdg-untuned": ("ppdg", {"tuning_steps": 0}),
    "plug-and-play-8x": ("plug-and-play", {"candidates": 320}),
}
"""What `ppdg` is compared with: its rounds without the tuning, and Plug & Play with eight times as many
candidates, which takes about half of its time on digits. They run if --attacks names them."""
OWN_ARM = {"plg-mi": ("pseudo-labels",), "mi-face": ("vanilla",)}
"""Attacks that run on other arms only: one needs classes, one needs no prior."""
MORE_ARMS = {
    "ked-mi": ("target-aware",),
    "gmi": ("target-aware",),
    "plug-and-play": ("pseudo-labels", "target-aware"),
}
TITLES = {
    "accuracy_top1": "accuracy", "target_top1": "target", "ddcs_best": "DDCS", "covered": "covered",
    "coverage": "coverage", "leakage_gap": "leakage gap", "frechet": "Frechet",
    "knn_distance": "KNN distance", "queries": "queries", "seconds": "seconds",
}  # fmt: skip
VARIANTS = {
    "plain": {"halvings": 0, "half": False},
    "halvings": {"halvings": 2, "half": False},
    "halvings, half": {"halvings": 2, "half": True},
    "halvings, half, compiled": {"halvings": 2, "half": True, "compiled": True},
}
OURS = "halvings, half"
_CLASSES = 10
"""Largest number of classes attacked: half of the twenty people, to save time."""
ORDERINGS = (
    ("plug-and-play", "vanilla", "gmi", "vanilla"),
    ("plug-and-play", "vanilla", "vmi", "vanilla"),
    ("plug-and-play", "vanilla", "mi-face", "vanilla"),
    ("ked-mi", "target-aware", "gmi", "vanilla"),
    ("vmi", "vanilla", "gmi", "vanilla"),
    ("mirror", "vanilla", "gmi", "vanilla"),
    ("lomma", "vanilla", "gmi", "vanilla"),
    ("plg-mi", "pseudo-labels", "ked-mi", "target-aware"),
    ("if-gmi", "vanilla", "plug-and-play", "vanilla"),
    ("ppdg", "vanilla", "plug-and-play", "vanilla"),
    ("rlb-mi", "vanilla", "mirror-black-box", "vanilla"),
    ("lokt", "vanilla", "brep-mi", "vanilla"),
)
"""Pairs (attack, arm, attack, arm): the first one's paper reports a higher accuracy than the second's, each
with its own prior."""
PAPER = {"pool": 5000, "candidates": 200, "steps": 70, "keep": 50, "crops": 100}
"""The paper's budget."""
TINY = {"pool": 500, "candidates": 40, "steps": 24, "keep": 10, "crops": 10}


def main() -> None:
    options = _options()
    with folders(options, usual="benchmarks/out/defences", temporary=()):
        _dispatch(options)


def _dispatch(options: argparse.Namespace) -> None:
    if options.run or options.rescore:
        for seed in options.seeds:
            for name in options.datasets:
                (run if options.run else rescore)(name, seed, options)
    elif options.sheet:
        sheet(options)
    elif options.table:
        rows, claims = table(options), orderings(options)
        if options.markdown:
            tables = [_markdown(compact(name, options)) for name in options.datasets]
            options.markdown.write_text("\n".join([*tables, _markdown(claims)]))
        finish("papers' orderings", {}, claims, argparse.Namespace(seed=0, json=None))
        finish(f"attacks, seeds {options.seeds}", adapted(options), rows, options)
    else:
        speed(options)


def _options() -> argparse.Namespace:
    datasets = ("faces-32", "vehicles-same")
    arguments = data_parser(__doc__ or "", datasets=datasets, evidence="docs/attacks", small=True)
    arguments.add_argument("--attacks", default=(*BASELINES, *COMPARED), type=listed)
    arguments.add_argument("--arms", default=_ALL_ARMS, type=listed)
    arguments.add_argument("--classes", type=int, default=4, help="for the measurement of speed")
    arguments.add_argument("--run", action="store_true")
    arguments.add_argument("--rescore", action="store_true", help="score kept results again")
    arguments.add_argument("--markdown", type=Path, help="also write the table to this file")
    arguments.add_argument("--sheet", type=Path)
    options = data_options(arguments, known=DATASETS, seeds="0-2", small_seeds="0")
    if options.small and not options.tiny:
        options.datasets = ["faces-32"]  # a step at 8 x 8 is mostly overhead
    known = (*BASELINES, *CONTROLS, *COMPARED)
    unknown = [name for name in options.attacks if name not in known]
    if unknown:
        raise SystemExit(f"--attacks: no such attack: {', '.join(unknown)}")
    return options


# Speed


def speed(options: argparse.Namespace) -> None:
    """Time the quick variants of Plug & Play against the plain one."""
    rows: list[dict[str, Any]] = []
    for name in options.datasets:
        for seed in options.seeds:
            few = _speed_problem(name, seed, options)
            for variant, changed in VARIANTS.items():
                if options.small and "compiled" in variant:
                    continue
                budget = TINY if options.tiny else PAPER
                attack = PlugAndPlay(**budget, **changed, crop_flip=name != "digits")
                rows.append({"data": name, "seed": seed, "variant": variant, **_timed(few, attack)})
    figures: dict[str, Any] = {}
    for variant in list(VARIANTS)[1:]:
        pairs = [
            (one, other)
            for one in rows
            for other in rows
            if one["variant"] == "plain" and other["variant"] == variant
            and (one["data"], one["seed"]) == (other["data"], other["seed"])
        ]  # fmt: skip
        if not pairs:
            continue
        suffix = "" if variant == OURS else f" ({variant})"
        plain, ours = (
            statistics.mean(row["ddcs"] for row in side) for side in zip(*pairs, strict=True)
        )
        figures |= {
            f"plain_over_ours{suffix}": statistics.mean(
                a["seconds"] / b["seconds"] for a, b in pairs
            ),
            f"accuracy_difference{suffix}": statistics.mean(
                a["accuracy"] - b["accuracy"] for a, b in pairs
            ),
            f"ddcs_ratio{suffix}": ours / plain,
        }
    finish("Plug & Play, plain and quick settings", figures, rows, options)


def _speed_problem(name: str, seed: int, options: argparse.Namespace) -> AttackProblem:
    """Return the problem with the classes that are attacked."""
    if options.tiny or not options.small:
        return _problem(name, seed, options).first_classes(options.classes)
    problem = AttackProblem.hardly_trained(name, seed, data=options.data, work=options.work)
    return problem.first_classes(2)


def _timed(problem: AttackProblem, attack: PlugAndPlay) -> dict[str, Any]:
    with _Peak() as peak:
        reconstructions, seconds = problem.run(attack, problem.trained)
    found, _ = problem.scored(reconstructions)
    return {
        "seconds": seconds,
        "image steps/s": attack.image_steps * len(problem.labels) / seconds,
        "reconstructions/s": len(reconstructions) / seconds,
        "memory MiB": peak.bytes / 2**20,
        "accuracy": found["accuracy_top1"],
        "ddcs": found["ddcs_best"],
        "coverage": found["coverage"],
    }


class _Peak:
    """Measure the peak memory of this process above its initial memory, every 20 ms."""

    def __enter__(self) -> _Peak:
        self._process = psutil.Process()
        self._before = self._process.memory_info().rss
        self.bytes = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._over.wait(0.02):
            self.bytes = max(self.bytes, self._process.memory_info().rss - self._before)

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


# Table


def run(name: str, seed: int, options: argparse.Namespace) -> None:
    """Run the missing attacks on one target."""
    missing = [(a, arm) for arm, a in _wanted(options) if not _exists(name, arm, a, seed, options)]
    if not missing:
        return
    problem = _problem(name, seed, options)
    for arm in dict.fromkeys(arm for _, arm in missing):
        prior = problem.prior(arm, 6 if options.small else STEPS[name])
        for attack_name in (a for a, own in missing if own == arm):
            reconstructions, seconds = _reconstruct(problem, attack_name, prior)
            values, _ = problem.scored(reconstructions)
            kept = _images_file(problem, arm, attack_name)
            kept.parent.mkdir(parents=True, exist_ok=True)
            save_file(
                {"images": reconstructions.images.contiguous(), "labels": reconstructions.labels},
                kept,
            )
            facts = {"seconds": round(seconds, 2), "queries": reconstructions.queries, **values}
            _save(name, arm, seed, attack_name, facts, options)
            print(name, seed, arm, attack_name, facts, flush=True)


def _reconstruct(
    problem: AttackProblem, name: str, prior: StylePrior
) -> tuple[Reconstructions, float]:
    if name == "unguided":
        return problem.unguided(prior, problem.attack("plug-and-play").keep), 0.0
    if name == "selection":
        still = {"steps": 1, "halvings": 0, "learning_rate": 1e-9}
        return problem.run(problem.attack("plug-and-play", **still), prior)
    name, changed = CONTROLS.get(name, (name, {}))
    return problem.run(problem.attack(name, **changed), prior)


def rescore(name: str, seed: int, options: argparse.Namespace) -> None:
    """Compute the measures of kept reconstructions again."""
    problem = _problem(name, seed, options)
    for arm in _ALL_ARMS:
        file = _file(name, arm, seed, options)
        before = json.loads(file.read_text())["attacks"] if file.is_file() else {}
        for attack, facts in before.items():
            values, _ = problem.scored(_load(problem, arm, attack))
            kept = {key: facts[key] for key in ("seconds", "queries")}
            _save(name, arm, seed, attack, {**kept, **values}, options)


def _wanted(options: argparse.Namespace) -> list[tuple[str, str]]:
    """Return (arm, attack) pairs, ordered by arm."""
    pairs = []
    for attack in options.attacks:
        arms = OWN_ARM.get(attack, (*ARMS, *MORE_ARMS.get(attack, ())))
        pairs += [(arm, attack) for arm in arms if arm in options.arms]
    return sorted(pairs, key=lambda pair: _ALL_ARMS.index(pair[0]))


def _problem(name: str, seed: int, options: argparse.Namespace) -> AttackProblem:
    problem = AttackProblem.load(
        name, seed, data=options.data, work=options.work, small=options.small
    )
    return problem.first_classes(_CLASSES)


def _file(name: str, arm: str, seed: int, options: argparse.Namespace) -> Path:
    file: Path = options.evidence / name / f"{arm}-{seed}.json"
    return file


def _exists(name: str, arm: str, attack: str, seed: int, options: argparse.Namespace) -> bool:
    file = _file(name, arm, seed, options)
    return file.is_file() and attack in json.loads(file.read_text())["attacks"]


def _save(
    name: str, arm: str, seed: int, attack: str, facts: dict[str, Any], options: argparse.Namespace
) -> None:
    file = _file(name, arm, seed, options)
    known = json.loads(file.read_text())["attacks"] if file.is_file() else {}
    content = {
        "data": name, "arm": arm, "seed": seed, "machine": machine(seed),
        "attacks": {**known, attack: facts},
    }  # fmt: skip
    keep(file, content)


def table(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each data set, attack and arm: means over seeds ± half of the 95 % intervals."""
    rows = []
    for name in options.datasets:
        for attack in options.attacks:
            for arm in options.arms:
                seeds = len(_values(name, arm, attack, "queries", options))
                if not seeds:
                    continue
                row: dict[str, Any] = {"data": name, "attack": attack, "arm": arm, "seeds": seeds}
                for measure in (*MEASURES, "queries", "seconds"):
                    known = _values(name, arm, attack, measure, options)
                    row[measure] = _shown(list(known.values()), measure)
                rows.append(row)
    if not rows:
        raise SystemExit(f"{options.evidence}: no results of seeds {options.seeds} yet")
    return rows


def _values(
    name: str, arm: str, attack: str, measure: str, options: argparse.Namespace
) -> dict[int, float]:
    """Return a measure by seed; seconds only from the first seed's kind of processor."""
    found: dict[int, float] = {}
    processor = None
    for seed in options.seeds:
        file = _file(name, arm, seed, options)
        kept = json.loads(file.read_text()) if file.is_file() else {"attacks": {}}
        value = kept["attacks"].get(attack, {}).get(measure)
        if value is None:
            continue
        processor = processor or kept["machine"]["cpu"]
        if measure != "seconds" or kept["machine"]["cpu"] == processor:
            found[seed] = float(value)
    return found


def compact(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each attack on one data set: on the unguided prior / on the adapted one.

    Attacks that ran on one of several seeds only are left out.
    """
    rows = []
    enough = min(2, len(options.seeds))
    for attack in options.attacks:
        other = [(arm,) for arm in _ALL_ARMS if arm not in ARMS]
        for arms in (ARMS, *other):
            row: dict[str, Any] = {
                "attack": f"`{attack}`" + ("" if arms == ARMS else f", {arms[0]}")
            }
            for measure, title in TITLES.items():
                cells = [
                    _shown(list(values.values()), measure)
                    for arm in arms
                    if (values := _values(name, arm, attack, measure, options))
                ]
                row[title] = " / ".join(dict.fromkeys(cells))
            if len(_values(name, arms[0], attack, "queries", options)) >= enough:
                rows.append(row)
    return rows


def orderings(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the differences of accuracy and DDCS between the attacks of ORDERINGS, paired by seed."""
    rows = []
    for first, arm, second, other in ORDERINGS:
        row: dict[str, Any] = {"first": f"{first} ({arm})", "second": f"{second} ({other})"}
        for name in options.datasets:
            for measure in ("accuracy_top1", "ddcs_best"):
                a = _values(name, arm, first, measure, options)
                b = _values(name, other, second, measure, options)
                row[f"{name.partition('-')[0]} {TITLES[measure]}"] = _signed(
                    [a[s] - b[s] for s in a if s in b]
                )
        rows.append(row)
    return rows


def adapted(options: argparse.Namespace) -> dict[str, str]:
    """Return what the natural gradient adds over vanilla: mean over attacks, interval over seeds."""
    figures = {}
    for name in options.datasets:
        for measure in ("accuracy_top1", "ddcs_best", "coverage", "frechet", "leakage_gap"):
            gains: dict[int, list[float]] = {}
            for attack in options.attacks:
                a = _values(name, "natural-gradient", attack, measure, options)
                b = _values(name, "vanilla", attack, measure, options)
                if attack in (*BASELINES, *CONTROLS):
                    continue
                for seed in a.keys() & b.keys():
                    gains.setdefault(seed, []).append(a[seed] - b[seed])
            figures[f"{name}_{measure}_gain"] = _signed(
                [statistics.mean(g) for g in gains.values()]
            )
    return figures


def _signed(differences: list[float]) -> str:
    if not differences:
        return "-"
    return plus_minus(*interval(differences), "+.2f", ".2f")


def _markdown(rows: list[dict[str, Any]]) -> str:
    """Return rows as a Markdown table."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([*row.values()] for row in rows)]
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)


def _shown(values: list[float], measure: str) -> str:
    if not values:
        return "-"
    mean, half = interval(values)
    digits = {"queries": 0, "seconds": 0, "knn_distance": 1, "frechet": 1}.get(measure, 2)
    if measure in ("queries", "seconds") or half is None:
        return f"{mean:,.{digits}f}"
    return plus_minus(mean, half, f".{digits}f")


# Pictures


def sheet(options: argparse.Namespace) -> None:
    """Draw private images in columns and, in each row, their nearest reconstructions by one attack."""
    name, seed = options.datasets[0], options.seeds[0]
    problem = _problem(name, seed, options)
    first = [int((problem.private.labels == k).nonzero()[0]) for k in problem.labels[:10]]
    if len(first) < 10:  # few classes: several images of each
        step = max(1, len(problem.private) // 10)
        first = list(range(0, len(problem.private), step))[:10]
    ids = [problem.private.ids[row] for row in first]
    rows = [("private", problem.private.floats()[first])]
    for arm, attack in _wanted(options):
        # One row for each attack: on the arm that it needs, or on the unguided prior.
        if arm != OWN_ARM.get(attack, ("vanilla",))[0]:
            continue
        if not _images_file(problem, arm, attack).is_file():
            continue
        reconstructions = _load(problem, arm, attack)
        _, found = problem.scored(reconstructions)
        nearest = found.sets[0].assignment.nearest_row.tolist()
        order = {one: place for place, one in enumerate(found.reference.ids)}
        picked = [nearest[order[one]] for one in ids]
        blank = torch.ones_like(reconstructions.images[0])
        images = [reconstructions.images[row] if row >= 0 else blank for row in picked]
        rows.append((attack, torch.stack(images)))
    height = 0.62 * len(rows)
    fig, axes = pyplot().subplots(len(rows), 10, figsize=(8.2, height), squeeze=False)
    for line, (title, images) in zip(axes, rows, strict=True):
        for axis, image in zip(line, images, strict=True):
            shown = image.permute(1, 2, 0).squeeze(-1).numpy()
            axis.imshow(shown, cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            for side in axis.spines.values():
                side.set_visible(False)
        line[0].set_ylabel(title, rotation=0, ha="right", va="center", fontsize=7)
    fig.subplots_adjust(left=0.2, right=0.99, top=0.99, bottom=0.01, wspace=0.05, hspace=0.05)
    save_figure(fig, options.sheet, dpi=120)


def _images_file(problem: AttackProblem, arm: str, attack: str) -> Path:
    """Return the file of an attack's images and labels."""
    return problem.folder.parent / "made" / arm / f"{attack}.safetensors"


def _load(problem: AttackProblem, arm: str, attack: str) -> Reconstructions:
    tensors = load_file(_images_file(problem, arm, attack))
    unknown = torch.full((len(tensors["labels"]),), float("nan"))
    return Reconstructions(tensors["images"], tensors["labels"], unknown[:, None], unknown)


if __name__ == "__main__":
    main()
