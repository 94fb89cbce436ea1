"""The results of an audit as part of a model card: Markdown for people, a mapping for machines.

A card is passed on with the model, so it holds figures over the whole set only: no name of an image,
a class, a folder or a file, whatever the run's settings of images and names are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from inversight.report import words
from inversight.report.attempts import attacks_of, named_settings, not_tried, text_of, training_of
from inversight.report.formatting import is_missing, mapping, visible
from inversight.report.reading import counts_of, counts_text
from inversight.report.templating import markdown_template, render_lines
from inversight.report.verdict import headline

METRICS = (
    "exposed", "exposure_mean", "flagged", "distance_gap", "leakage_gap", "control_gap", "ddcs_best",
    "covered", "coverage",
)  # fmt: skip
"""Measures on a card, in this order."""

_OPTIONAL = ("distance_gap", "control_gap")
"""Measures that are not listed as missing where a run has none."""

_ARGS = (
    "low", "high", "p_value", "count", "fdr", "smallest_possible", "not_judged", "private_images",
    "holdout_images", "explained", "reconstructions", "features", "k", "images", "models", "pairs",
    "detectable", "given_auc", "given_p_value", "caveat",
)  # fmt: skip
"""Facts of metrics.json to give with a value."""

_ACTIVE = re.compile(
    r"""(?<=www)\.|:(?=/)|[^a-z0-9 ,;%/=+'"?.:()\x80-\U0010ffff-]""", re.IGNORECASE
)
"""Characters that Markdown may interpret; some dialects turn www. and http:// into links."""

_ROLES = {
    "private": "that the model was trained on",
    "holdout": "of the same classes, never seen by the model",
    "public": "that an attacker has",
}


def model_card(
    manifest: Mapping[str, Any], metrics: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Return the card of a run as a mapping that JSON and YAML can hold.

    manifest: ``run.json``. metrics: ``metrics.json``. Any key of either may be missing.

    ``model-index`` is in the form of Hugging Face's model-card metadata: one model with one result,
    its ``task``, ``dataset`` and ``metrics``; each metric has ``type`` (the key of metrics.json),
    ``name``, ``value`` and ``args``: low and high (a 95 % interval), counts, fdr, p_value, features, caveat.

    ``inversight`` holds the rest: ``version``, ``created``, ``seed``; ``model``; ``access`` (what
    attackers get of it, "" if not known); ``attacks`` (each name, access, budget); ``not_tried``
    (kinds of access that no attack had); ``shadows`` (the shadow models: how many, sizes of training
    sets, prior, recipe; None without); ``differential_privacy``;
    ``prior`` (kind, arm, budget); ``data`` (images and classes of private, holdout, public;
    ``source``; ``split``: what each is, in words); ``verdict`` (a sentence);
    ``embedding``, ``features``; ``not_computed`` (metric -> reason); ``warnings`` (how many);
    ``limits`` (sentences).
    """
    settings = mapping(manifest.get("settings"))
    data, model, attacks = _data(manifest), _model(manifest), attacks_of(manifest)
    found = {key: mapping(metrics.get(key)) for key in METRICS}
    known = [key for key in METRICS if not is_missing(found[key].get("value"))]
    results = [
        EvalResult(
            task_type="image-classification",
            task_name="Model inversion of training images",
            dataset_type="private-training-images",
            dataset_name=data["source"],
            dataset_split="train",
            metric_type=key,
            metric_name=words.METRICS[key].name,
            metric_value=found[key]["value"],
            metric_args=_args(found[key]),
        )
        for key in known
    ]
    missing = {
        key: text_of(found[key].get("reason") or "not part of this run")
        for key in METRICS
        # A run of an earlier version knows nothing of exposure.
        if key not in (*known, *_OPTIONAL) and (key in metrics or key not in words.EXPOSURES)
    }
    index = ModelCardData(model_name=model, eval_results=results).to_dict()  # type: ignore[no-untyped-call]
    return {
        "model-index": index["model-index"],
        "inversight": {
            "version": text_of(manifest.get("version")),
            "created": text_of(manifest.get("created")),
            "seed": manifest.get("seed"),
            "model": model,
            "access": text_of(manifest.get("target_access")),
            "attacks": attacks,
            "not_tried": not_tried(attacks),
            "shadows": _shadows(manifest),
            "differential_privacy": training_of(manifest)["Differential privacy"],
            "prior": _prior(manifest, settings),
            "data": data,
            "verdict": text_of(headline(metrics).sentence),
            "embedding": text_of(manifest.get("embedding")),
            "features": text_of(manifest.get("features")),
            "not_computed": missing,
            "warnings": len(manifest.get("warnings") or ()),
            "limits": render_lines(
                "limits.txt",
                holdout=data["holdout"],
                exposure=not is_missing(found["exposure_mean"].get("value")),
                smallest_possible=found["flagged"].get("smallest_possible"),
                own_target="against" not in manifest and settings.get("target") is None,
            ),
        },
    }


def render_card(card: Mapping[str, Any]) -> str:
    """Return the card that :func:`model_card` made as Markdown in which every name is inert text."""
    audit = card["inversight"]
    seed = "" if audit["seed"] is None else f"seed {audit['seed']}"
    origin = [f"inversight {audit['version']}".strip(), audit["created"], seed]
    return markdown_template("card.md", escaped).render(
        audit=audit,
        origin=", ".join(filter(None, origin)),
        results=card["model-index"][0]["results"],
        words=words.METRICS,
    )


def escaped(text: Any) -> str:
    """Return ``text`` so that Markdown shows it unchanged in a line or a cell of a table.

    Whatever could begin a link, an image, code, emphasis, HTML, a mention or a new cell becomes a
    character reference, which Markdown only displays.
    """
    return _ACTIVE.sub(lambda match: f"&#{ord(match[0])};", visible(text))


def _args(found: Mapping[str, Any]) -> dict[str, Any]:
    values = {name: found[name] for name in _ARGS if not is_missing(found.get(name))}
    return {name: text_of(v) if isinstance(v, str) else v for name, v in values.items()}


def _code_name(spec: str) -> str:
    """Return the code that a spec names, as in 'timm:vgg16' or 'package.module:Net'; "" for a file."""
    name = spec.partition("?")[0]
    before, colon, after = name.partition(":")
    is_code = colon and all(p.isidentifier() for p in (*before.split("."), *after.split(".")))
    return name if is_code else ""


def _model(manifest: Mapping[str, Any]) -> str:
    if "against" in manifest:
        return "not named: existing reconstructions were scored"
    target = mapping(manifest.get("settings")).get("target")
    if target is None:
        return "small classifier that the audit trained itself"
    if str(target).startswith("endpoint:"):
        return "a service"
    return _code_name(str(target)) or "classifier from a file"


def _shadows(manifest: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the facts about the shadow models; of their recipe only code is named, never a file."""
    facts = mapping(manifest.get("shadows"))
    if not facts:
        return None
    numbers = ("models", "pairs", "train_images", "target_images", "accuracy_in", "accuracy_out")
    found: dict[str, Any] = {
        name: facts[name] for name in numbers if not is_missing(facts.get(name))
    }
    recipe = facts.get("recipe")
    own = recipe is None or str(recipe).startswith("the audit's own")
    found["recipe"] = "the audit's own" if own else _code_name(str(recipe)) or "named"
    return {**found, "prior": text_of(facts.get("prior"))}


def _prior(manifest: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    if "against" in manifest or not settings:
        return {"kind": "", "arm": "", "budget": {}}
    name, values = named_settings(settings.get("prior"), "style")
    kind = _code_name(name) or "existing one, from a file"
    if name == "style":
        kind = "style-based, trained on the public images"
    steps = {
        "steps": values.get("steps"),
        "adaptation_steps": mapping(settings.get("adaptation")).get("steps"),
    }
    budget: dict[str, Any] = {key: v for key, v in steps.items() if isinstance(v, int)}
    if manifest.get("preset"):
        budget["preset"] = text_of(manifest["preset"])
    arm = text_of(manifest.get("arm") or settings.get("arm"))
    return {"kind": text_of(kind), "arm": arm, "budget": budget}


def _data(manifest: Mapping[str, Any]) -> dict[str, Any]:
    inputs = mapping(manifest.get("inputs"))
    found: dict[str, Any] = {role: counts_of(inputs.get(role)) for role in _ROLES}
    embedded = mapping(inputs.get("private")).get("path") == "embedded digits"
    found["source"] = "handwritten digits of scikit-learn" if embedded else "own images"
    # The run's own description is not used: it names folders.
    found["split"] = _split(found)
    return found


def _split(counts: Mapping[str, dict[str, Any] | None]) -> str:
    parts = []
    for role, meaning in _ROLES.items():
        found = counts[role]
        if found is not None:
            classes = found["classes"] if role != "public" else None
            parts.append(f"{role}: {counts_text(found['images'], classes)} {meaning}")
    return "; ".join(parts if counts["holdout"] is not None else [*parts, "no holdout"])
