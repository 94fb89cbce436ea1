"""The README keeps its word: commands that parse, settings that exist, links that lead somewhere."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import typer

from inversight.cli.app import app
from inversight.settings import AuditSettings

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)


def test_the_first_block_is_the_two_commands() -> None:
    lines = BLOCKS[0][1].splitlines()
    assert len(lines) == 2
    assert lines[0].endswith("inversight audit") and lines[1].endswith("pytest")


def options(command: object) -> set[str]:
    found = {o for p in getattr(command, "params", []) for o in p.opts}
    for child in getattr(command, "commands", {}).values():
        found |= options(child)
    return found


def test_every_option_named_exists() -> None:
    known = options(typer.main.get_command(app))
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", TEXT))
    assert named and named <= known


def test_every_setting_in_the_python_example_exists() -> None:
    (code,) = (body for language, body in BLOCKS if language == "python")
    calls = [n for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Call)]
    (call,) = (c for c in calls if isinstance(c.func, ast.Name) and c.func.id == "audit")
    names = {k.arg for k in call.keywords} - {"out"}
    assert names <= set(AuditSettings.__dataclass_fields__)


@pytest.mark.parametrize(
    "page",
    sorted(
        p.relative_to(ROOT).as_posix()
        for p in ROOT.glob("**/*.md")
        if not any(q.startswith(".") for q in p.parts[len(ROOT.parts) :])
    ),
)
def test_links_lead_somewhere(page: str) -> None:
    file = ROOT / page
    for link in re.findall(r"\]\(([^)#]+)\)", file.read_text(encoding="utf-8")):
        if not link.startswith("http"):
            assert (file.parent / link).exists(), link
