"""Settings as frozen dataclasses whose fields document and validate themselves.

``@settings`` makes a class a frozen, keyword-only pydantic dataclass: the docstring under each field
is its printed meaning, its type validates it, and unknown names are refused. The functions below
turn plain mappings (a YAML file, options) into such classes and back. Errors take one line.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, dataclass_transform, get_args, get_origin

import yaml
from pydantic import ConfigDict, Field, GetCoreSchemaHandler, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, PydanticKnownError, to_jsonable_python
from pydantic_core.core_schema import no_info_after_validator_function

from inversight.core.errors import ConfigError, one_line

T = TypeVar("T")

IMPORT_PATH = "package.module:Class"
"""How an import path looks, in help texts and messages."""

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
"""A number in [0, 1]."""

_CONFIG = ConfigDict(
    extra="forbid",
    use_attribute_docstrings=True,
    arbitrary_types_allowed=True,
    validate_default=True,
)


@dataclass_transform(frozen_default=True, kw_only_default=True)
def settings(cls: type[T]) -> type[T]:
    """Make ``cls`` a frozen, keyword-only dataclass that validates its fields and documents them."""
    wrapped: Any = pydantic_dataclass(config=_CONFIG, frozen=True, kw_only=True)(cls)
    for base in wrapped.__mro__[1:]:
        for name, field in settings_fields(base).items():
            # pydantic reads docstrings below the class's own fields alone, not the inherited ones.
            own = wrapped.__pydantic_fields__[name]
            own.description = own.description or field.description
    return wrapped  # type: ignore[no-any-return]


def nearest(word: str, known: Iterable[str]) -> str:
    """Return '; did you mean X?' for the known word most similar to ``word``, or an empty string."""
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {found[0]}?" if found else ""


def is_known(name: str, known: Collection[str]) -> bool:
    """Return whether ``name`` is one of ``known``, in which IMPORT_PATH stands for any import path."""
    return name in known or (IMPORT_PATH in known and ":" in name)


def check_name(role: str, name: str, known: Collection[str]) -> str:
    """Return ``name``, which is one of ``known`` as in :func:`is_known`.

    Raises:
        ConfigError: it is not; the message begins with ``role``, such as "--attack".
    """
    if is_known(name, known):
        return name
    expected = f"expected one of {', '.join(known)}{nearest(name, known)}"
    raise ConfigError(f"{role} {name or repr(name)}: {expected}")


@dataclass(frozen=True)
class Choice:
    """Annotates a setting that takes one or more of ``names``; help texts and --print-config list them.

    ``names`` maps each to its meaning, which may be empty; IMPORT_PATH among them stands for any import
    path ``package.module:Class``.
    """

    names: Mapping[str, str]

    def check(self, value: Any) -> Any:
        """Return ``value``; a string in it that is none of the names is a validation error."""
        for name in value if isinstance(value, tuple) else (value,):
            if isinstance(name, str) and not is_known(name, self.names):
                raise PydanticKnownError("literal_error", {"expected": repr(tuple(self.names))})
        return value

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return no_info_after_validator_function(self.check, handler(source))


def is_settings(kind: Any) -> bool:
    """Return whether a class, or an object's class, is a settings class."""
    return hasattr(kind, "__pydantic_fields__")


def settings_fields(cls: Any) -> dict[str, FieldInfo]:
    """Return pydantic's description of each field of a settings class; none for another class."""
    return dict(getattr(cls, "__pydantic_fields__", {}))


def choices(field: FieldInfo) -> tuple[str, ...]:
    """Return the names that a field may take, by its Choice or its Literal; none if it takes others."""
    for extra in field.metadata:
        if isinstance(extra, Choice):
            return tuple(extra.names)
    literals = [p for p in annotation_parts(field.annotation) if get_origin(p) is Literal]
    return tuple(name for literal in literals for name in get_args(literal))


def unexplained_choices(field: FieldInfo) -> str:
    """Return the field's choices with commas between them, "" if its docstring names them all."""
    known = choices(field)
    return "" if all(name in (field.description or "") for name in known) else ", ".join(known)


def annotation_parts(annotation: Any) -> Iterator[Any]:
    """Yield everything that an annotation is made of: origins, arguments, and the types of literals."""
    yield from (annotation, get_origin(annotation), type(annotation))
    for part in get_args(annotation):
        yield from annotation_parts(part)


def from_mapping(cls: type[T], values: Mapping[str, Any], *, where: str = "") -> T:
    """Make settings of class ``cls`` from plain values.

    A nested setting that is given as a mapping changes the field's default, key by key.

    Raises:
        ConfigError: an unknown name or a wrong value; the message has its dotted name and the most
            similar known name.
    """
    try:
        # Validated through the adapter, so that nested settings report their dotted path.
        return TypeAdapter(cls).validate_python(_on_defaults(cls, values))
    except ValidationError as error:
        raise ConfigError(_one_line(cls, error, where)) from None


def _on_defaults(cls: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``values`` with nested mappings laid on top of the defaults of their fields."""
    filled = dict(values)
    for name, field in settings_fields(cls).items():
        default = field.get_default(call_default_factory=True)
        if isinstance(filled.get(name), Mapping) and is_settings(default):
            filled[name] = merge(to_mapping(default), filled[name])
    return filled


def to_mapping(value: Any) -> Any:
    """Return nested settings as mappings, lists and scalars that YAML and JSON can hold.

    Anything else, such as an object of a user's own class, becomes its text.
    """
    return to_jsonable_python(value, fallback=str)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` updated by ``over``, with mappings merged key by key."""
    merged = {**base, **over}
    for key, below in base.items():
        if isinstance(below, Mapping) and isinstance(merged[key], Mapping):
            merged[key] = merge(below, merged[key])
    return merged


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the settings in a configuration file.

    Raises:
        ConfigError: missing, not YAML, or not a mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config {path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"--config {path}: not a YAML file ({reason})") from None
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(k, str) for k in values):
        raise ConfigError(
            f"--config {path}: expected 'name: value' lines, as --print-config prints"
        )
    return values


def parse_assignment(text: str) -> dict[str, Any]:
    """Return a nested mapping: 'prior.steps=500' is {'prior': {'steps': 500}}; the value is YAML.

    Raises:
        ConfigError: not NAME=VALUE, or the value is not YAML.
    """
    name, separator, value = text.partition("=")
    if not separator or not name.strip():
        raise ConfigError(f"--set {text}: expected NAME=VALUE, as in --set prior.steps=500")
    try:
        parsed: Any = yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError(f"--set {text}: the value is not readable as YAML") from None
    *outer, last = name.strip().split(".")
    return reduce(lambda inner, key: {key: inner}, reversed(outer), {last: parsed})


def import_object(path: str, *, role: str) -> Any:
    """Import the object that 'package.module:name' names; the current folder is searched too.

    Raises:
        ConfigError: no such module or name, or importing it failed.
    """
    module_name, _, attribute = path.partition(":")
    if not module_name or not attribute:
        raise ConfigError(f"{role} {path}: expected package.module:Name")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a script may read the command line, and exit
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise ConfigError(f"{role} {path}: importing {module_name} failed ({reason})") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ConfigError(
                f"{role} {path}: {module_name} has no {attribute}{nearest(part, dir(found))}"
            )
        found = getattr(found, part)
    return found


@dataclass(frozen=True)
class Part:
    """A part by its name, with all of its settings: a settings object, or a mapping for other classes."""

    name: str
    cls: Any
    settings: Any


def part(spec: str | Mapping[str, Any], known: Mapping[str, str], *, role: str) -> Part:
    """Return the part that ``spec`` names, with defaults filled in but without making it.

    ``spec`` is ``name`` or ``{"class": name, **settings}``; name is a key of ``known``, a table of import
    paths, or an import path ``package.module:Class``.

    Raises:
        ConfigError: unknown name, unknown setting, or value out of range.
    """
    values = {"class": spec} if isinstance(spec, str) else dict(spec)
    name = values.pop("class", None)
    if not isinstance(name, str):
        raise ConfigError(f"{role}: expected a 'class' that names one of {', '.join(known)}")
    check_name(role, name, (*known, IMPORT_PATH))
    cls = import_object(known.get(name, name), role=role)
    found = from_mapping(cls, values, where=f"{role} {name}: ") if is_settings(cls) else values
    return Part(name, cls, found)


def build(spec: str | Mapping[str, Any], known: Mapping[str, str], *, role: str) -> Any:
    """Make the part that ``spec`` names, as in :func:`part`.

    A plain class gets the settings as keyword arguments.

    Raises:
        ConfigError: as in :func:`part`, or the class refused the settings.
    """
    found = part(spec, known, role=role)
    if is_settings(found.cls):
        return found.settings
    try:
        return found.cls(**found.settings)
    except Exception as error:
        raise ConfigError(f"{role} {found.name}: could not be built ({one_line(error)})") from error


def documented_yaml(value: Any, parts: Mapping[str, Part | list[Part]] | None = None) -> str:
    """Return settings as YAML in which a comment above each line says what it means.

    ``parts`` are printed with their own settings in place of the fields of these names.
    """
    return "\n".join(_documented_lines(value, parts or {}))


def _documented_lines(value: Any, parts: Mapping[str, Part | list[Part]]) -> list[str]:
    lines: list[str] = []
    for name, field in settings_fields(type(value)).items():
        lines += [f"# {line}" for line in inspect.cleandoc(field.description or "").splitlines()]
        lines += _choice_lines(field)
        current = parts.get(name, getattr(value, name))
        if isinstance(current, list):
            lines.append(f"{name}:")
            for item in current:
                first, *rest = _block(item)
                lines += [f"  - {first}", *(f"    {line}" for line in rest)]
        elif is_settings(current) or isinstance(current, Part):
            lines += [f"{name}:", *(f"  {line}" for line in _block(current))]
        else:
            lines += _plain_yaml({name: to_mapping(current)})
    return lines


def _choice_lines(field: FieldInfo) -> list[str]:
    """Return comment lines with the names that a field takes and their meanings."""
    choice = next((extra for extra in field.metadata if isinstance(extra, Choice)), None)
    meanings = choice.names if choice is not None else {}
    if any(meanings.values()):
        return ["# One of:", *(f"#   {name}: {text}." for name, text in meanings.items())]
    known = unexplained_choices(field)
    return [f"# One of: {known}."] if known else []


def _block(value: Any) -> list[str]:
    """Return the YAML lines of settings, or of a part and its settings."""
    lines = _plain_yaml({"class": value.name}) if isinstance(value, Part) else []
    inner = value.settings if isinstance(value, Part) else value
    if is_settings(inner):
        lines += _documented_lines(inner, {})
    elif inner:
        lines += _plain_yaml(to_mapping(inner))
    return lines or ["{}"]


def _plain_yaml(values: Any) -> list[str]:
    # Not splitlines or a bare rstrip: a value may hold other line breaks and spaces than these.
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True).rstrip("\n").split("\n")


def _one_line(cls: Any, error: ValidationError, where: str) -> str:
    first = error.errors()[0]
    unknown = first["type"] == "unexpected_keyword_argument"
    *outer, last = first["loc"]
    path = [part for part in outer if isinstance(part, str) and not part[:1].isupper()]
    if isinstance(last, str) and (unknown or not last[:1].isupper()):  # else the name of a class
        path.append(last)
    name, found = ".".join(path), first.get("input")
    if unknown:
        for part in path[:-1]:
            cls = getattr(settings_fields(cls).get(part), "annotation", None)
        return f"{where}unknown setting {name}{nearest(path[-1], settings_fields(cls))}"
    if first["type"] == "literal_error":
        known = re.findall(r"'([^']+)'", first["ctx"]["expected"])
        expected = f"one of {', '.join(known)}, found {found!r}{nearest(str(found), known)}"
        return f"{where}{name}: expected {expected}"
    message = first["msg"][0].lower() + first["msg"][1:]
    message = message.replace("input should be", "expected").replace("value error, ", "")
    return f"{where}{name}: {message}, found {found!r}"
