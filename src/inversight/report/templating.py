"""How templates become pages: every value is escaped, and a missing one is an error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from inversight.report import formatting


def _environment(**options: Any) -> Environment:
    return Environment(  # noqa: S701
        loader=PackageLoader("inversight.report"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        **options,
    )


def html_template(name: str) -> Template:
    """Return a template of a page, with the filters number, visible, percent and duration."""
    environment = _environment(autoescape=True)
    for filter_ in (formatting.number, formatting.visible, formatting.percent, formatting.duration):
        environment.filters[filter_.__name__] = filter_
    return environment.get_template(name)


def markdown_template(name: str, escape: Callable[[Any], str]) -> Template:
    """Return a template of Markdown whose values all pass through ``escape``."""
    return _environment(finalize=escape).get_template(name)


def trusted(svg: str) -> Markup:
    """Return a figure of this package as markup; matplotlib has escaped the text in it."""
    return Markup(svg)  # noqa: S704
