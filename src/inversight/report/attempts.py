"""What an audit tried, and what it did not: access, attacks and budgets, recipe and privacy of training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from inversight.report.formatting import is_missing, mapping, number, visible
from inversight.report.reading import flatten

ACCESSES = {
    "white-box": "the weights of the model",
    "scores": "a score for each class",
    "label": "the predicted class alone",
}
"""What an attacker may have of the model, the most first."""

NEW_AUDIT = (
    "The model is trained again or fine-tuned, or its recipe changes: data, architecture, duration, "
    "augmentation, privacy of training",
    "Images are added to the training set, or removed because a person asked for it",
    "More of the model becomes accessible: scores where there were labels, or its weights",
    "Attackers have better public images or a better prior than this audit, or a stronger attack is known",
)
"""What calls for a new audit."""

_PRIVACY = ("epsilon", "delta", "noise_multiplier", "clip")
"""Parameters of differentially private training, as defences name them."""
_RECIPE = (
    "architecture",
    "epochs",
    "optimiser",
    "learning_rate",
    "weight_decay",
    "loss",
    "validation",
)
"""Settings of training that are listed as the recipe where the audit trained the target."""


def text_of(value: Any) -> str:
    """Return a value as visible text, "" for None."""
    return "" if value is None else visible(value)


def named_settings(spec: Any, default: str) -> tuple[str, Mapping[str, Any]]:
    """Return the name and the settings of a part: a name, or a mapping with its name as ``class``."""
    values = dict(spec) if isinstance(spec, Mapping) else {"class": spec}
    return str(values.pop("class", None) or default), values


def attacks_of(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return name, access (None if it is not known) and budget (its numbers by name) of each attack."""
    if "against" in manifest:
        folders = len(manifest.get("reconstructions") or ())
        return [{"name": f"unknown: {folders} folder(s) given", "access": None, "budget": {}}]
    access = mapping(manifest.get("access"))
    specs = mapping(manifest.get("settings")).get("attack") or manifest.get("attacks") or ()
    found = []
    for spec in [specs] if isinstance(specs, (str, Mapping)) else specs:
        name, values = named_settings(spec, "plug-and-play")
        known = access.get(name) or access.get(name.rpartition(":")[2])
        # Numbers only: other settings may name files.
        budget = {
            text_of(key): value
            for key, value in values.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        }
        access_text = None if known is None else text_of(known)
        found.append({"name": text_of(name), "access": access_text, "budget": budget})
    return found


def not_tried(attacks: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the kinds of access that no attack had; [] where the access of one, or any, is not known."""
    known = {attack["access"] for attack in attacks}
    if not known or not known <= set(ACCESSES):
        return []
    return [name for name in ACCESSES if name not in known]


def attempts(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows access, meaning, attack and budget in words, the most access first.

    attack is "" for an access that no attack had.
    """
    attacks = attacks_of(manifest)
    queries = mapping(manifest.get("queries"))
    limits = mapping(manifest.get("settings")).get("budget") or ()
    rows = []
    for one in attacks:
        parts = [f"{name.replace('_', ' ')} {number(v)}" for name, v in one["budget"].items()]
        sent = queries.get(one["name"], queries.get(one["name"].rpartition(":")[2]))
        if not is_missing(sent):
            parts.append(f"{sent:,} images sent to the target")
        if limits:
            parts.append(f"again within {' and '.join(f'{n:,}' for n in limits)} images sent")
        rows.append(
            {
                "access": one["access"] or "unknown",
                "attack": one["name"],
                "budget": ", ".join(parts),
            }
        )
    rows += [{"access": name, "attack": "", "budget": ""} for name in not_tried(attacks)]
    order = [*ACCESSES, "unknown"]
    rows.sort(key=lambda row: order.index(row["access"]) if row["access"] in order else len(order))
    return [{**row, "meaning": ACCESSES.get(row["access"], "")} for row in rows]


def training_of(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return what is known of how the target was trained: its recipe and its differential privacy."""
    settings, shadows = (mapping(manifest.get(name)) for name in ("settings", "shadows"))
    recipe = "not known: the target was given"
    if "against" in manifest:
        recipe = "not known: existing reconstructions were scored"
    elif settings.get("target") is None:
        values = mapping(settings.get("target_training"))
        parts = [f"{k.replace('_', ' ')} {number(values[k])}" for k in _RECIPE if k in values]
        recipe = ", ".join(["trained by this audit", *map(visible, parts)])
    elif shadows.get("recipe"):
        recipe = (
            f"of the shadow models: {visible(shadows['recipe'])}; whether the given target was trained "
            "by it is not known"
        )
    facts = flatten(dict(mapping(manifest.get("target"))), "target")
    private = {
        key.rpartition(".")[2]: value
        for key, value in facts.items()
        if key.rpartition(".")[2] in _PRIVACY and not is_missing(value)
    }
    parts = [
        f"{name.replace('_', ' ')} {number(private[name])}" for name in _PRIVACY if name in private
    ]
    return {
        "Recipe": recipe,
        "Differential privacy": visible(", ".join(parts)) or "none that this run knows of",
    }
