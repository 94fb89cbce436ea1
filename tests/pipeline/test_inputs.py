"""What an audit reads before it begins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from inversight.core.console import Log, Quiet
from inversight.pipeline.inputs import read_inputs, with_splits
from inversight.settings import resolve
from tests.data.files import picture, save
from tests.refusals import refused


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


def write_table(folder: Path) -> Path:
    """Write images of three splits and the table that lists them, with two columns that group them."""
    rows = ["path,label,split,group,film"]
    for k, split in enumerate(("train", "test", "val")):
        for i in range(8):
            name = f"{split}-{i}.png"
            save(picture(100 * k + i), folder / name)
            rows.append(f"{name},{'ab'[i % 2]},{split},g{i // 4}{'ab'[i % 2]},f{i}")
    (folder / "m.csv").write_text("\n".join(rows))
    return folder / "m.csv"


def test_splits_of_one_file_replace_the_three_folders(tmp_path: Path) -> None:
    file = write_table(tmp_path)
    settings, warnings = with_splits(resolve({"data": file, "group_by": "group"}))
    assert (settings.data, settings.splits, warnings) == (None, None, ())
    reporter = Log(Quiet())
    found = read_inputs(settings, reporter)
    assert found.holdout is not None
    for images, split in ((found.private, "train"), (found.holdout, "test"), (found.public, "val")):
        assert images.ids == tuple(f"{split}-{i}.png" for i in range(8))
    assert found.private.groups == ("g0a", "g0b", "g0a", "g0b", "g1a", "g1b", "g1a", "g1b")
    assert "groups: 16 of 16 images in 4 groups (group)" in found.split
    by_film = read_inputs(replace(settings, group_by="film"), Log(Quiet()))
    assert by_film.private.groups == tuple(f"f{i}" for i in range(8))


def test_a_rule_and_a_folder_take_precedence_over_the_names_of_splits(tmp_path: Path) -> None:
    file = write_table(tmp_path)
    settings, warnings = with_splits(
        resolve({"data": file, "splits": "private=test,public=train+val"})
    )
    assert (settings.private, settings.holdout) == (Path(f"{file}:test"), None)
    assert settings.public == Path(f"{file}:train+val") and not warnings
    save(picture(900), tmp_path / "others" / "1.png")
    settings, warnings = with_splits(resolve({"data": file, "public": tmp_path / "others"}))
    assert settings.public == tmp_path / "others" and "split(s) val are not used" in warnings[0]


def test_subfolders_are_splits_of_a_folder(tmp_path: Path) -> None:
    folders = {"train": "a/1.png", "test": "a/1.png", "val": "1.png"}
    for i, (name, file) in enumerate(folders.items()):
        save(picture(i), tmp_path / name / file)
    settings, _ = with_splits(resolve({"data": tmp_path}))
    found = (settings.private, settings.holdout, settings.public)
    assert found == tuple(tmp_path / name for name in folders)


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ({"splits": "private=train"}, ("no split for --public", "val, valid", "--splits public=")),
        ({"splits": "private=train,public=nowhere"}, ("no split nowhere", "test, train, val")),
        ({"splits": "private=train,public=train"}, ("train is named twice",)),
        ({"splits": "train"}, ("expected private=SPLIT",)),
        ({"splits": "owner=train,public=val"}, ("expected private=SPLIT",)),
    ],
)
def test_wrong_splits_are_one_line(
    tmp_path: Path, given: dict[str, str], parts: tuple[str, ...]
) -> None:
    file = write_table(tmp_path)
    with refused("--", *parts):
        with_splits(resolve({"data": file, **given}))


def test_warns_of_private_images_that_are_in_other_sets_as_jpegs(tmp_path: Path) -> None:
    """A re-encoded image has another hash, so that it is no exact copy; nor is it dropped."""
    for i, name in enumerate(("private/a", "private/b", "holdout/a", "holdout/b", "public")):
        for k in range(4):
            smooth = picture(10 * i + k, (5, 5), "RGB").resize((32, 32), Image.Resampling.BICUBIC)
            save(smooth, tmp_path / name / f"{k}.png")
    roles = {role: tmp_path / role for role in ("private", "holdout", "public")}
    reporter = Log(Quiet())
    read_inputs(resolve(roles), reporter)
    assert reporter.warnings == []
    for k, role in ((0, "holdout/a"), (1, "holdout/a"), (2, "public")):
        copy = Image.open(tmp_path / "private" / "a" / f"{k}.png")
        save(copy, tmp_path / role / f"copy-{k}.jpg", quality=90)
    found = read_inputs(resolve(roles), reporter)
    assert found.holdout is not None and len(found.holdout) == 10
    holdout, public = reporter.warnings
    assert "--private and --holdout have 2 near-copies" in holdout and "hides a leak" in holdout
    for k in (0, 1):
        assert f"a/{k}.png and a/copy-{k}.jpg" in holdout
    assert "--private and --public have 1 near-copies" in public and "copy-2.jpg" in public
    assert list(found.warnings) == reporter.warnings


def test_public_images_of_other_classes_are_used_without_classes(tmp_path: Path) -> None:
    """Their classes are nobody's business: they neither clash with the private ones nor join them."""
    for i, name in enumerate(("private/a", "private/b", "public/x", "public/y", "public/z")):
        save(picture(i), tmp_path / name / "1.png")
    roles = {role: tmp_path / role for role in ("private", "public")}
    found = read_inputs(resolve(roles), Log(Quiet()))
    assert found.private.classes == ("a", "b") and len(found.public) == 3
    assert found.warnings == ()
