"""Every setting of an audit, and the presets that set all budgets together."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, NonNegativeInt, PositiveInt

from inversight.core.config import Choice, from_mapping, merge, nearest, settings
from inversight.core.errors import ConfigError
from inversight.settings.names import ARMS
from inversight.settings.stages import Adaptation, PriorTraining, Training, resolve_prior_training

Preset = Literal["quick", "standard", "thorough"]
Pictures = Literal["none", "blurred", "full"]

PairMeasure = Literal["psnr", "ssim", "dists"]
PAIR_MEASURES: tuple[PairMeasure, ...] = get_args(PairMeasure)

DEFAULT_FDR = 0.1
"""Accepted rate of false discoveries among flagged images."""

MiB = 1024**2


@settings
class AuditSettings:
    """All of an audit. Flags on the command line go before the file, the file before the preset."""

    private: Path | None = None
    """Folder of the target's training images, one subfolder for each class; none: the digits."""
    holdout: Path | None = None
    """Folder of images of the same classes that the target never saw."""
    public: Path | None = None
    """Folder of images that an attacker has; class subfolders are optional."""
    target: str | None = None
    """The model under audit: timm:NAME?weights=FILE, package.module:factory?weights=FILE, a folder
    or file that `inversight train` wrote, a TorchScript or torch.export file; none: train one."""
    evaluator: str | None = None
    """The independent classifier that judges reconstructions, named as a target is; none: train one."""
    classes: Path | None = None
    """File with the target's class names in the order of its outputs, one a line."""
    mean: tuple[float, ...] | None = None
    """The target's normalisation: mean for each channel of images in [0, 1]."""
    std: tuple[float, ...] | None = None
    """The target's normalisation: standard deviation for each channel of images in [0, 1]."""
    size: Annotated[int, Field(ge=8, le=1024)] | None = None
    """The target's input size; images are resized to it. None: the images' own size."""
    trust_target: bool = False
    """Load a TorchScript or torch.export file, which runs code that is inside it."""
    allow_overlap: bool = False
    """Go on although private, public or holdout share images, which invalidates the result."""
    preset: Preset = "quick"
    """Budget of all stages together: quick, standard or thorough."""
    seed: NonNegativeInt = 0
    """All randomness derives from it."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1, mps."""
    limit: PositiveInt | None = None
    """Audit the first so many classes only."""
    embedding: str = "lpips-vgg"
    """Distance that scores use: lpips-vgg, lpips-alex, lpips-squeeze, inception, pixel, public,
    evaluator or package.module:Class."""
    features: str = "inception"
    """Features of coverage, density, precision, recall and the Frechet distance; same values."""
    guidance_embedding: str = "lpips-vgg"
    """Metric of the natural gradient; same values, except evaluator: an attacker must have it."""
    arm: Annotated[str, Choice({arm.name: arm.meaning for arm in ARMS.values()})] = (
        "natural-gradient"
    )
    """What guides the prior when it is fine-tuned against the target."""
    attack: tuple[str | dict[str, Any], ...] = ("plug-and-play",)
    """Attacks to run: names, import paths, or mappings {class: ..., setting: value}."""
    budget: tuple[PositiveInt, ...] = ()
    """Numbers of queries: each attack is run again with no more than so many images sent to the target
    for all classes together, and budget.parquet says what that covers; white-box steps count too."""
    prior: str | dict[str, Any] = Field(default_factory=lambda: {"class": "style"})
    """The prior: {class: style, setting: value}; a folder or file that `inversight prior train`,
    `prior import` or `adapt` wrote; or one's own {class: package.module:Class, ...}."""
    working_size: Annotated[int, Field(ge=8, le=1024)] = 32
    """Largest size at which networks trained here work, the prior among them; reconstructions are as
    large as the prior's images."""
    target_training: Training = Field(default_factory=Training)
    """How the target is trained when none is given."""
    evaluator_training: Training = Field(default_factory=lambda: Training(architecture="vgg"))
    """How the evaluator is trained when none is given."""
    public_training: Training = Field(default_factory=Training)
    """How the public feature network is trained, where an embedding asks for it."""
    adaptation: Adaptation = Field(default_factory=Adaptation)
    """How the prior is fine-tuned against the target."""
    images: Pictures = "none"
    """Pictures in the report: none, blurred (both sides) or full."""
    hash_ids: bool = False
    """Replace file and class names by hashes in the ledger and the report."""
    memory: Annotated[int, Field(ge=16 * MiB)] = 2048 * MiB
    """Bytes that features and distances may take at once, beside the networks."""
    pairs: tuple[PairMeasure, ...] = ("psnr",)
    """Measures of each private image and its nearest reconstruction: psnr, ssim, dists (slower)."""
    fdr: Annotated[float, Field(gt=0.0, lt=1.0)] = DEFAULT_FDR
    """Accepted share of false alarms among the images that are flagged; needs a holdout."""
    fail_on: str | tuple[str, ...] | None = None
    """Exit with 3 if this, or any of several, holds of metrics.json, as in "coverage>0.2"."""


_BUDGETS: dict[Preset, dict[str, Any]] = {
    "quick": {
        "working_size": 32,
        "prior": {"steps": 2000},
        "adaptation": {"steps": 250},
        "attack": {"pool": 2000, "candidates": 30, "steps": 40, "keep": 10, "crops": 25},
    },
    "standard": {
        "working_size": 64,
        "prior": {"steps": 12000, "width": 48},
        "target_training": {"epochs": 100, "most_steps": 30000, "width": 24},
        "evaluator_training": {"epochs": 100, "most_steps": 30000, "width": 24},
        "public_training": {"epochs": 100, "most_steps": 30000, "width": 24},
        "adaptation": {"steps": 1500, "guided_images": 20},
        "attack": {"pool": 5000, "candidates": 100, "steps": 70, "keep": 25, "crops": 50},
    },
    "thorough": {
        "working_size": 256,
        "prior": {"steps": 60000, "width": 64},
        "target_training": {"epochs": 125, "most_steps": 200000, "width": 32},
        "evaluator_training": {"epochs": 125, "most_steps": 200000, "width": 32},
        "public_training": {"epochs": 125, "most_steps": 200000, "width": 32},
        "adaptation": {"steps": 6000},
        "attack": {"pool": 5000, "candidates": 200, "steps": 70, "keep": 50, "crops": 100},
    },
}

_BLACK_BOX: dict[Preset, dict[str, dict[str, Any]]] = {
    "quick": {
        "mirror-black-box": {
            "pool": 2000, "population": 90, "generations": 40, "candidates": 30, "keep": 10,
            "crops": 25,
        },
        "cma-es": {
            "pool": 2000, "searches": 15, "population": 12, "generations": 20, "keep": 10,
            "crops": 25,
        },
        "c2f-mi": {
            "pool": 2000, "population": 30, "generations": 119, "keep": 10, "crops": 25,
        },
        "rlb-mi": {
            "episodes": 3600, "at_once": 6, "hidden": 64, "training_batch": 64, "candidates": 30, "keep": 10,
            "crops": 25,
        },
        "brep-mi": {
            "pool": 2000, "searches": 10, "points": 12, "iterations": 33, "keep": 10,
        },
        "lokt": {"images": 6000, "surrogates": 2, "training": {"epochs": 10}},
    },
    "standard": {
        "mirror-black-box": {
            "pool": 5000, "population": 210, "generations": 100, "candidates": 100, "keep": 25,
            "crops": 50,
        },
        "cma-es": {
            "pool": 5000, "searches": 35, "population": 20, "generations": 35, "keep": 25,
            "crops": 50,
        },
        "c2f-mi": {
            "pool": 5000, "population": 100, "generations": 209, "keep": 25, "crops": 50,
        },
        "rlb-mi": {
            "episodes": 21000, "at_once": 4, "hidden": 128, "training_batch": 128,
            "candidates": 100, "keep": 25, "crops": 50,
        },
        "brep-mi": {
            "pool": 5000, "searches": 25, "points": 32, "iterations": 32, "keep": 25,
        },
        "lokt": {"images": 20000, "surrogates": 3, "training": {"epochs": 20}},
    },
    "thorough": {
        "mirror-black-box": {
            "pool": 5000, "population": 420, "generations": 100, "candidates": 200, "keep": 50,
            "crops": 100,
        },
        "cma-es": {
            "pool": 5000, "searches": 70, "population": 20, "generations": 40, "keep": 50,
            "crops": 100,
        },
        "c2f-mi": {
            "pool": 5000, "population": 200, "generations": 209, "keep": 50, "crops": 100,
        },
        "rlb-mi": {
            "episodes": 42000, "hidden": 256, "training_batch": 256, "candidates": 200, "keep": 50,
            "crops": 100,
        },
        "brep-mi": {
            "pool": 5000, "searches": 50, "points": 32, "iterations": 38, "keep": 50,
        },
        "lokt": {"images": 50000, "surrogates": 3, "training": {"epochs": 30}},
    },
}  # fmt: skip
"""As much work for a class as Plug & Play in the same preset, whose steps forward and back count as
three images each, and as many reconstructions; the agents and surrogates that some attacks train come on top.
LOKT's attack on its surrogates has Plug & Play's own budget."""

_FASTER: dict[str, Any] = {"halvings": 2, "half": True}
"""What makes Plug & Play faster at the same result (benchmarks/attacks.py)."""

_WHOLE_PRIOR: dict[str, Any] = {"truncation": 1.0}
"""Half truncated, as published, the pool of a small prior is too alike to cover many private images
(docs/attacks.md). The thorough preset, whose budget is the paper's, has the paper's truncation too."""

_LOMMA: dict[Preset, dict[str, Any]] = {
    "quick": {
        "images": 2000, "surrogates": 1, "training": {"epochs": 16, "batch_size": 32},
    },
    "standard": {"images": 10000, "surrogates": 3, "training": {"epochs": 15}},
    "thorough": {"images": 30000, "surrogates": 3, "training": {"epochs": 20}},
}  # fmt: skip
"""What LOMMA's surrogates get, on top of Plug & Play's own budget."""

_NO_FLIP: dict[str, Any] = {"flip": False, "rotation": 10.0}
_LONGER: dict[str, Any] = {"epochs": 200, "patience": 60, "batch_size": 32}
_DIGITS: dict[str, Any] = {
    "embedding": "public",
    "features": "public",
    "guidance_embedding": "public",
    "images": "full",
    "target_training": {**_NO_FLIP, **_LONGER},
    "evaluator_training": {**_NO_FLIP, **_LONGER},
    "public_training": {**_NO_FLIP, "epochs": 30, "batch_size": 64},
    "adaptation": {"pseudo_labels_mirror": False},
    "attack": {"crop_flip": False},
}
"""Mirrored digits are no digits; a hundred private images make few steps an epoch; and the images are
published, so that the report may show them."""

_DIGITS_QUICK: dict[str, Any] = {
    "prior": {"steps": 1500},
    "adaptation": {"steps": 300},
    "attack": {"pool": 5000, "candidates": 40, "steps": 50, "keep": 20, "crops": 30},
}
_DIGITS_BLACK_BOX: dict[str, dict[str, Any]] = {
    "mirror-black-box": {
        "pool": 5000, "population": 120, "generations": 50, "candidates": 40, "keep": 20, "crops": 30,
    },
    "cma-es": {
        "pool": 5000, "searches": 25, "population": 12, "generations": 20, "keep": 20, "crops": 30,
    },
    "c2f-mi": {
        "pool": 5000, "population": 40, "generations": 149, "keep": 20, "crops": 30,
    },
    "rlb-mi": {
        "episodes": 6000, "at_once": 6, "hidden": 64, "training_batch": 64, "candidates": 40,
        "keep": 20, "crops": 30,
    },
    "brep-mi": {
        "pool": 5000, "searches": 20, "points": 12, "iterations": 28, "keep": 20,
    },
    "lokt": {"images": 6000, "surrogates": 2, "training": {"epochs": 10}},
}  # fmt: skip
"""At 8x8 every step is cheap; these budgets keep the whole demonstration within two minutes."""


def resolve(given: dict[str, Any]) -> AuditSettings:
    """Settings from what was given, on top of the preset, on top of the defaults.

    Raises:
        ConfigError: an unknown name or a value out of range.
    """
    preset = given.get("preset", "quick")
    budget = _budget(preset)
    if given.get("private") is None:
        budget = merge(budget, _DIGITS)
        if preset == "quick":
            budget = merge(budget, _DIGITS_QUICK)
    white_box, black_box = budget.pop("attack"), _black_box(preset)
    if given.get("private") is None and preset == "quick":
        black_box |= _DIGITS_BLACK_BOX
    # At 8x8 there is nothing to gain.
    faster = preset != "quick" or given.get("private") is not None
    budgets = _attack_budgets(preset, white_box, black_box, _FASTER if faster else {})
    if given.get("private") is None:
        budgets = {name: _unmirrored(values) for name, values in budgets.items()}
    values = merge(merge({"prior": {"class": "style"}}, budget), given)
    values["attack"] = _attacks(values.get("attack"), budgets)
    if isinstance(values["prior"], dict) and values["prior"].get("class", "style") != "style":
        # One's own prior has its own settings; the preset's are the style-based prior's.
        values["prior"] = given["prior"]
    settings_ = from_mapping(AuditSettings, values)
    _check(settings_)
    return settings_


def stage_budget(preset: str, stage: Literal["adaptation"]) -> dict[str, Any]:
    """A preset's settings of one stage.

    Raises:
        ConfigError: no such preset.
    """
    return dict(_budget(preset)[stage])


def attack_budget(preset: str, name: str) -> dict[str, Any]:
    """A preset's settings of the attack called ``name``; empty for one's own.

    Raises:
        ConfigError: no such preset.
    """
    budgets = _attack_budgets(preset, _budget(preset)["attack"], _black_box(preset), _FASTER)
    return dict(budgets.get(name, {}))


def _budget(preset: Any) -> dict[str, Any]:
    if preset not in _BUDGETS:
        raise ConfigError(
            f"preset: expected one of {', '.join(_BUDGETS)}, found {preset!r}"
            f"{nearest(str(preset), _BUDGETS)}"
        )
    return dict(_BUDGETS[preset])


def _white_box(plain: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Budgets of the white-box attacks, with as many images forward and back as Plug & Play's ``plain``
    before its halvings.

    Where a paper takes far more steps, its step size is raised with them. Pixels need no prior, whose
    share of a step goes into more steps.
    """
    ends = {name: plain[name] for name in ("candidates", "keep", "crops")}
    sampled = {
        **ends, "pool": plain["pool"], "samples": plain["candidates"], "steps": plain["steps"],
    }  # fmt: skip
    return {
        "plug-and-play": plain,
        "gmi": plain,
        "mirror": plain,
        "lomma": plain,
        "if-gmi": {
            **plain,
            "learning_rate": 0.02,
            "steps": round(0.4 * plain["steps"]),
            "layers": 4,
            "layer_steps": round(0.15 * plain["steps"]),
        },
        "plg-mi": {**plain, "transformations": 1},
        "ked-mi": {**sampled, "learning_rate": 0.1},
        "vmi": {**sampled, "learning_rate": 0.05},
        "mi-face": {**ends, "steps": 2 * plain["steps"], "learning_rate": 0.1},
    }


def _black_box(preset: Any) -> dict[str, dict[str, Any]]:
    return dict(_BLACK_BOX[preset])


def _lomma(preset: Any) -> dict[str, Any]:
    return dict(_LOMMA[preset])


def _attack_budgets(
    preset: Any, white_box: dict[str, Any], black_box: dict[str, dict[str, Any]],
    faster: dict[str, Any],
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Each attack's budget by its name; what LOKT runs on its surrogates is Plug & Play."""
    plain = {**white_box, **faster, **({} if preset == "thorough" else _WHOLE_PRIOR)}
    budgets = {**_white_box(white_box), **black_box, "plug-and-play": plain}
    budgets["lokt"] = {**black_box["lokt"], "white_box": plain}
    budgets["lomma"] = {**budgets["lomma"], **_lomma(preset)}
    return budgets


def _unmirrored(budget: dict[str, Any]) -> dict[str, Any]:
    """An attack's budget that mirrors nothing, wherever it would mirror something."""
    parts = {k: _unmirrored(v) if isinstance(v, dict) else v for k, v in budget.items()}
    if "crops" in parts:
        parts["crop_flip"] = False
    if "epochs" in parts:
        parts["flip"] = False
    return parts


def prior_path(settings_: AuditSettings) -> Path | None:
    """Where a prior made before lies, or None if the audit trains one or the prior is a class."""
    spec = settings_.prior
    if not isinstance(spec, str) or spec == "style":
        return None
    return Path(spec) if ":" not in spec or Path(spec).exists() else None


def prior_training(settings_: AuditSettings) -> PriorTraining | None:
    """Settings of the style-based prior to be trained, or None if the prior is there already."""
    if isinstance(settings_.prior, str):
        return PriorTraining() if settings_.prior == "style" else None
    values = dict(settings_.prior)
    if values.pop("class", "style") != "style":
        return None
    return resolve_prior_training(values, size=settings_.working_size)


def _attacks(given: Any, budgets: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The preset's budget laid below each attack that has one; others keep their own defaults."""
    specs = [given] if isinstance(given, (str, dict)) else list(given or ["plug-and-play"])
    result = []
    for spec in specs:
        values = {"class": spec} if isinstance(spec, str) else dict(spec)
        name = values.setdefault("class", "plug-and-play")
        result.append({"class": name, **merge(budgets.get(str(name), {}), values)})
    return result


def _check(settings_: AuditSettings) -> None:
    if settings_.guidance_embedding == "evaluator":
        raise ConfigError(
            "guidance_embedding: evaluator has seen the private images, which an attacker has not; "
            "use public, pixel, lpips-vgg, lpips-alex or lpips-squeeze"
        )
    if settings_.private is not None and settings_.public is None:
        raise ConfigError(
            "--public is missing: give a folder of images of the same kind that an attacker could have"
        )
    if settings_.private is None:
        for name in ("holdout", "public", "target", "size"):
            if getattr(settings_, name) is not None:
                raise ConfigError(
                    f"--{name} needs --private as well: without --private the audit is of the "
                    "embedded digits"
                )
    for name in ("mean", "std"):
        value = getattr(settings_, name)
        if value is not None and len(value) not in (1, 3):
            raise ConfigError(f"--{name}: expected 1 or 3 numbers, found {len(value)}")
    if settings_.std is not None and min(settings_.std) <= 0:
        raise ConfigError("--std: expected numbers above 0")
