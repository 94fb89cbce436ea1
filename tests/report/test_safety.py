"""What holds for both pages: inert names, no network, and references that resolve."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from inversight.report import render, render_defences
from tests.report.defence_examples import hostile
from tests.report.examples import HOSTILE, hostile_data
from tests.report.exposure_examples import hostile_exposed_data
from tests.report.parsers import Page

PICTURES = {"report": 2, "exposure": 5, "defences": 0}
"""Pictures of each image in the galleries of a page."""

PAGES: dict[str, Callable[[], str]] = {
    "report": lambda: render(hostile_data()),
    "exposure": lambda: render(hostile_exposed_data()),
    "defences": lambda: render_defences(*hostile()),
}


@pytest.fixture(scope="module", params=PAGES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def html(name: str) -> str:
    return PAGES[name]()


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_page_is_deterministic(name: str, html: str, drawn: dict[str, Any]) -> None:
    drawn.clear()
    assert PAGES[name]() == html


def test_hostile_names_are_text_and_nothing_else(name: str, html: str, page: Page) -> None:
    assert len(page.named("script")) == 1
    first_screen = html.partition('class="worst"')[2].partition("</ol>")[0].count("<img")
    assert len(page.named("img")) == PICTURES[name] * len(HOSTILE) + first_screen
    assert not page.named("b") or name == "defences"
    assert not page.named("iframe") and not page.named("object") and not page.named("base")
    assert not [key for _, attributes in page.elements for key in attributes if key[:2] == "on"]
    assert all(text in page.text() for text in HOSTILE)
    figures = "".join(re.findall(r"<svg.*?</svg>", html, re.S))
    assert "onerror" in figures and "<img" not in figures and "<script" not in figures


def test_page_loads_nothing(html: str, page: Page) -> None:
    loading = ("src", "srcset", "data", "poster", "action", "background", "formaction")
    for tag, attributes in page.elements:
        for name in loading:
            assert attributes.get(name, "data:").startswith("data:"), (tag, attributes)
        for name in ("href", "xlink:href"):
            where = attributes.get(name, "#")
            assert where.startswith("#") or (tag == "a" or where == "data:,"), (tag, where)
    assert "@import" not in html
    assert all(found == "#" for found in re.findall(r"url\(['\"]?(.)", html))
    policy = [m for m in page.named("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert policy[0]["content"].startswith("default-src 'none'; img-src data:;")


def test_ids_are_unique_and_references_resolve(html: str, page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = page.references(html)
    assert used and used <= set(ids)
