"""The code and the commands in docs/ work."""

from __future__ import annotations

import pytest

from inversight.core.config import parse_assignment
from tests.documentation import PAGES, blocks, parse_command

CODE = [
    pytest.param(code, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, code in enumerate(blocks(page, "python"))
]
COMMANDS = [
    pytest.param(line, id=f"{page.stem}-{line[:40]}")
    for page in PAGES
    for block in blocks(page, "sh")
    for line in block.splitlines()
    if line.startswith("inversight ")
]


def test_examples_are_found() -> None:
    assert len(CODE) >= 2 and len(COMMANDS) >= 5


@pytest.mark.parametrize("code", CODE)
def test_code_runs(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(code, "docs", "exec"), {})
    assert capsys.readouterr().out


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_parse(line: str) -> None:
    """Options exist, their values have the right type, and none is missing."""
    for text in parse_command(line).params.get("set_") or ():
        parse_assignment(text)
