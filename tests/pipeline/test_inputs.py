"""What an audit reads before it begins."""

from __future__ import annotations

from pathlib import Path

from inversight.core.console import Log, Quiet
from inversight.pipeline.inputs import read_inputs
from inversight.settings import resolve
from tests.data.files import picture, save


def test_warns_of_files_left_out(tmp_path: Path) -> None:
    """A warning names each set, and the run keeps the warnings that the user sees."""
    for i, name in enumerate(("private/a", "private/b", "holdout/a", "holdout/b", "public")):
        save(picture(i), tmp_path / name / "1.png")
        save(b"something", tmp_path / name / "2.heic")
    roles = ("private", "holdout", "public")
    reporter = Log(Quiet())
    found = read_inputs(resolve({role: tmp_path / role for role in roles}), reporter)
    assert list(found.warnings) == reporter.warnings
    for role, text in zip(("private", "public", "holdout"), reporter.warnings, strict=True):
        assert f"--{role}" in text and ".heic" in text


def test_groups_of_private_images_and_holdout(tmp_path: Path) -> None:
    for i, name in enumerate(("private/a", "private/b", "holdout/a", "holdout/b", "public")):
        for k in range(3):
            save(picture(10 * i + k), tmp_path / name / f"{name[-1]}{k // 2}-{k}.png")
    roles = {role: tmp_path / role for role in ("private", "holdout", "public")}
    reporter = Log(Quiet())
    found = read_inputs(resolve({**roles, "group_by": "([ab]0)-"}), reporter)
    assert found.private.groups == ("a0", "a0", None, "b0", "b0", None)
    assert found.holdout is not None and found.holdout.groups == found.private.groups
    assert found.public.groups is None
    assert "groups: 8 of 12 images in 2 groups (([ab]0)-)" in found.split
    assert len(reporter.warnings) == 1 and "4 image(s) have no group" in reporter.warnings[0]
