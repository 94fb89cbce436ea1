"""The README is short, and all code, commands, settings and links in the documentation work."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer

from inversight.cli.app import app
from inversight.core.config import parse_assignment
from inversight.pipeline.estimate import Estimate
from inversight.settings import AuditSettings
from tests.documentation import PAGES, ROOT, TUTORIALS, blocks, parse_command, titled_blocks

CODE = [
    pytest.param(code, id=f"{page.stem}-{number}")
    for page in PAGES
    if page not in TUTORIALS
    for number, code in enumerate(blocks(page, "python"))
]
COMMANDS = [
    pytest.param(line, id=f"{page.stem}-{line[:40]}")
    for page in PAGES
    for block in blocks(page, "sh")
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("inversight ")
]


def test_examples_are_found() -> None:
    assert len(CODE) >= 2 and len(COMMANDS) >= 5


@pytest.mark.parametrize("code", CODE)
def test_code_runs(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(code, "docs", "exec"), {})
    assert capsys.readouterr().out


@pytest.mark.parametrize(
    "page", [p for p in TUTORIALS if blocks(p, "python")], ids=lambda page: page.stem
)
def test_tutorial_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a reader works through it: in one folder, block after block; a block with a title is a file.

    Models are trained for fewer epochs, and no time is estimated.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("inversight.pipeline.audit.estimate", lambda _: Estimate({}, 0, 0))
    names: dict[str, object] = {}
    for title, text in titled_blocks(page, "python"):
        code = text.replace("range(40)", "range(2)")
        if title:
            Path(title).write_text(code, encoding="utf-8")
        else:
            exec(compile(code, page.name, "exec"), names)
            assert capsys.readouterr().out


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_parse(line: str) -> None:
    """Options exist, their values have the right type, and none is missing."""
    for text in parse_command(line).params.get("set_") or ():
        parse_assignment(text)


README = ROOT / "README.md"
TEXT = README.read_text(encoding="utf-8")


def test_readme_is_short_and_begins_with_the_two_commands() -> None:
    """.ci/run takes the test command from it."""
    assert len(TEXT.splitlines()) <= 130
    audit, tests = blocks(README, "")[0].splitlines()
    assert audit.endswith("inversight audit") and tests.endswith("pytest")


def options(command: object) -> set[str]:
    found = {o for p in getattr(command, "params", []) for o in p.opts}
    return found.union(*map(options, getattr(command, "commands", {}).values()))


def test_options_in_the_readme_exist() -> None:
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", TEXT))
    assert named and named <= options(typer.main.get_command(app))


def test_settings_in_the_readme_exist() -> None:
    (code,) = blocks(README, "python")
    names = set(re.findall(r"\b(\w+)=", code)) - {"out"}
    assert names and names <= set(AuditSettings.__dataclass_fields__)


def headings(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub names them."""
    found = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", text).strip().lower().replace(" ", "-") for text in found}


@pytest.mark.parametrize("file", [*ROOT.glob("*.md"), *PAGES], ids=lambda file: file.name)
def test_links_lead_somewhere(file: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", file.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        if not link.startswith("http"):
            other = file.parent / path if path else file
            assert other.exists(), link
            assert not anchor or anchor in headings(other), link
