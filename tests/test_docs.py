"""The code in the documentation runs as it stands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from inversight.cli.app import app
from inversight.core.config import parse_assignment

DOCS = Path(__file__).parents[1] / "docs"
BLOCKS = [
    pytest.param(code, id=f"{page.stem}-{number}")
    for page in sorted(DOCS.glob("*.md"))
    for number, code in enumerate(
        re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    )
]


def test_there_is_code() -> None:
    assert len(BLOCKS) >= 2


@pytest.mark.parametrize("code", BLOCKS)
def test_code_runs(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(code, "docs", "exec"), {})
    assert capsys.readouterr().out


COMMANDS = [
    pytest.param(line, id=f"{page.stem}-{line[:40]}")
    for page in sorted(DOCS.glob("*.md"))
    for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    for line in block.splitlines()
    if line.startswith("inversight ")
]


def test_there_are_commands() -> None:
    assert len(COMMANDS) >= 5


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_exist_with_their_options(line: str) -> None:
    """The line parses: options that exist, with values of the right kind, and none left out."""
    command: Any = typer.main.get_command(app)
    words = shlex.split(line)[1:]
    context = command.make_context("inversight", words, resilient_parsing=True)
    while hasattr(command, "commands"):
        name = words.pop(0)
        command = command.commands[name]
        context = command.make_context(name, list(words), parent=context)
    settings = [value for name, value in context.params.items() if name == "set_" and value]
    for text in (text for found in settings for text in found):
        parse_assignment(text)
