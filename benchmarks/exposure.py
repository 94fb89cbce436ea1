"""What makes exposure visible, what predicts it, and what lowers it? Shadow models on several data sets.

uv run python benchmarks/exposure.py                                    compute everything that is missing
uv run python benchmarks/exposure.py --parts power --datasets digits    a part of it
uv run python benchmarks/exposure.py --table                            print the tables of kept results

power      exposure by K = 8, 16, 24, 48 shadow models, nested in each other
predicts   rank correlation of what an audit knows without shadow models with exposure
repeated   images that are repeated 1, 10 and 50 times in training against the others
null       models trained on a third set, so that every flag is a false alarm
defences   exposure of models that were trained with a defence
statistics other distances than that to the nearest reconstruction, of the same attacks
attacks    attacks and arms of the adaptation, on the same trained models
strongest  attacks by the access that they need, and statistics; chosen on seeds 0 to 2, reported on others

For each data set and seed one audit trains target, public network and prior. Shadow models are kept in
blocks under --work: a stopped benchmark goes on with the next one. Results are one file for each data set
under --evidence.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import (
    data_options,
    data_parser,
    digest,
    finish,
    folders,
    keep,
    listed,
    machine,
    print_table,
)
from exposure_data import MODELS, SEEDS, given
from exposure_parts import PARTS, Budget
from exposure_study import Base, log
from exposure_tables import figure, figures, tables, write_tables
from study import digest_of

OF_DIGITS = ("null", "repeated", "defences", "attacks")
"""Parts that only the digits have."""
PART_SEEDS = {"repeated": 3, "defences": 3, "attacks": 3, "strongest": 6}
"""Seeds of parts with fewer than the part `power`."""
VERSION = 2
"""Of what is kept of a result."""
FULL = Budget(most=48, models=24, redraws=1000, small=False)
SMALL = Budget(most=8, models=4, redraws=5, small=True)


def main() -> None:
    options = _options()
    with folders(options, usual="benchmarks/out/exposure"):
        if not options.table:
            for name in options.datasets:
                for part in options.parts:
                    for seed in _seeds(name, part, options):
                        _compute(name, part, seed, options)
        found = [
            one
            for name in options.datasets
            for one in _kept(options.evidence / f"{name}.json")
            if one["part"] in options.parts
        ]
        if not found:
            raise SystemExit(f"{options.evidence}: no results yet")
        titled = tables(found, options.parts)
        if options.page:
            write_tables(options.page, dict(zip(options.parts, titled, strict=True)))
        if not options.small:
            figure(found, options.figure)
        *others, (title, rows) = titled
        for one in others:
            print_table(*one)
        finish(title, figures(found), rows, options)


def _options() -> Any:
    arguments = data_parser(__doc__ or "", datasets=MODELS, evidence="docs/exposure")
    arguments.add_argument("--parts", default=",".join(PARTS), type=listed)
    arguments.add_argument("--arm", action="append", help="only arms with this in their name")
    arguments.add_argument(
        "--most", type=int, default=FULL.most, help="shadow models in power and predicts"
    )
    arguments.add_argument("--page", type=Path, help="put the tables into this Markdown file")
    arguments.add_argument("--figure", type=Path, default=Path("docs/images/exposure.png"))
    options = data_options(arguments, known=MODELS, seeds="0-9", small_seeds="0")
    unknown = [part for part in options.parts if part not in PARTS]
    if unknown:
        raise SystemExit(f"--parts: expected some of {', '.join(PARTS)}, found {unknown}")
    return options


def _seeds(name: str, part: str, options: Any) -> Iterator[int]:
    if part in OF_DIGITS and name != "digits":
        return
    most = min(SEEDS[name], PART_SEEDS.get(part, SEEDS[name]))
    yield from (seed for seed in options.seeds if seed < most)


def _compute(name: str, part: str, seed: int, options: Any) -> None:
    """Compute the missing arms of one part and seed, and keep each as soon as it is there."""
    file = options.evidence / f"{name}.json"
    budget = SMALL if options.small else FULL
    if not options.small:
        most = min(budget.most, MODELS[name], options.most)
        budget = replace(budget, most=most, models=min(budget.models, MODELS[name]))
    settings = given(name, seed, options.data, options.work, small=options.small)
    base = Base.of(settings, options.work / f"{name}-{seed}")
    facts = {k: v for k, v in vars(budget).items() if k != "most" or part == "predicts"}
    for arm, compute in PARTS[part](base, budget):
        if options.arm and not any(text in arm for text in options.arm):
            continue
        key = {"data": name, "part": part, "arm": arm, "seed": seed}
        stamp = digest([digest_of(base.settings), facts, key, VERSION])
        results = _kept(file)
        if any(one["settings"] == stamp for one in results):
            continue
        log(f"{name}, {part}, {arm}, seed {seed}")
        one = {**key, "settings": stamp, **compute(), "machine": machine(seed)["cpu"]}
        others = [r for r in _kept(file) if any(r[k] != v for k, v in key.items())]
        keep(file, {"results": sorted([*others, one], key=_order)})
        log(str({k: v for k, v in one.items() if k not in (*key, "settings", "machine")}))


def _order(one: dict[str, Any]) -> tuple[int, str, int]:
    return list(PARTS).index(one["part"]), one["arm"], one["seed"]


def _kept(file: Path) -> list[dict[str, Any]]:
    return list(json.loads(file.read_text())["results"]) if file.is_file() else []


if __name__ == "__main__":
    main()
