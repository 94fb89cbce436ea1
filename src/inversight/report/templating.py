"""How templates become pages and sentences; a missing value is an error."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from inversight.report import formatting


@cache
def _environment(*, autoescape: bool, finalize: Callable[[Any], Any] | None = None) -> Environment:
    environment = Environment(
        loader=PackageLoader("inversight.report"), undefined=StrictUndefined, finalize=finalize,
        trim_blocks=True, lstrip_blocks=True,
        autoescape=autoescape,  # noqa: S701
    )  # fmt: skip
    for filter_ in (
        formatting.number, formatting.visible, formatting.percent, formatting.duration,
        formatting.get_number, formatting.interval_text, formatting.with_interval,
    ):  # fmt: skip
        environment.filters[filter_.__name__] = filter_
    environment.tests["missing"] = formatting.is_missing
    return environment


def html_template(name: str) -> Template:
    """Return a template of a page whose values are all escaped."""
    return _environment(autoescape=True).get_template(name)


def markdown_template(name: str, escape: Callable[[Any], str]) -> Template:
    """Return a template of Markdown whose values all pass through ``escape``."""
    return _environment(autoescape=False, finalize=escape).get_template(name)


def render_lines(name: str, /, **values: Any) -> list[str]:
    """Return the lines of a template of plain text; every value passes through ``visible``."""
    template = _environment(autoescape=False, finalize=formatting.visible).get_template(name)
    return [line for line in template.render(values).split("\n") if line]
