"""The presets: budgets of all stages together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from inversight.core.config import check_name, merge

Preset = Literal["quick", "standard", "thorough"]
PRESETS: tuple[Preset, ...] = get_args(Preset)


def _classifiers(**training: int) -> dict[str, dict[str, int]]:
    """Return the same settings for each classifier that an audit trains."""
    return {f"{name}_training": training for name in ("target", "evaluator", "public")}


_STAGES: dict[str, dict[str, Any]] = {
    "quick": {
        "working_size": 32,
        "prior": {"steps": 2720, "width": 8},
        "adaptation": {"steps": 250},
    },
    "standard": {
        "working_size": 64,
        "prior": {"steps": 12000, "width": 48},
        "adaptation": {"steps": 1500, "guided_images": 20},
        **_classifiers(epochs=100, most_steps=30000, width=24),
    },
    "thorough": {
        "working_size": 256,
        "prior": {"steps": 60000, "width": 64},
        "adaptation": {"steps": 6000},
        **_classifiers(epochs=125, most_steps=200000, width=32),
    },
}
"""Settings of the audit other than attacks. A prior of half the width of `PriorTraining`'s default is as good
at 32x32 after 2,720 steps as that one after 2,000, in less than half the time (benchmarks/prior_speed.py)."""

_PLUG_AND_PLAY: dict[str, dict[str, Any]] = {
    "quick": {"pool": 2000, "candidates": 30, "steps": 40, "keep": 10, "crops": 25},
    "standard": {"pool": 5000, "candidates": 100, "steps": 70, "keep": 25, "crops": 50},
    "thorough": {"pool": 5000, "candidates": 200, "steps": 70, "keep": 50, "crops": 100},
}
"""Plug & Play's budget before halvings, from which the other attacks' budgets follow."""

_SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "quick": {
        "cma-es": {"population": 12},
        "rlb-mi": {"at_once": 6, "hidden": 64, "training_batch": 64},
        "brep-mi": {"points": 12},
        "lokt": {"images": 6000, "surrogates": 2, "training": {"epochs": 10}},
        "lomma": {
            "images": 2000, "surrogates": 1, "training": {"epochs": 16, "batch_size": 32},
        },
    },
    "standard": {
        "mirror-black-box": {"generations": 100},
        "cma-es": {"population": 20},
        "rlb-mi": {"at_once": 4, "hidden": 128, "training_batch": 128},
        "brep-mi": {"points": 32},
        "lokt": {"images": 20000, "surrogates": 3, "training": {"epochs": 20}},
        "lomma": {"images": 10000, "surrogates": 3, "training": {"epochs": 15}},
    },
    "thorough": {
        "mirror-black-box": {"generations": 100},
        "cma-es": {"population": 20},
        "rlb-mi": {"hidden": 256, "training_batch": 256},
        "brep-mi": {"points": 32},
        "lokt": {"images": 50000, "surrogates": 3, "training": {"epochs": 30}},
        "lomma": {"images": 30000, "surrogates": 3, "training": {"epochs": 20}},
    },
}  # fmt: skip
"""Sizes that do not follow from Plug & Play's budget. Agents and surrogates are trained on top of it."""

_FASTER: dict[str, Any] = {"halvings": 2, "half": True}
"""Makes Plug & Play faster at the same result (benchmarks/attacks.py)."""

_NO_FLIP: dict[str, Any] = {"flip": False, "rotation": 10.0}
_LONGER: dict[str, Any] = {"epochs": 200, "patience": 60, "batch_size": 32}
_DIGITS: dict[str, Any] = {
    **dict.fromkeys(("embedding", "features", "guidance_embedding"), "public"),
    "images": "full",
    "target_training": {**_NO_FLIP, **_LONGER},
    "evaluator_training": {**_NO_FLIP, **_LONGER},
    "public_training": {**_NO_FLIP, "epochs": 30, "batch_size": 64},
    "adaptation": {"pseudo_labels_mirror": False},
}
"""A mirrored digit is another sign; a hundred private images make few steps an epoch; and the images
are published, so the report may show them."""
_DIGITS_QUICK: dict[str, Any] = {
    "prior": {"steps": 800, "batch_size": 64, "learning_rate": 3e-3, "width": 16},
    "adaptation": {"steps": 75},
    "shadows": 24, "exposure_embedding": "pixel",
}  # fmt: skip
"""800 steps of 64 images give as good a prior at 8x8 pixels as 1,500 of 32, in half the time
(benchmarks/prior_speed.py)."""
_DIGITS_PLUG_AND_PLAY: dict[str, Any] = {
    "pool": 5000, "candidates": 40, "steps": 50, "keep": 20, "crops": 30,
}  # fmt: skip
"""At 8x8 pixels every step is cheap; with these budgets the demonstration takes under three minutes."""
_ROUND_STEPS, _ROUND_POOL = 0.3, 500
"""In a round of PPDG: the share of an attack's steps, and its pool (published: 500)."""


SHADOWS: dict[str, int] = {"quick": 16, "standard": 32, "thorough": 64}
"""Shadow models of --shadows auto."""


def stage_budgets(preset: str, *, digits: bool = False) -> dict[str, Any]:
    """Return a preset's settings other than attacks, for the embedded digits or for other images.

    Raises:
        ConfigError: no such preset.
    """
    check_name("preset", preset, PRESETS)
    budget = _STAGES[preset]
    if digits:
        budget = merge(budget, _DIGITS)
    return merge(budget, _DIGITS_QUICK) if digits and preset == "quick" else budget


def attack_budgets(preset: str, *, digits: bool = False) -> dict[str, dict[str, Any]]:
    """Return each attack's settings in a preset, by its name.

    All keep equally many reconstructions for equal work: as many images forward and back as Plug & Play
    without halvings or, for a black-box attack, as many images sent for each class, where a step forward
    and back counts as three images. Where a paper takes far more steps, its step size is raised instead.

    Raises:
        ConfigError: no such preset.
    """
    check_name("preset", preset, PRESETS)
    quick_digits = digits and preset == "quick"
    plain = _DIGITS_PLUG_AND_PLAY if quick_digits else _PLUG_AND_PLAY[preset]
    sizes = _SIZES[preset]
    if digits:
        plain = {**plain, "crop_flip": False}
        sizes = merge(sizes, {"lokt": {"training": {"flip": False}}})
    # At 8x8 pixels half precision saves nothing. Truncated by half, as published, a small
    # prior's pool is too alike to cover many private images (docs/attacks.md); the thorough preset, whose
    # budget is the paper's, has the paper's truncation.
    faster = {"halvings": _FASTER["halvings"]} if quick_digits else _FASTER
    plug_and_play = {**plain, **faster, **({} if preset == "thorough" else {"truncation": 1.0})}
    budgets = {
        **_white_box(plain), **_black_box(plain, sizes), "plug-and-play": plug_and_play,
        "lokt": {"white_box": plug_and_play},
    }  # fmt: skip
    budgets = merge(budgets, sizes)
    work = plain["candidates"] * plain["steps"]
    return {
        **budgets,
        "ppdg": {
            "around": _round("plug-and-play", budgets), "images": 5,
            "inversion_steps": round(0.03 * work), "tuning_steps": round(0.05 * work),
            "tuning_learning_rate": 3e-4 if preset == "thorough" else 5e-3,
        },
    }  # fmt: skip


def with_budget(spec: Mapping[str, Any], budgets: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the attack ``spec``, a mapping with its class, on top of its budget.

    If it runs around another attack than its budget, that one has the budget of a round.
    """
    budget, around = budgets.get(str(spec["class"]), {}), spec.get("around")
    if isinstance(around, str | Mapping) and "around" in budget:
        around = {"class": around} if isinstance(around, str) else dict(around)
        usual = budget["around"]["class"]
        if around.get("class", usual) != usual:
            budget = {**budget, "around": _round(str(around["class"]), budgets)}
        spec = {**spec, "around": around}
    return merge(budget, spec)


def _round(name: str, budgets: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the attack ``name`` with its budget in a round of PPDG."""
    found = {"class": name, **budgets.get(name, {})}
    for steps in found.keys() & {"steps", "layer_steps"}:
        found[steps] = max(1, round(_ROUND_STEPS * found[steps]))
    if "pool" in found:
        found["pool"] = _ROUND_POOL
    if name == "plug-and-play":
        found |= {"halvings": 0, "learning_rate": 0.015}
    return found


def _white_box(plain: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return budgets of white-box attacks by Plug & Play's ``plain`` budget.

    Pixels need no prior; its part of a step's work goes into more steps. A reconstruction from the weights
    keeps as many, and its work is its own: it sends no image.
    """
    steps = plain["steps"]
    selection = {k: v for k, v in plain.items() if k not in ("pool", "steps")}
    samples = {**plain, "samples": plain["candidates"]}
    return {
        **dict.fromkeys(("gmi", "mirror", "lomma"), plain),
        "if-gmi": {
            **plain, "learning_rate": 0.02, "steps": round(0.4 * steps), "layers": 4,
            "layer_steps": round(0.15 * steps),
        },
        "plg-mi": {**plain, "transformations": 1},
        "ked-mi": {**samples, "learning_rate": 0.1},
        "vmi": {**samples, "learning_rate": 0.05},
        "mi-face": {**selection, "steps": 2 * steps, "learning_rate": 0.1},
        "weight-reconstruction": {"keep": plain["keep"]},
    }  # fmt: skip


def _black_box(
    plain: dict[str, Any], sizes: dict[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Return budgets of black-box attacks by Plug & Play's ``plain`` budget and their own ``sizes``.

    With images sent for each class: population x generations + candidates x crops for MIRROR,
    searches x (population x generations + crops) for CMA-ES, population x (1 + generations + crops)
    for C2FMI, episodes + candidates x crops for RLB-MI, searches x iterations x (points + 1) for BREP-MI.
    """
    pool, candidates, keep, crops = (plain[n] for n in ("pool", "candidates", "keep", "crops"))
    descent = 3 * candidates * plain["steps"]
    work = descent + candidates * crops
    generations = sizes.get("mirror-black-box", {}).get("generations", plain["steps"])
    searches = round(1.4 * keep)
    selected = {k: v for k, v in plain.items() if k not in ("pool", "candidates", "steps")}
    sampled = {**selected, "pool": pool}
    return {
        "mirror-black-box": {
            **sampled, "candidates": candidates, "population": descent // generations,
            "generations": generations,
        },
        "cma-es": {
            **sampled, "searches": searches,
            "generations": (work // searches - crops) // sizes["cma-es"]["population"],
        },
        "c2f-mi": {**sampled, "population": candidates, "generations": 3 * plain["steps"] - 1},
        "rlb-mi": {**selected, "candidates": candidates, "episodes": descent},
        "brep-mi": {
            "pool": pool, "keep": keep, "searches": keep,
            "iterations": round(work / (keep * (sizes["brep-mi"]["points"] + 1))),
        },
    }  # fmt: skip
