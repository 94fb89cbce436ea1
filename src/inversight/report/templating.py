"""How templates become pages: every value escaped, a missing one an error."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from inversight.report import words
from inversight.report.contents import duration


def environment() -> Environment:
    """Templates of this package, with the filters number, visible and duration."""
    found = Environment(
        loader=PackageLoader("inversight.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters.update(number=words.number, visible=words.visible, duration=duration)
    return found


def own(svg: str | None) -> Markup | None:
    """Markup of our own making, in which matplotlib has escaped what is text."""
    return None if svg is None else Markup(svg)  # noqa: S704
