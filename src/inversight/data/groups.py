"""Groups: images of one person, film or burst, named by their path, a table, or a table's column."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from inversight.core.errors import ConfigError, DataError, one_line
from inversight.data.images import ImageSet
from inversight.data.source import read_column

_TABLE = re.compile(r"(?P<file>.+\.csv)(?::(?P<column>[^:/\\]+))?", re.IGNORECASE)
_COLUMN = "group"
_ROLES = ("private", "holdout")


@dataclass(frozen=True)
class GroupPattern:
    """Groups named by a regular expression that is searched in an image's path below its folder."""

    spec: str
    expression: re.Pattern[str]

    def group_of(self, role: str, name: str) -> str | None:
        """Return the group of the image ``name``, None for an image of its own.

        It is what the group called ``group`` of the expression matches, else its first group, else the
        whole expression.
        """
        found = self.expression.search(name)
        if found is None:
            return None
        which = "group" if "group" in self.expression.groupindex else min(1, self.expression.groups)
        return found[which] or None


@dataclass(frozen=True)
class GroupTable:
    """Groups named by a table.

    groups: by role ("private", "holdout") and the image's path below its folder; the role is "" where
    the table does not tell the two folders apart.
    """

    spec: str
    groups: Mapping[tuple[str, str], str]

    def group_of(self, role: str, name: str) -> str | None:
        """Return the group of the image ``name`` of ``role``, None for an image of its own."""
        return self.groups.get((role, name)) or self.groups.get(("", name)) or None


def read_group_rule(spec: str) -> GroupPattern | GroupTable:
    """Return the rule that ``--group-by`` gives: a table as FILE.csv[:COLUMN], or a regular expression.

    Raises:
        ConfigError: no regular expression.
        DataError: a table that cannot be read or lacks a column.
    """
    table = _TABLE.fullmatch(spec)
    if table is not None:
        return GroupTable(spec, _read_table(Path(table["file"]), table["column"] or _COLUMN))
    try:
        return GroupPattern(spec, re.compile(spec))
    except re.error as error:
        raise ConfigError(
            f"--group-by {spec!r}: expected a table FILE.csv[:COLUMN] or a regular expression such as "
            f"'^[^/]+/person[0-9]+' ({error})"
        ) from None


def column_rule(paths: Mapping[str, Path | None], column: str) -> GroupTable | None:
    """Return the rule of a column of the tables that list the images, None if no table has it.

    ``paths``: by role, "private" and "holdout".
    """
    values = {
        role: read_column(path, f"--{role}", column)
        for role, path in paths.items()
        if path is not None
    }
    if all(one is None for one in values.values()):
        return None
    return GroupTable(
        column,
        {
            (role, name): group
            for role, one in values.items()
            for name, group in (one or {}).items()
        },
    )


def absolute_group_by(spec: str) -> str:
    """Return ``spec`` with the path of its table made absolute, so that it can be read from anywhere."""
    table = _TABLE.fullmatch(spec)
    if table is None:
        return spec
    column = "" if table["column"] is None else f":{table['column']}"
    return f"{Path(table['file']).absolute()}{column}"


def with_groups(
    sets: Mapping[str, ImageSet], rule: GroupPattern | GroupTable
) -> tuple[dict[str, ImageSet], str, str | None]:
    """Return private images and holdout with their groups, what was found in words, and a warning.

    Args:
        sets: by role, "private" and "holdout" or the first alone.
        rule: names the groups.

    Raises:
        DataError: a group has images of two classes, no image has a group, or the table does not say
            which of two images of one name it means.
    """
    where = f"--group-by {rule.spec}"
    names = [(role, name) for role, images in sets.items() for name in images.ids]
    if isinstance(rule, GroupTable):
        twice = [n for n, count in Counter(n for _, n in names).items() if count > 1]
        unclear = next((n for n in twice if ("", n) in rule.groups), None)
        if unclear is not None:
            raise DataError(
                f"{where}: {unclear} is the path of a private and of a holdout image; add a column "
                "role, private or holdout"
            )
    found = {
        role: replace(images, groups=tuple(rule.group_of(role, name) for name in images.ids))
        for role, images in sets.items()
    }
    classes: dict[str, tuple[str, str]] = {}
    sizes: Counter[str] = Counter()
    held: dict[str, set[str]] = {}
    for role, images in found.items():
        for group, label, name in zip(
            images.groups or (), images.labels.tolist(), images.ids, strict=True
        ):
            if group is None:
                continue
            own = images.classes[label]
            first, other = classes.setdefault(group, (own, name))
            if first != own:
                raise DataError(
                    f"{where}: group {group} has images of classes {first} and {own} ({other}, {name}); "
                    "a group lies within one class: make the class part of its name"
                )
            sizes[group] += 1
            held.setdefault(role, set()).add(group)
    grouped = sizes.total()
    if not grouped:
        raise DataError(
            f"{where}: names the group of none of the {len(names)} images, whose paths are like "
            f"{names[0][1]}"
        )
    words = f"{grouped} of {len(names)} images in {len(sizes)} groups"
    remarks = []
    if grouped < len(names):
        remarks.append(f"{len(names) - grouped} image(s) have no group and count each alone")
    if isinstance(rule, GroupTable):
        known = set(names) | {("", name) for _, name in names}
        unknown = len(rule.groups.keys() - known)
        if unknown:
            remarks.append(f"{unknown} id(s) of the table are no image")
    if len(sizes) == grouped:
        remarks.append("no group has two images, so that grouping changes nothing")
    shared = len(set.intersection(*held.values())) if len(held) > 1 else 0
    if shared:
        remarks.append(
            f"{shared} group(s) have private and holdout images, which can hide a leak from the "
            "holdout test"
        )
    return found, words, f"{where}: {'; '.join(remarks)}" if remarks else None


def groups_fingerprint(sets: Mapping[str, ImageSet | None]) -> str:
    """Return a hash of the images' groups that does not depend on the row order."""
    rows = sorted(
        (role, name, group or "")
        for role, images in sets.items()
        if images is not None
        for name, group in zip(images.ids, images.groups or ("",) * len(images), strict=True)
    )
    return hashlib.sha256(repr(rows).encode()).hexdigest()[:16]


def _read_table(file: Path, column: str) -> dict[tuple[str, str], str]:
    """Return the groups in ``column`` of a CSV file by role and id."""
    where = f"--group-by {file}"
    try:
        table = pd.read_csv(file, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{where}: cannot be read ({error.strerror or one_line(error)})") from None
    except ValueError as error:
        raise DataError(f"{where}: is no table with commas ({one_line(error)})") from None
    key = "id" if "id" in table else "path"
    for name in (key, column):
        if name not in table:
            expected = "id (the image's path below its folder)" if name == key else name
            raise DataError(
                f"{where}: has no column {expected}; its columns are {', '.join(table.columns)}"
            )
    roles = table["role"] if "role" in table else [""] * len(table)
    found: dict[tuple[str, str], str] = {}
    for role, name, group in zip(roles, table[key], table[column], strict=True):
        if role and role not in _ROLES:
            raise DataError(f"{where}: expected role private or holdout, found {role} of {name}")
        if found.setdefault((role, name), group) != group:
            raise DataError(f"{where}: {name} is in two groups, {found[role, name]} and {group}")
    return found
