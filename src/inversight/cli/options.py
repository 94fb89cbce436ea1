"""Options of the commands: those of the settings are made from their fields, the others stand here."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from inversight.core.config import (
    annotation_parts,
    check_name,
    choices,
    parse_assignment,
    settings_fields,
    unexplained_choices,
)
from inversight.core.errors import ConfigError
from inversight.settings import AuditSettings, lay
from inversight.settings.audit import input_size

F = TypeVar("F", bound=Callable[..., None])

MODEL = ("classes", "mean", "std", "size", "trust_target", "frozen_until")
"""Settings of a target, beside its name."""

SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any other setting, as in --set prior.steps=500; repeatable."),
]
Network = Annotated[
    Path | None, typer.Option(help="Public network that a run trained (RUN/stages/public-network).")
]


def setting_options(
    *names: str, required: Iterable[str] = (), unset: bool = False
) -> Callable[[F], F]:
    """Give a command the options of the fields ``names`` of the audit's settings.

    The command receives them as keyword arguments. An option has the default of its field; those in
    ``required`` have none. With ``unset`` all have None instead (a flag: False), so that the command can
    tell whether they were given.
    """

    def decorate(command: F) -> F:
        own = inspect.signature(command, eval_str=True).parameters.values()
        parameters = [_option(name, required=name in required, unset=unset) for name in names]
        parameters += [
            p.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for p in own
            if p.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        return command

    return decorate


def _option(name: str, *, required: bool, unset: bool) -> inspect.Parameter:
    """Return the parameter for one setting, with its type, its default and its help."""
    field = settings_fields(AuditSettings)[name]
    kinds = list(annotation_parts(field.annotation))
    order = (bool, Path, str, int, float) if tuple not in kinds else (bool, Path, int, float, str)
    kind: Any = next(k for k in order if k in kinds)
    default = field.get_default(call_default_factory=True)
    if required:
        default = inspect.Parameter.empty
    elif unset and kind is not bool:
        default = None
    flag, known, shown = f"--{name.replace('_', '-')}", choices(field), None
    text = " ".join((field.description or "").split()).partition(". ")[0].rstrip(".")
    if unexplained := unexplained_choices(field):
        text = f"{text}: {unexplained}"
    parser: Callable[[str], Any] | None = partial(check_name, flag, known=known) if known else None
    if tuple in kinds and kind is str:
        kind, text, shown = list[str], f"{text}; repeatable", "<str>"
    elif name == "size":
        kind, parser, shown = str, partial(_size, flag), "<N or HEIGHTxWIDTH>"
    elif tuple in kinds:
        kind, parser, shown = str, partial(_numbers, flag, kind), "<numbers>"
    option = typer.Option(flag, help=f"{text}.", parser=parser, metavar=shown)
    annotation: Any = Annotated[kind if default is not None else kind | None, option]
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )


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


def _size(flag: str, text: str) -> int | tuple[int, int]:
    """Return an input size, see :func:`inversight.settings.audit.input_size`.

    Raises:
        ConfigError: it is none.
    """
    try:
        return input_size(text)
    except ValueError as error:
        raise ConfigError(f"{flag} {text}: {error}") from None


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
