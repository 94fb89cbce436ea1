"""The README is short, its commands and settings exist, and all links in the documentation work."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import typer

from inversight.cli.app import app
from inversight.settings import AuditSettings
from tests.documentation import ROOT, blocks

README = ROOT / "README.md"
TEXT = README.read_text(encoding="utf-8")
PAGES = [
    page.relative_to(ROOT).as_posix()
    for page in sorted(ROOT.glob("**/*.md"))
    if not any(part.startswith(".") for part in page.relative_to(ROOT).parts)
]


def test_length() -> None:
    assert len(TEXT.splitlines()) <= 130


def test_first_block_has_the_two_commands() -> None:
    """.ci/run takes the test command from it."""
    audit, tests = blocks(README, "")[0].splitlines()
    assert audit.endswith("inversight audit") and tests.endswith("pytest")


def options(command: object) -> set[str]:
    found = {o for p in getattr(command, "params", []) for o in p.opts}
    return found.union(*map(options, getattr(command, "commands", {}).values()))


def test_options_exist() -> None:
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", TEXT))
    assert named and named <= options(typer.main.get_command(app))


def test_settings_in_the_python_example_exist() -> None:
    (code,) = blocks(README, "python")
    (call,) = (
        node
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "audit"
    )
    names = {keyword.arg for keyword in call.keywords} - {"out"}
    assert names <= set(AuditSettings.__dataclass_fields__)


def headings(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub names them."""
    found = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", text).strip().lower().replace(" ", "-") for text in found}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    file = ROOT / page
    for link in re.findall(r"\]\(([^)]+)\)", file.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        if not link.startswith("http"):
            other = file.parent / path if path else file
            assert other.exists(), link
            assert not anchor or anchor in headings(other), link
