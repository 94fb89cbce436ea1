"""The rooms of the package, their order, and the size of files."""

from __future__ import annotations

import ast
from collections.abc import Iterator
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


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and the room of each import of the package in ``file``, also those in functions."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.module:
            whole = node.module == "inversight"
            names = [f"inversight.{a.name}" for a in node.names] if whole else [node.module]
            assert not node.level, f"{file}:{node.lineno} is a relative import"
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "inversight" and len(parts) > 1:
                yield node.lineno, parts[1]  # type: ignore[attr-defined]


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_from_rooms_before_it(room: str) -> None:
    allowed = ROOMS[: ROOMS.index(room) + 1]
    files = list((PACKAGE / room).rglob("*.py")) or [PACKAGE / f"{room}.py"]
    wrong = [
        f"{file.relative_to(PACKAGE)}:{line} imports {found}"
        for file in files
        for line, found in imports(file)
        if found not in allowed
    ]
    assert not wrong


def test_nothing_lies_beside_the_rooms() -> None:
    loose = {p.name for p in PACKAGE.iterdir() if p.is_file()}
    assert loose - {"settings.py"} == {"__init__.py", "__main__.py", "py.typed"}
    folders = {p.name for p in PACKAGE.iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert folders | {"settings"} == set(ROOMS)


def test_tests_mirror_the_rooms() -> None:
    folders = {p.name for p in (ROOT / "tests").iterdir() if (p / "__init__.py").is_file()}
    assert folders <= {*ROOMS, "reference"}


@pytest.mark.parametrize("folder", ["src", "tests", "benchmarks"])
def test_no_file_is_too_long_to_read(folder: str) -> None:
    lengths = {
        str(file.relative_to(ROOT)): len(file.read_text(encoding="utf-8").splitlines())
        for file in (ROOT / folder).rglob("*.py")
    }
    assert lengths
    assert {f: n for f, n in lengths.items() if n > MOST_LINES} == {}
