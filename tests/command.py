"""The command line, called in this process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from inversight.cli import main


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Return exit code, standard output and standard error of ``inversight ARGUMENTS``."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main([str(a) for a in arguments])
    printed = capsys.readouterr()
    assert isinstance(caught.value.code, int)
    return caught.value.code, printed.out, printed.err


def refused(capsys: pytest.CaptureFixture[str], arguments: Sequence[object], *parts: str) -> str:
    """Return the line with which ``inversight ARGUMENTS`` exits with 2, having written nothing here.

    The line holds each of ``parts``.
    """
    before = sorted(Path.cwd().iterdir())
    code, out, err = run(capsys, *arguments)
    lines = [line for line in err.splitlines() if line.startswith("inversight: ")]
    assert (code, len(lines)) == (2, 1), (out, err)
    assert err.endswith("\n") and "Traceback" not in err
    for part in parts:
        assert part in lines[0]
    assert sorted(Path.cwd().iterdir()) == before
    return lines[0]
