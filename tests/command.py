"""The command line, called in this process."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from inversight.cli import main


class CommandLine:
    """Calls ``inversight`` with command lines as one types them, in one string or in several."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *line: object) -> tuple[int, str, str]:
        """Return exit code, standard output and standard error."""
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main(shlex.split(" ".join(map(str, line))))
        printed = self.capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return caught.value.code, printed.out, printed.err

    def succeeds(self, *line: object) -> tuple[str, str]:
        """Return standard output and standard error of a command that exits with 0."""
        code, out, err = self(*line)
        assert code == 0, err
        return out, err

    def fails(self, *line: object, code: int = 1) -> str:
        """Return the only line that a command prints about why it exits with ``code``."""
        found, out, err = self(*line)
        lines = [one for one in err.splitlines() if one.startswith("inversight: ")]
        assert (found, len(lines)) == (code, 1), (out, err)
        assert err.endswith("\n") and "Traceback" not in err
        return lines[0]

    def refuses(self, line: object, *parts: str) -> str:
        """Return the line with which a command exits with 2, having written nothing here.

        The line holds each of ``parts``.
        """
        before = sorted(Path.cwd().iterdir())
        message = self.fails(line, code=2)
        assert not [part for part in parts if part not in message], message
        assert sorted(Path.cwd().iterdir()) == before
        return message
