"""Workflows name files, commands and actions that are there, and get no more rights than they need."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.documentation import ROOT, blocks

GITHUB = ROOT / ".github"
WORKFLOWS = {file.stem: file for file in sorted((GITHUB / "workflows").glob("*.yml"))}
FORMS = sorted(file for file in (GITHUB / "ISSUE_TEMPLATE").glob("*.yml") if file.stem != "config")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def jobs(name: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load(WORKFLOWS[name].read_text())["jobs"]
    return found


def commands(job: dict[str, Any]) -> list[str]:
    """Return what a job runs, once for each entry of its matrix."""
    entries = job.get("strategy", {}).get("matrix", {}).get("include", [{}])
    return [
        re.sub(r"\$\{\{ matrix\.(\w+) \}\}", lambda name: entry[name[1]], step["run"])  # noqa: B023
        for entry in entries
        for step in job["steps"]
        if "run" in step
    ]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_actions_are_pinned_and_rights_are_few(name: str) -> None:
    text = WORKFLOWS[name].read_text()
    assert yaml.safe_load(text)["permissions"] == {"contents": "read"}
    for line in re.findall(r"uses: (.*)", text):
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line), line
    writing = {job for job, facts in jobs(name).items() if "permissions" in facts}
    assert writing == {"ci": set(), "docs": {"deploy"}, "release": {"publish"}}[name]
    for job in writing:  # what can write runs no code of the repository
        assert not any("checkout" in step.get("uses", "") for step in jobs(name)[job]["steps"])


def test_commands_name_files_that_are_there() -> None:
    script = (ROOT / "benchmarks" / "release.sh").read_text()
    parts = set(re.findall(r"^#     (\w+)  ", script, re.M))
    named = set()
    for name in WORKFLOWS:
        for line in (c for job in jobs(name).values() for c in commands(job)):
            if line.startswith("."):
                assert os.access(ROOT / line, os.X_OK), line
            if line.startswith("bash "):
                _, file, part = line.split()
                assert (ROOT / file).samefile(ROOT / "benchmarks" / "release.sh")
                named.add(part.strip('"'))
    assert named == parts


def test_ci_covers_what_the_package_promises() -> None:
    found = jobs("ci")
    oldest = PROJECT["project"]["requires-python"].removeprefix(">=")
    matrix = found["tests"]["strategy"]["matrix"]
    assert matrix["python"][0] == oldest and {o.split("-")[0] for o in matrix["os"]} == {
        "ubuntu", "macos",
    }  # fmt: skip
    assert blocks(ROOT / "README.md", "")[0].splitlines()[1] in commands(found["tests"])
    assert ".ci/run" in commands(found["whole"])
    assert any("mkdocs build --strict" in c for c in commands(jobs("docs")["build"]))


def test_a_release_is_published_after_its_checks_alone() -> None:
    found = jobs("release")
    assert found["publish"]["needs"] == "check" and found["check"]["needs"] == "build"
    assert found["publish"]["permissions"] == {"id-token": "write"}
    assert "secrets." not in WORKFLOWS["release"].read_text()


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.stem)
def test_issue_forms_have_what_github_asks_for(form: Path) -> None:
    found = yaml.safe_load(form.read_text())
    assert {"name", "description", "body"} <= set(found)
    ids = [part["id"] for part in found["body"] if part["type"] != "markdown"]
    assert ids and len(ids) == len(set(ids))
    for part in found["body"]:
        assert part["attributes"].get("value" if part["type"] == "markdown" else "label")
