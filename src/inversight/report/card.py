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
from inversight.report.formatting import is_missing, mapping, visible
from inversight.report.reading import counts_of, counts_text
from inversight.report.templating import markdown_template, render_lines
from inversight.report.verdict import headline

METRICS = ("flagged", "leakage_gap", "control_gap", "ddcs_best", "covered", "coverage")
"""Measures on a card, in this order."""

_OPTIONAL = ("control_gap",)
"""Measures that are not listed as missing where a run has none."""

_ARGS = (
    "low", "high", "p_value", "count", "fdr", "smallest_possible", "not_judged", "private_images",
    "holdout_images", "reconstructions", "features", "k",
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
    ``name``, ``value`` and ``args``: low and high (a 95 % interval), counts, fdr, p_value, features.

    ``inversight`` holds the rest: ``version``, ``created``, ``seed``; ``model``; ``attacks`` (each
    name, access, budget); ``prior`` (kind, arm, budget); ``data`` (images and classes of private,
    holdout, public; ``source``; ``split``: what each is, in words); ``verdict`` (a sentence);
    ``embedding``, ``features``; ``not_computed`` (metric -> reason); ``warnings`` (how many);
    ``limits`` (sentences).
    """
    settings = mapping(manifest.get("settings"))
    data, model = _data(manifest), _model(manifest)
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
        key: _text(found[key].get("reason") or "not part of this run")
        for key in METRICS
        if key not in (*known, *_OPTIONAL)
    }
    index = ModelCardData(model_name=model, eval_results=results).to_dict()  # type: ignore[no-untyped-call]
    return {
        "model-index": index["model-index"],
        "inversight": {
            "version": _text(manifest.get("version")),
            "created": _text(manifest.get("created")),
            "seed": manifest.get("seed"),
            "model": model,
            "attacks": _attacks(manifest),
            "prior": _prior(manifest, settings),
            "data": data,
            "verdict": _text(headline(metrics).sentence),
            "embedding": _text(manifest.get("embedding")),
            "features": _text(manifest.get("features")),
            "not_computed": missing,
            "warnings": len(manifest.get("warnings") or ()),
            "limits": render_lines(
                "limits.txt",
                holdout=data["holdout"],
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


def _text(value: Any) -> str:
    return "" if value is None else visible(value)


def _args(found: Mapping[str, Any]) -> dict[str, Any]:
    values = {name: found[name] for name in _ARGS if not is_missing(found.get(name))}
    return {name: _text(v) if isinstance(v, str) else v for name, v in values.items()}


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
    return _code_name(str(target)) or "classifier from a file"


def _named_settings(spec: Any, default: str) -> tuple[str, Mapping[str, Any]]:
    """Return the name and the settings of a part: a name, or a mapping with its name as ``class``."""
    values = dict(spec) if isinstance(spec, Mapping) else {"class": spec}
    return str(values.pop("class", None) or default), values


def _attacks(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    if "against" in manifest:
        folders = len(manifest.get("reconstructions") or ())
        return [{"name": f"unknown: {folders} folder(s) given", "access": None, "budget": {}}]
    access = mapping(manifest.get("access"))
    specs = mapping(manifest.get("settings")).get("attack") or manifest.get("attacks") or ()
    found = []
    for spec in [specs] if isinstance(specs, (str, Mapping)) else specs:
        name, values = _named_settings(spec, "plug-and-play")
        known = access.get(name) or access.get(name.rpartition(":")[2])
        # Numbers only: other settings may name files.
        budget = {
            _text(key): value
            for key, value in values.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        }
        access_text = None if known is None else _text(known)
        found.append({"name": _text(name), "access": access_text, "budget": budget})
    return found


def _prior(manifest: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    if "against" in manifest or not settings:
        return {"kind": "", "arm": "", "budget": {}}
    name, values = _named_settings(settings.get("prior"), "style")
    kind = _code_name(name) or "existing one, from a file"
    if name == "style":
        kind = "style-based, trained on the public images"
    steps = {
        "steps": values.get("steps"),
        "adaptation_steps": mapping(settings.get("adaptation")).get("steps"),
    }
    budget: dict[str, Any] = {key: v for key, v in steps.items() if isinstance(v, int)}
    if manifest.get("preset"):
        budget["preset"] = _text(manifest["preset"])
    arm = _text(manifest.get("arm") or settings.get("arm"))
    return {"kind": _text(kind), "arm": arm, "budget": budget}


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
