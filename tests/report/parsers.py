"""Parsers of the report's HTML and SVG for the tests."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from html.parser import HTMLParser


class Page(HTMLParser):
    """What a browser would make of the page: elements, their attributes and the text in them."""

    VOID = ("meta", "link", "img", "input", "br")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == [], "every element is closed"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self._open[-1] if self._open else "", data))

    def named(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def text(self):
        shown = [text for tag, text in self.texts if tag not in ("style", "script")]
        return " ".join(" ".join(shown).split())

    def references(self, html: str) -> set[str]:
        """Ids that links, labels and SVG definitions refer to."""
        found = re.findall(r"url\(#([^)]*)\)", html)
        for _, attributes in self.elements:
            for name in ("href", "xlink:href"):
                if attributes.get(name, "").startswith("#"):
                    found.append(attributes[name][1:])
            found += attributes.get("aria-labelledby", "").split()
        return set(found)


def assert_texts(text: str, stated: Iterable[str], unstated: Iterable[str] = ()) -> None:
    assert [part for part in stated if part not in text] == []
    assert [part for part in unstated if part in text] == []


def rows_of(page: str, name: str) -> list[list[str]]:
    """Texts of the cells of a ledger, row by row."""
    body = page[page.index(f'id="{name}-table"') :]
    body = body[body.index("<tbody>") : body.index("</tbody>")]
    return [re.findall(r"<td[^>]*>([^<]*)</td>", row) for row in body.split("</tr>")[:-1]]


def parsed(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def texts(svg: str) -> str:
    return " ".join("".join(e.itertext()) for e in parsed(svg).iter() if e.tag.endswith("}text"))
