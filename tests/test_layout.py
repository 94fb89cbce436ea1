"""The rooms of the package, their order, and the size of files."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "inversight"
ROOMS = (
    "core", "settings", "data", "models", "embeddings", "priors", "attacks", "adaptation",
    "defences", "scores", "risk", "report", "pipeline", "cli",
)  # fmt: skip
"""Each imports only from those before it (docs/architecture.md)."""
MOST_LINES = 500


def imported(file: Path) -> set[str]:
    """Return the rooms that ``file`` imports from, also in functions."""
    names: list[str] = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}:{node.lineno} is a relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return {name.split(".")[1] for name in names if name.startswith("inversight.")}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_from_rooms_before_it(room: str) -> None:
    allowed = set(ROOMS[: ROOMS.index(room) + 1])
    for file in (PACKAGE / room).rglob("*.py"):
        assert imported(file) <= allowed, file


def test_nothing_lies_beside_the_rooms() -> None:
    inside = {p.name for p in PACKAGE.iterdir()} - {"__pycache__"}
    assert inside == {"__init__.py", "__main__.py", "py.typed", *ROOMS}


def test_tests_mirror_the_rooms() -> None:
    folders = {p.name for p in (ROOT / "tests").iterdir() if (p / "__init__.py").is_file()}
    assert folders <= {*ROOMS, "reference"}


@pytest.mark.parametrize("folder", ["src", "tests", "benchmarks", "examples"])
def test_no_file_is_too_long_to_read(folder: str) -> None:
    files = list((ROOT / folder).rglob("*.py"))
    assert files
    for file in files:
        assert len(file.read_text(encoding="utf-8").splitlines()) <= MOST_LINES, file
