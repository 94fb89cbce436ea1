"""Groups of images by an expression or a table, carried along, and refused where they make no sense."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from inversight.core.errors import ConfigError, DataError
from inversight.data import (
    ImageSet,
    absolute_group_by,
    groups_fingerprint,
    image_set,
    read_group_rule,
    with_groups,
)
from tests.refusals import refused


def named(*ids: str) -> ImageSet:
    """Return black images of the classes that their paths begin with."""
    labels = [name.split("/")[0] for name in ids]
    return image_set(torch.zeros(len(ids), 1, 8, 8).byte(), labels, ids, sorted(set(labels)))


PRIVATE = named("a/ann-1.png", "a/ann-2.png", "a/bob-1.png", "b/eve-1.png", "b/x.png")
HOLDOUT = named("a/joe-1.png", "b/eve-7.png")
SETS = {"private": PRIVATE, "holdout": HOLDOUT}


@pytest.mark.parametrize(
    ("spec", "groups"),
    [
        ("[a-z]+-", ["ann-", "ann-", "bob-", "eve-", None]),
        ("([a-z]+)-", ["ann", "ann", "bob", "eve", None]),
        ("(.)/(?P<group>[a-z]+)-", ["ann", "ann", "bob", "eve", None]),
        ("(?:^a/)?(-[12])?", [None] * 5),
        ("(?<=/)x|ann", ["ann", "ann", None, None, "x"]),
    ],
)
def test_expressions_name_groups(spec: str, groups: list[str | None]) -> None:
    rule = read_group_rule(spec)
    assert [rule.group_of("private", name) for name in PRIVATE.ids] == groups


def test_groups_go_with_their_images() -> None:
    found, words, warning = with_groups(SETS, read_group_rule("([a-z]+)-"))
    private = found["private"]
    assert private.groups == ("ann", "ann", "bob", "eve", None)
    assert found["holdout"].groups == ("joe", "eve")
    assert words == "6 of 7 images in 4 groups"
    assert warning is not None and "\n" not in warning
    assert "1 image(s) have no group" in warning and "1 group(s) have private and" in warning
    turned = private.select(torch.tensor([4, 2, 0]))
    assert turned.groups == (None, "bob", "ann")
    for one in (turned.relabel(["b", "a"], role="r"), turned.resized(size=16, channels=3)):
        assert one.groups == turned.groups
    assert PRIVATE.select(torch.tensor([0])).groups is None


def test_fingerprint_is_of_the_groups_whatever_the_row_order() -> None:
    found, _, _ = with_groups(SETS, read_group_rule("([a-z]+)-"))
    turned = {role: s.select(torch.arange(len(s)).flip(0)) for role, s in found.items()}
    assert groups_fingerprint(turned) == groups_fingerprint(found)
    other, _, _ = with_groups(SETS, read_group_rule("(ann)-"))
    assert groups_fingerprint(other) != groups_fingerprint(found) != groups_fingerprint(SETS)


@pytest.mark.parametrize(
    ("text", "column", "groups"),
    [
        ("id,group\na/ann-1.png,A\na/ann-2.png,A\na/joe-1.png,J\nb/x.png,\n", "", ["A", "A", "J"]),
        ("path,who,group\na/ann-1.png,9,z\na/ann-2.png,07,z\n", ":who", ["9", "07", None]),
        ("\ufeffid,group\na/ann-1.png,NA\n", "", ["NA", None, None]),
        (
            "role,id,group\nprivate,a/ann-1.png,A\nholdout,a/joe-1.png,J\n,a/ann-2.png,B\n"
            "holdout,a/ann-1.png,C\n",
            "",
            ["A", "B", "J"],
        ),
    ],
)
def test_tables_name_groups(
    tmp_path: Path, text: str, column: str, groups: list[str | None]
) -> None:
    (tmp_path / "t.csv").write_text(text, encoding="utf-8")
    found, _, _ = with_groups(SETS, read_group_rule(f"{tmp_path}/t.csv{column}"))
    assert found["private"].groups == (*groups[:2], None, None, None)
    assert found["holdout"].groups == (groups[2], None)


def test_counts_images_without_a_group_and_ids_without_an_image(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("id,group\na/ann-1.png,A\nc/1.png,B\nc/2.png,B\n")
    _, words, warning = with_groups(SETS, read_group_rule(f"{tmp_path}/t.csv"))
    assert words == "1 of 7 images in 1 groups"
    for part in (
        "6 image(s) have no group",
        "2 id(s) of the table are no image",
        "changes nothing",
    ):
        assert part in str(warning)


def test_tables_are_found_from_other_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text("id,who\na/ann-1.png,A\n")
    absolute = absolute_group_by("t.csv:who")
    monkeypatch.chdir("/")
    assert read_group_rule(absolute).group_of("private", "a/ann-1.png") == "A"
    assert absolute_group_by("a/.*") == "a/.*"


@pytest.mark.parametrize(
    ("spec", "error", "parts"),
    [
        ("(ann", ConfigError, ["--group-by '(ann'", "regular expression"]),
        ("none.csv", DataError, ["none.csv: cannot be read", "No such file"]),
        ("empty.csv", DataError, ["empty.csv: is no table"]),
        ("bytes.csv", DataError, ["bytes.csv: is no table"]),
        ("t.csv:who", DataError, ["t.csv: has no column who", "id, group"]),
        ("one.csv", DataError, ["one.csv: has no column id", "below its folder"]),
        ("twice.csv", DataError, ["a/ann-1.png is in two groups, A and B"]),
        ("roles.csv", DataError, ["expected role private or holdout, found public"]),
        ("zed", DataError, ["none of the 7 images", "like a/ann-1.png"]),
        ("[0-9]", DataError, ["group 1 has images of classes a and b (a/ann-1.png, b/eve-1.png)"]),
        ("[a-z]+", None, []),
    ],
)
def test_refuses_what_names_no_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str, error: type[Exception] | None,
    parts: list[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("empty.csv").touch()
    Path("bytes.csv").write_bytes(b"id,group\n\xff\xfe,1\n")
    Path("t.csv").write_text("id,group\na/ann-1.png,A\n")
    Path("one.csv").write_text("name\na\n")
    Path("twice.csv").write_text("id,group\na/ann-1.png,A\na/ann-1.png,B\n")
    Path("roles.csv").write_text("id,group,role\na/ann-1.png,A,public\n")
    if error is None:
        with_groups(SETS, read_group_rule(spec))
        return
    with refused(*parts, error=error):
        with_groups(SETS, read_group_rule(spec))


def test_asks_for_the_role_of_a_name_that_both_folders_have(tmp_path: Path) -> None:
    both = {"private": PRIVATE, "holdout": named("a/ann-1.png")}
    (tmp_path / "t.csv").write_text("id,group\na/ann-1.png,A\n")
    with refused(
        "a/ann-1.png is the path of a private and of a holdout image", "add a column role"
    ):
        with_groups(both, read_group_rule(f"{tmp_path}/t.csv"))
