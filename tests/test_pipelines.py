"""The workflow in docs/pipelines.md is valid, its commands exist, and its shell scripts work."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from inversight.pipeline.result import thresholds
from tests.documentation import ROOT, blocks, parse_command

(WORKFLOW,) = blocks(ROOT / "docs" / "pipelines.md", "yaml")
STEPS: list[dict[str, Any]] = yaml.safe_load(WORKFLOW)["jobs"]["audit"]["steps"]
BY_NAME = {step["name"]: step for step in STEPS if "name" in step}
PRIVATE = ("reconstructions", "stages", "samples", "parquet", "run.json", "private-ids", ".log")


def test_pull_requests_do_not_start_the_workflow() -> None:
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
def test_commands_parse(name: str) -> None:
    lines = BY_NAME[name]["run"].replace("\\\n", " ").splitlines()
    (line,) = [line for line in lines if line.lstrip().startswith("inversight ")]
    context = parse_command(line.partition(" > ")[0])
    if name == "Audit":
        assert len(thresholds(context.params["fail_on"])) == 2
        assert context.params["hash_ids"] and context.params["images"] == "none"


def test_nothing_private_is_uploaded_cached_or_logged() -> None:
    for name in ("Keep the report and the card", "Prior from the last run"):
        for secret in PRIVATE:
            assert secret not in BY_NAME[name]["with"]["path"]
    for name in ("Train the prior", "Audit"):
        assert re.search(r'> "\$RUNNER_TEMP/\w+\.log" 2>&1', BY_NAME[name]["run"])


@pytest.mark.parametrize("code", [0, 1, 2, 3, 130])
def test_scripts_pass_on_the_exit_code(tmp_path: Path, code: int) -> None:
    """Both scripts run as on a runner, with a stand-in for inversight that leaves a card and a code."""
    stand_in = tmp_path / "bin" / "inversight"
    stand_in.parent.mkdir()
    stand_in.write_text(
        '#!/bin/sh\nwhile [ "$1" != --out ]; do shift; done\nmkdir -p "$2"\n'
        f'echo the card > "$2/model-card.md"\necho a/1.png >&2\nexit {code}\n'
    )
    stand_in.chmod(0o755)
    env = {
        "PATH": f"{stand_in.parent}:{os.environ['PATH']}", "RUNNER_TEMP": str(tmp_path),
        "GITHUB_OUTPUT": str(tmp_path / "output"), "GITHUB_STEP_SUMMARY": str(tmp_path / "summary"),
        "IMAGES": "/srv/images",
    }  # fmt: skip

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


def test_a_run_writes_the_uploaded_files(tmp_path: Path) -> None:
    from inversight.pipeline.report import report_stage
    from tests.report.examples import write_run

    run = write_run(tmp_path / "audit")
    report_stage(run)
    listed = BY_NAME["Keep the report and the card"]["with"]["path"].split("\n")
    names = [Path(line).name for line in listed if line]
    assert len(names) == 4 and all((run / name).is_file() for name in names)
