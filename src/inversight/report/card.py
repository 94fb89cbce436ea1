"""What an audit found, as a part of a model card: for people in Markdown, for machines as a mapping.

A card is passed on with the model, so it holds figures over the whole set only: no name of an image,
a class, a folder or a file, whatever the run's settings of pictures and names are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from inversight.report import words
from inversight.report.verdict import headline

METRICS = ("flagged", "leakage_gap", "control_gap", "ddcs_best", "covered", "coverage")
"""Measures that a card states, in this order."""

_INSTEAD = ("control_gap",)
"""Those that stand in where there is no holdout, and are not missed where there is one."""

_FACTS = (
    "low",
    "high",
    "p_value",
    "count",
    "fdr",
    "smallest_possible",
    "not_judged",
    "private_images",
    "holdout_images",
    "reconstructions",
    "features",
    "k",
)
"""What is told beside a value, where ``metrics.json`` has it."""

_ROLES = ("private", "holdout", "public")
_PLAIN = frozenset(" -,;%/=+'\"?.:()")
"""Signs that mean nothing to Markdown inside a line; see :func:`escaped` for two exceptions."""


def model_card(
    manifest: Mapping[str, Any], metrics: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """The card of a run as a mapping that JSON and YAML hold.

    manifest: ``run.json``. metrics: ``metrics.json``. Any key of either may be missing.

    ``model-index`` is in the form of Hugging Face's model-card metadata: one model with one result,
    its ``task``, ``dataset`` and ``metrics``; each metric has ``type`` (the key of metrics.json),
    ``name``, ``value`` and ``args``: low and high (a 95 % interval), counts, fdr, p_value, features.

    ``inversight`` holds the rest: ``version``, ``created``, ``seed``; ``model``; ``attacks`` (each
    name, access, budget); ``prior`` (kind, arm, budget); ``data`` (images and classes of private,
    holdout, public; ``source``; ``split``: what each is, in words); ``verdict`` (a sentence);
    ``embedding``, ``features``;
    ``not_computed`` (metric -> reason); ``warnings`` (how many); ``limits`` (sentences).
    """
    settings = _mapping(manifest.get("settings"))
    data = _data(manifest)
    model = _model(manifest)
    listed, missing = _results(metrics)
    return {
        "model-index": [
            {
                "name": model,
                "results": [
                    {
                        "task": {
                            "type": "image-classification",
                            "name": "Model inversion of training images",
                        },
                        "dataset": {
                            "type": "private-training-images",
                            "name": data["source"],
                            "split": "train",
                        },
                        "metrics": listed,
                    }
                ],
            }
        ],
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
            "limits": _limits(manifest, metrics, data),
        },
    }


def render_card(card: Mapping[str, Any]) -> str:
    """The card as a section of Markdown, every name in it inert text.

    card: what :func:`model_card` gave.
    """
    own = card["inversight"]
    result = card["model-index"][0]["results"][0]
    lines = ["## Model inversion audit", ""]
    made = [
        f"inversight {escaped(own['version'])}" if own["version"] else "inversight",
        escaped(own["created"]) if own["created"] else "",
        f"seed {escaped(str(own['seed']))}" if own["seed"] is not None else "",
    ]
    lines += [f"{', '.join(filter(None, made))}.", "", escaped(own["verdict"]), ""]
    lines += ["| Audit | |", "|---|---|"]
    lines += [f"| {name} | {escaped(text)} |" for name, text in _described(own)]
    lines += ["", "| Measure | Value | 95 % interval | Worse if | What it means |"]
    lines += ["|---|---|---|---|---|"]
    for metric in result["metrics"]:
        lines.append(_row(metric))
    for key, reason in own["not_computed"].items():
        name = words.metric(key).name
        lines.append(f"| {name} | not computed | | | {escaped(reason)} |")
    lines += ["", "Limits:", ""]
    lines += [f"- {escaped(limit)}" for limit in own["limits"]]
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """``text`` so that Markdown shows it as it is, in a line or a cell of a table.

    Whatever could begin a link, an image, code, emphasis, HTML, a mention or a new cell becomes a
    character reference, which Markdown only ever shows.
    """
    out = []
    shown = words.visible(text)
    for i, c in enumerate(shown):
        # A bare address becomes a link in some dialects: www. and http://.
        address = (c == "." and shown[max(0, i - 3) : i].lower() == "www") or (
            c == ":" and shown[i + 1 : i + 2] == "/"
        )
        plain = (c.isalnum() or c in _PLAIN or not c.isascii()) and not address
        out.append(c if plain else f"&#{ord(c)};")
    return "".join(out)


def _row(metric: Mapping[str, Any]) -> str:
    args = metric["args"]
    bounded = "low" in args and "high" in args
    interval = f"{words.number(args['low'])} to {words.number(args['high'])}" if bounded else "none"
    value = words.number(metric["value"])
    word = words.metric(metric["type"])
    notes = []
    if "count" in args and "private_images" in args:
        value += f" ({args['count']} of {args['private_images']} images)"
    if "fdr" in args:
        notes.append(f"fdr {words.number(args['fdr'])}")
    if "p_value" in args:
        notes.append(f"p value {words.number(args['p_value'])}")
    if "features" in args:
        notes.append(f"on features {args['features']}")
    note = f" ({'; '.join(notes)})" if notes else ""
    return (
        f"| {word.name} | {escaped(value)} | {escaped(interval)} | {word.worse} | "
        f"{escaped(word.meaning + note)} |"
    )


def _described(own: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was audited and how, by name, in words that are not escaped yet."""
    attacks = [
        f"{a['name']} (access: {a['access'] or 'unknown'}{_budget_words(a['budget'])})"
        for a in own["attacks"]
    ]
    prior, data = own["prior"], own["data"]
    parts = [
        ("Model", own["model"]),
        ("Attacks", "; ".join(attacks) or "unknown"),
        (
            "Prior",
            f"{prior['kind']}, adaptation {prior['arm'] or 'unknown'}"
            + _budget_words(prior["budget"])
            if prior["kind"]
            else "",
        ),
        ("Data", f"{data['source']}; {data['split']}"),
        ("Distance", own["embedding"]),
        ("Features", own["features"]),
        (
            "Warnings",
            f"{own['warnings']}; the run's report has them" if own["warnings"] else "none",
        ),
    ]
    return [(name, text) for name, text in parts if text]


def _budget_words(budget: Mapping[str, Any]) -> str:
    return "".join(f", {name.replace('_', ' ')} {value}" for name, value in budget.items())


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _text(value: Any) -> str:
    return "" if value is None else words.visible(str(value))


def _numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are numbers: others may name files."""
    return {
        _text(name): value
        for name, value in values.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def _code_name(spec: str) -> str:
    """What a specification names, if that is code and no file: 'timm:vgg16', 'package.module:Net'."""
    name = spec.partition("?")[0]
    before, colon, after = name.partition(":")
    is_code = colon and all(p.isidentifier() for p in (*before.split("."), *after.split(".")))
    return name if is_code else ""


def _model(manifest: Mapping[str, Any]) -> str:
    if "against" in manifest:
        return "not named: reconstructions that were given were scored"
    given = _mapping(manifest.get("settings")).get("target")
    if given is None:
        return "small classifier that the audit trained itself"
    return _code_name(str(given)) or "classifier from a file"


def _attacks(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    if "against" in manifest:
        folders = len(manifest.get("reconstructions") or ())
        return [{"name": f"unknown: {folders} folder(s) given", "access": None, "budget": {}}]
    access = _mapping(manifest.get("access"))
    specs = _mapping(manifest.get("settings")).get("attack") or manifest.get("attacks") or ()
    found = []
    for spec in [specs] if isinstance(specs, (str, Mapping)) else specs:
        values = dict(spec) if isinstance(spec, Mapping) else {"class": spec}
        name = str(values.pop("class", "plug-and-play"))
        known = access.get(name) or access.get(name.rpartition(":")[2])
        found.append(
            {
                "name": _text(name),
                "access": None if known is None else _text(known),
                "budget": _numbers(values),
            }
        )
    return found


def _prior(manifest: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    if "against" in manifest or not settings:
        return {"kind": "", "arm": "", "budget": {}}
    given = settings.get("prior")
    values = dict(given) if isinstance(given, Mapping) else {"class": given}
    name = str(values.pop("class", None) or "style")
    if name == "style":
        kind = "style-based, trained on the public images"
    else:
        kind = _code_name(name) or "made before, from a file"
    adaptation = _mapping(settings.get("adaptation"))
    budget = {}
    if isinstance(values.get("steps"), int):
        budget["steps"] = values["steps"]
    if isinstance(adaptation.get("steps"), int):
        budget["adaptation_steps"] = adaptation["steps"]
    preset = _text(manifest.get("preset"))
    if preset:
        budget["preset"] = preset
    return {
        "kind": _text(kind),
        "arm": _text(manifest.get("arm") or settings.get("arm")),
        "budget": budget,
    }


def _data(manifest: Mapping[str, Any]) -> dict[str, Any]:
    inputs = _mapping(manifest.get("inputs"))
    found: dict[str, Any] = {}
    for role in _ROLES:
        facts = inputs.get(role)
        if not isinstance(facts, Mapping) or facts.get("images") is None:
            found[role] = None
            continue
        classes = facts.get("classes")
        count = len(classes) if isinstance(classes, (list, tuple)) else classes
        found[role] = {"images": facts["images"], "classes": count}
    embedded = _mapping(inputs.get("private")).get("path") == "embedded digits"
    found["source"] = "handwritten digits of scikit-learn" if embedded else "own images"
    # Not the run's own words, which name folders.
    found["split"] = _split(found)
    return found


def _split(counts: Mapping[str, Any]) -> str:
    meanings = {
        "private": "that the model was trained on",
        "holdout": "of the same classes, never seen by the model",
        "public": "that an attacker has",
    }
    parts = []
    for role, meaning in meanings.items():
        if counts[role] is None:
            continue
        classes = counts[role]["classes"] if role != "public" else None
        of = f" of {classes} classes" if classes else ""
        parts.append(f"{role}: {counts[role]['images']} images{of} {meaning}")
    if counts["holdout"] is None:
        parts.append("no holdout")
    return "; ".join(parts)


def _results(
    metrics: Mapping[str, Mapping[str, Any]],
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The measures that have a value, and why the others have none."""
    listed, missing = [], {}
    for key in METRICS:
        found = metrics.get(key)
        if found is None or words.is_missing(found.get("value")):
            if key in _INSTEAD:
                continue
            reason = None if found is None else found.get("reason")
            missing[key] = _text(reason or "not part of this run")
            continue
        args = {
            name: _text(found[name]) if isinstance(found[name], str) else found[name]
            for name in _FACTS
            if not words.is_missing(found.get(name))
        }
        listed.append(
            {"type": key, "name": words.metric(key).name, "value": found["value"], "args": args}
        )
    return listed, missing


def _limits(
    manifest: Mapping[str, Any],
    metrics: Mapping[str, Mapping[str, Any]],
    data: Mapping[str, Any],
) -> list[str]:
    found = [
        "An image that was not recovered was not shown to be safe: absence of evidence is all that an "
        "audit without a finding gives.",
        "The figures hold for these attacks, with this access, prior, budget and seed. Another attack "
        "or a larger budget can recover more, so what was found is a lower bound of what leaks.",
        "Near is near in the distance named here. Membership, attributes and texts are other leaks, "
        "which were not looked for.",
    ]
    if data["holdout"] is None:
        found.append(
            "There was no holdout: how near reconstructions come by resemblance alone is not known, so "
            "DDCS, covered and coverage do not measure leakage by themselves."
        )
    least = _mapping(metrics.get("flagged")).get("smallest_possible")
    if least is not None:
        found.append(
            "Flags need many images at once or a large holdout: here none is flagged unless "
            f"{least} or more stand out together."
        )
    if "against" not in manifest and _mapping(manifest.get("settings")).get("target") is None:
        found.append(
            "The classifier was trained by the audit itself; of another model this says nothing."
        )
    return found
