"""Code blocks of the documentation, and the parser of the commands in them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import typer

from inversight.cli.app import app

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
TUTORIALS = [page for page in PAGES if page.parent.name == "tutorials"]
"""Pages whose blocks belong together."""


def blocks(page: Path, language: str) -> list[str]:
    """Return the code blocks of a page in this language ("": none is named), in order."""
    return [code for _, code in titled_blocks(page, language)]


def titled_blocks(page: Path, language: str) -> list[tuple[str, str]]:
    """Return the same blocks with their titles: of a block with a title, the name of a file, else ""."""
    text = page.read_text(encoding="utf-8")
    found = re.findall(r'^```(\w*)(?: title="([^"]+)")?\n(.*?)^```', text, re.M | re.S)
    return [(title, code) for name, title, code in found if name == language]


def parse_command(line: str) -> Any:
    """Parse a line "inversight ..." as the command line does; return the click context."""
    command: Any = typer.main.get_command(app)
    name, *words = shlex.split(line)
    while hasattr(command, "commands"):
        name = words.pop(0)
        command = command.commands[name]
    return command.make_context(name, words)
