"""What an audit reads before it begins."""

from __future__ import annotations

from pathlib import Path

from inversight.core.console import Quiet
from inversight.pipeline.inputs import read_inputs
from inversight.settings import resolve
from tests.data.files import picture, save


def test_files_left_out_reach_the_user_and_the_runs_warnings(tmp_path: Path) -> None:
    """Each set is named, and what the user is told is what the run keeps."""

    class Told(Quiet):
        def __init__(self) -> None:
            self.texts: list[str] = []

        def warn(self, text: str) -> None:
            self.texts.append(text)

    for i, name in enumerate(("private/a", "private/b", "holdout/a", "holdout/b", "public")):
        save(picture(i), tmp_path / name / "1.png")
        save(b"something", tmp_path / name / "2.heic")
    roles = ("private", "holdout", "public")
    reporter = Told()
    found = read_inputs(resolve({role: tmp_path / role for role in roles}), reporter)
    assert list(found.warnings) == reporter.texts
    for role, text in zip(("private", "public", "holdout"), reporter.texts, strict=True):
        assert f"--{role}" in text and ".heic" in text
