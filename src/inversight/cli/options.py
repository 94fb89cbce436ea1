"""Options of the commands: those of the settings are made from their fields, the others stand here."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from inversight.core.config import (
    IMPORT_PATH,
    annotation_parts,
    choices,
    first_sentence,
    nearest,
    parse_assignment,
    read_yaml,
    settings_fields,
    unexplained_choices,
)
from inversight.core.errors import ConfigError
from inversight.settings import AuditSettings, lay

F = TypeVar("F", bound=Callable[..., None])

MODEL = ("classes", "mean", "std", "size", "trust_target")
"""Settings of a target, beside its name."""

Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any other setting, as in --set prior.steps=500; repeatable."),
]
Target = Annotated[str, typer.Option(help="The target, named as for audit.")]
Prior = Annotated[
    Path, typer.Option(help="What `inversight prior train`, `prior import` or `adapt` wrote.")
]
Network = Annotated[
    Path | None,
    typer.Option(help="Public network that a run trained (RUN/stages/public-network)."),
]
Watched = Annotated[
    str,
    typer.Option(
        help="Features of the Frechet distance that is reported during training: public (trains a "
        "small network on the public images first), inception, pixel, package.module:Class, or none."
    ),
]


def setting_options(
    *names: str, required: Iterable[str] = (), unset: Iterable[str] = ()
) -> Callable[[F], F]:
    """Give a command the options of the fields ``names`` of the audit's settings.

    The command receives them as keyword arguments. An option has the default of its field; those in
    ``required`` have none, and those in ``unset`` have None (a flag: False), so that the command can tell
    whether they were given.
    """

    def decorate(command: F) -> F:
        own = inspect.signature(command, eval_str=True).parameters.values()
        parameters = []
        for name in names:
            kind, option, default = _option(name)
            if name in required:
                default = inspect.Parameter.empty
            elif name in unset and kind is not bool:
                default = None
            kind = kind if default is not None else kind | None
            annotation: Any = Annotated[kind, option]
            parameters.append(
                inspect.Parameter(
                    name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
                )
            )
        parameters += [p for p in own if p.kind is not inspect.Parameter.VAR_KEYWORD]
        keywords = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
        command.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in keywords}
        return command

    return decorate


def _option(name: str) -> tuple[Any, Any, Any]:
    """Return an option's type, typer's description of it, and its default."""
    field = settings_fields(AuditSettings)[name]
    kinds = list(annotation_parts(field.annotation))
    kind: Any = next(k for k in (bool, Path, int, float, str) if k in kinds)
    flag = f"--{name.replace('_', '-')}"
    text = first_sentence(field).rstrip(".")
    known, shown = choices(field), None
    parser: Callable[[str], Any] | None = None
    if unexplained_choices(field):
        text = f"{text}: {', '.join(known)}"
    if known:
        parser = partial(_one_of, flag, known)
    if tuple in kinds and kind is str:
        kind, text, shown = list[str], f"{text}; repeatable", "<str>"
    elif tuple in kinds:
        kind, parser, shown = str, partial(_numbers, flag, kind), "<numbers>"
    option = typer.Option(flag, help=f"{text}.", parser=parser, metavar=shown)
    return kind, option, field.get_default(call_default_factory=True)


def _one_of(flag: str, known: tuple[str, ...], text: str) -> str:
    """Return ``text`` if it is one of the names, or an import path where that is allowed.

    Raises:
        ConfigError: it is neither.
    """
    if text not in known and not (IMPORT_PATH in known and ":" in text):
        raise ConfigError(
            f"{flag} {text}: expected one of {', '.join(known)}{nearest(text, known)}"
        )
    return text


def _numbers(flag: str, kind: type, text: str) -> tuple[Any, ...]:
    """Return the numbers that stand with commas between them.

    Raises:
        ConfigError: something else stands there.
    """
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise ConfigError(f"{flag} {text}: expected {what} with commas between them") from None


def given(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that were given, lists as tuples."""
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in options.items()
        if value is not None and value is not False  # 0 is a value
    }


def assigned(assignments: list[str] | None) -> dict[str, Any]:
    """Return the settings that ``--set`` options assign.

    Raises:
        ConfigError: one is not NAME=VALUE.
    """
    values: dict[str, Any] = {}
    for text in assignments or ():
        values = lay(values, parse_assignment(text))
    return values


def audit_settings(
    options: Mapping[str, Any], config: Path | None, assignments: list[str] | None
) -> dict[str, Any]:
    """Return what was given for an audit: options over assignments over the file.

    Raises:
        ConfigError: the file or an assignment cannot be read, or they contradict each other.
    """
    values = read_yaml(config) if config is not None else {}
    return lay(lay(values, assigned(assignments)), given(options))


def model_spec(target: str, options: dict[str, Any], **more: Any) -> Any:
    """Return the :class:`inversight.models.spec.ModelSpec` of a target, taking MODEL from ``options``."""
    from inversight.models.spec import ModelSpec

    values = {name: options.pop(name) for name in MODEL}
    return ModelSpec(target, trust=values.pop("trust_target"), **values, **more)


def refuse_given(options: Mapping[str, Any], reason: str) -> None:
    """Refuse options that would be ignored.

    Raises:
        ConfigError: an option was given; names it, with the ``reason``.
    """
    name = next(iter(given(options)), None)
    if name is not None:
        raise ConfigError(f"{reason}; leave --{name.replace('_', '-')} out")
