"""The workflow in docs/pipelines.md: it parses, its commands exist, and its shell does what it says."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from inversight.cli.app import app
from inversight.pipeline.gate import gates

TEXT = (Path(__file__).parents[1] / "docs" / "pipelines.md").read_text(encoding="utf-8")
(WORKFLOW,) = re.findall(r"^```yaml\n(.*?)^```", TEXT, re.M | re.S)
STEPS: list[dict[str, Any]] = yaml.safe_load(WORKFLOW)["jobs"]["audit"]["steps"]
BY_NAME = {step["name"]: step for step in STEPS if "name" in step}
PRIVATE = ("reconstructions", "stages", "samples", "parquet", "run.json", "private-ids", ".log")


def test_it_is_a_workflow_that_pull_requests_do_not_start() -> None:
    found = yaml.safe_load(WORKFLOW)
    started = found[True]  # YAML reads "on" as true
    assert set(started) == {"workflow_dispatch", "push"}
    assert found["permissions"] == {"contents": "read"}
    assert "self-hosted" in found["jobs"]["audit"]["runs-on"]
    for step in STEPS:
        assert ("run" in step) != ("uses" in step)
        if "uses" in step:
            assert re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"])


@pytest.mark.parametrize("name", ["Train the prior", "Audit"])
def test_its_commands_exist_with_their_options(name: str) -> None:
    lines = BY_NAME[name]["run"].replace("\\\n", " ").splitlines()
    (line,) = [one for one in lines if one.lstrip().startswith("inversight ")]
    words = shlex.split(line.partition(" >")[0] if " > " in line else line)[1:]
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    context = command.make_context(name, words)
    if name == "Audit":
        assert len(gates(context.params["fail_on"])) == 2
        assert context.params["hash_ids"] and context.params["images"] == "none"


def test_nothing_private_is_uploaded_cached_or_logged() -> None:
    for name, key in (
        ("Keep the report and the card", "path"),
        ("Prior from the last run", "path"),
    ):
        for secret in PRIVATE:
            assert secret not in BY_NAME[name]["with"][key]
    for name in ("Train the prior", "Audit"):
        assert re.search(r'> "\$RUNNER_TEMP/\w+\.log" 2>&1', BY_NAME[name]["run"])


@pytest.mark.parametrize("code", [0, 1, 2, 3, 130])
def test_its_shell_passes_the_exit_code_on(tmp_path: Path, code: int) -> None:
    """Both scripts as a runner calls them, with a stand-in that leaves a card and a code."""
    stand_in = tmp_path / "bin" / "inversight"
    stand_in.parent.mkdir()
    stand_in.write_text(
        '#!/bin/sh\nwhile [ "$1" != --out ]; do shift; done\nmkdir -p "$2"\n'
        f'echo the card > "$2/model-card.md"\necho a/1.png >&2\nexit {code}\n'
    )
    stand_in.chmod(0o755)
    env = {
        "PATH": f"{stand_in.parent}:{os.environ['PATH']}",
        "RUNNER_TEMP": str(tmp_path),
        "GITHUB_OUTPUT": str(tmp_path / "output"),
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary"),
        "IMAGES": "/srv/images",
    }

    def shell(name: str, **more: str) -> subprocess.CompletedProcess[str]:
        call = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", BY_NAME[name]["run"]]
        return subprocess.run(
            call, env={**env, **more}, cwd=tmp_path, capture_output=True, text=True, check=False
        )

    audit = shell("Audit")
    assert (audit.returncode, audit.stdout, audit.stderr) == (0, "", "")
    assert (tmp_path / "output").read_text() == f"code={code}\n"
    assert (tmp_path / "summary").read_text() == "the card\n"
    assert (tmp_path / "audit.log").read_text() == "a/1.png\n"
    verdict = shell("Verdict", CODE=str(code))
    assert verdict.returncode == code
    assert ("::error::" in verdict.stdout) == (code != 0)
    assert ("threshold is exceeded; see the report" in verdict.stdout) == (code == 3)


def test_the_uploaded_files_are_those_that_a_run_writes(tmp_path: Path) -> None:
    from inversight.pipeline.outputs import write_report
    from inversight.report import load_report_data
    from tests.report.examples import write_run

    run = write_run(tmp_path / "audit")
    write_report(run, load_report_data(run))
    listed = BY_NAME["Keep the report and the card"]["with"]["path"].split("\n")
    names = [Path(line).name for line in listed if line]
    assert len(names) == 4 and all((run / name).is_file() for name in names)
