"""The evaluator that another process trains beside the prior."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inversight import AuditResult, audit
from inversight.core.console import Quiet
from inversight.core.run import read_manifest
from inversight.models.networks import FILE_NAME
from inversight.pipeline import beside, execution
from inversight.pipeline.beside import with_stage_beside
from inversight.pipeline.estimate import Estimate
from inversight.pipeline.plan import Plan
from inversight.pipeline.train import network_stage
from inversight.settings import AuditSettings, resolve
from tests.pipeline.tiny import TINY

LONG = {"target": 5.0, "evaluator": 5.0, "prior": 30.0}
SINGLE = {"evaluator": 1, "prior": 1, "public-network": 1}


def evaluator_of(run: Path) -> bytes:
    return (run / "stages" / "evaluator" / FILE_NAME).read_bytes()


def begin_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "inversight.pipeline.audit.with_stage_beside",
        lambda plan, forecast: replace(forecast, beside="evaluator"),
    )


def test_another_process_trains_the_same_evaluator(
    finished: AuditResult, grey: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def others_alone(folder: Path, *arguments: Any, name: str, **rest: Any) -> object:
        assert name != "evaluator"
        return network_stage(folder, *arguments, name=name, **rest)

    begin_beside(monkeypatch)
    monkeypatch.setattr(execution, "network_stage", others_alone)  # of this process
    run = audit(out=tmp_path / "run", **grey, **TINY).run
    assert evaluator_of(run) == evaluator_of(finished.run)
    assert (run / "metrics.json").read_text() == (finished.run / "metrics.json").read_text()
    manifest = read_manifest(run)
    assert manifest["beside"] == "evaluator"
    assert "evaluator" in [stage["name"] for stage in manifest["stages"]]


def test_this_process_trains_what_a_lost_one_has_not(
    finished: AuditResult, grey: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin_beside(monkeypatch)
    monkeypatch.setattr(beside, "fill_stage", lambda *_: os._exit(1))
    run = audit(out=tmp_path / "run", **grey, **TINY).run
    assert evaluator_of(run) == evaluator_of(finished.run)


@pytest.mark.parametrize(
    ("seconds", "threads", "shadows", "expected"),
    [
        ({}, {}, 0, 1),
        ({}, {"evaluator": 2}, 0, 1),  # no more than the prior leaves
        ({}, {}, 8, None),
        ({"evaluator": 1.0}, {}, 0, None),  # over before another process has started
        ({"prior": 12.0}, {}, 0, None),
        ({}, {"prior": 2}, 0, None),  # no core is free
    ],
)
def test_the_evaluator_is_trained_beside_where_it_pays(
    seconds: dict[str, float], threads: dict[str, int], shadows: int, expected: int | None,
    grey: dict[str, Path], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(beside, "usable_threads", lambda: 2)
    plan = Plan.prepare(settings_of(grey, shadows), reporter=Quiet())
    before = Estimate(LONG | seconds, 0, 0, threads=SINGLE | threads)
    after = with_stage_beside(plan, before)
    if expected is None:
        assert after == before
    else:
        assert after.beside == "evaluator" and after.threads["evaluator"] == expected
        assert after.total == before.total - LONG["evaluator"]


def test_threads_that_were_given_are_all(grey: dict[str, Path]) -> None:
    plan = Plan.prepare(settings_of(grey, 0), reporter=Quiet())
    assert with_stage_beside(plan, Estimate(LONG, 0, 0)).beside is None


def settings_of(folders: dict[str, Path], shadows: int) -> AuditSettings:
    return resolve({**folders, **TINY, "shadows": shadows})
