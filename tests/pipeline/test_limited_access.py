"""Audits of ONNX files, of services, and of models whose access is restricted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from inversight import AuditResult, audit, expose, resume
from inversight.attacks.endpoint import EndpointError
from inversight.core.config import import_object
from inversight.models.target import Access
from inversight.pipeline.defend import defend
from inversight.settings import ATTACKS, attacks_with, resolve
from tests.attacks.service import Answer, Service, good, serving
from tests.attacks.test_endpoint import status
from tests.command import CommandLine
from tests.models.onnx_files import Network, export
from tests.pipeline.tiny import TINY, own_target
from tests.refusals import refused

CMA: dict[str, Any] = {
    "pool": 20, "searches": 2, "population": 4, "generations": 2, "keep": 2, "crops": 2,
}  # fmt: skip
BREP: dict[str, Any] = {
    "pool": 20,
    "pools": 1,
    "searches": 2,
    "points": 3,
    "iterations": 2,
    "keep": 2,
}
SMALL: dict[str, Any] = {k: v for k, v in TINY.items() if k != "attack"}
pytestmark = pytest.mark.usefixtures("no_trials")


def halves(images: Tensor) -> Tensor:
    """Probabilities (N, 2) of images (N, 1, 8, 8): upper or lower half lighter."""
    upper, lower = images[:, :, :4].mean((1, 2, 3)), images[:, :, 4:].mean((1, 2, 3))
    return (8.0 * torch.stack([upper - lower, lower - upper], dim=1)).softmax(1)


@pytest.fixture
def service() -> Iterator[Service]:
    with serving(Service(lambda x: good({"probabilities": halves(x).tolist()}))) as one:
        yield one


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(export(Network(2), tmp_path / "model.onnx", batch=1))


def manifest(result: AuditResult) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((result.run / "run.json").read_text())
    return found


def endpoint(service: Service, query: str = "") -> str:
    return f"endpoint:{service.url}?retries=1&pause=0.01{query}"


@pytest.fixture
def of_onnx(grey: dict[str, Path], tmp_path: Path, model: str) -> AuditResult:
    return audit(**grey, **SMALL, target=model, attack=CMA, out=tmp_path / "run")


def test_names_of_black_box_attacks_are_those_that_need_no_more() -> None:
    for access in Access:
        able = [
            name
            for name, path in ATTACKS.items()
            if list(Access).index(import_object(path, role="attack").access)
            >= list(Access).index(access)
        ]
        assert sorted(attacks_with(access)) == sorted(able)


@pytest.mark.parametrize(
    ("given", "attack", "arm"),
    [
        ({"target": "m.onnx"}, "cma-es", "vanilla"),
        ({"target": "m.onnx", "access": "label"}, "brep-mi", "vanilla"),
        ({"target": "endpoint:http://h/p"}, "cma-es", "vanilla"),
        ({"target": "endpoint:http://h/p?access=label&rate=5"}, "brep-mi", "vanilla"),
        ({"target": "timm:x?weights=m.safetensors"}, "plug-and-play", "natural-gradient"),
        ({"target": "m.onnx", "attack": ["lokt"], "arm": "target-aware"}, "lokt", "target-aware"),
    ],
)
def test_attack_and_arm_follow_the_access(given: dict[str, Any], attack: str, arm: str) -> None:
    found = resolve({"private": "p", "public": "q", **given})
    (spec,) = found.attack
    assert isinstance(spec, dict) and (spec["class"], found.arm) == (attack, arm)
    assert len(spec) > 1  # the preset's budget


def test_onnx_is_audited_whole(of_onnx: AuditResult) -> None:
    found = manifest(of_onnx)
    assert found["target_access"] == found["target"]["access"] == "scores"
    assert found["attacks"] == ["cma-es"] and found["arm"] == "vanilla"
    # At most pool + classes x searches x (population x generations + crops).
    assert 0 < found["queries"]["cma-es"] <= 20 + 2 * 2 * (4 * 2 + 2)
    for key in ("ddcs_best", "flagged", "accuracy_top1", "coverage"):
        assert key in of_onnx.metrics
    assert {"loss", "margin", "entropy"} <= set(of_onnx.samples)
    assert "gradient_norm" not in of_onnx.samples
    report = (of_onnx.run / "report.html").read_text()
    card = (of_onnx.run / "model-card.md").read_text()
    assert "cma-es (access: scores" in card and "white-box" in card.partition("Not tried")[2][:60]
    assert "not tried" in report and "images sent to the target" in report


def test_its_shadow_models_are_attacked_alike(
    of_onnx: AuditResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    from inversight.pipeline import shadows

    seen = []
    run = shadows.run_attack
    monkeypatch.setattr(
        shadows,
        "run_attack",
        lambda a, model, *r, **k: seen.append(model.access) or run(a, model, *r, **k),
    )
    with refused("how the target was trained is not known; give --recipe"):
        expose(of_onnx.run, shadows=4)
    found = expose(of_onnx.run, shadows=4, recipe="tests.models.test_recipes:train", workers=1)
    assert found.metrics["exposure_mean"]["value"] is not None
    assert seen == [Access.SCORES] * 5  # and the target


def test_defences_are_attacked_alike(of_onnx: AuditResult) -> None:
    found = defend(of_onnx.run, ["tests.defences.examples:Other"]).found
    assert found["attacks"] == {"cma-es": "scores"}
    assert {row["name"]: row["failed"] for row in found["defences"]} == {
        "none": None, "given": None, "Other": None
    }  # fmt: skip
    inner = json.loads((of_onnx.run / "defences/runs/Other-1/run.json").read_text())
    assert inner["target"]["access"] == "scores"
    with refused("--ray", "cannot be sent"):
        defend(of_onnx.run, ["tests.defences.examples:Other"], ray="local")


@pytest.mark.parametrize(("access", "spec"), [("scores", CMA), ("label", BREP)])
def test_access_of_weights_can_be_restricted(
    grey: dict[str, Path], tmp_path: Path, access: str, spec: dict[str, Any]
) -> None:
    target = own_target(tmp_path)
    result = audit(**grey, **SMALL, target=target, access=access, attack=spec, out=tmp_path / "run")
    found = manifest(result)
    assert found["target_access"] == found["target"]["access"] == access
    assert ("loss" in result.samples) is (access == "scores")
    assert sum(found["queries"].values()) > 0


def test_a_target_trained_here_is_restricted(grey: dict[str, Path], tmp_path: Path) -> None:
    result = audit(
        **grey, **SMALL, access="scores", attack=CMA, arm="target-aware", out=tmp_path / "run"
    )
    found = manifest(result)
    assert found["target"]["access"] == "scores"
    assert found["queries"]["adaptation"] == 24  # each public image once


def test_a_service_is_audited_and_goes_on_after_it_was_down(
    grey: dict[str, Path], tmp_path: Path, service: Service
) -> None:
    out = tmp_path / "run"
    whole = audit(**grey, **SMALL, target=endpoint(service), attack=CMA, out=tmp_path / "whole")
    before = service.images
    sent = manifest(whole)["queries"]["cma-es"]
    answered: list[int] = []

    def once(images: Tensor) -> Answer:
        answered.append(len(images))
        return good({"probabilities": halves(images).tolist()})

    def fails_late(images: Tensor) -> Answer:
        """Down after the pool and the first class."""
        done = out / "stages"
        finished = list(done.rglob("finished/*/facts.json")) if done.exists() else []
        return status(503)(images) if finished else once(images)

    service.usual = fails_late
    with pytest.raises(EndpointError, match=r"1 of 2 classes are finished and kept in .* --resume"):
        audit(**grey, **SMALL, target=endpoint(service), attack=CMA, out=out)
    service.usual = once
    result = resume(out)
    assert {k: v["value"] for k, v in result.metrics.items()} == {
        k: v["value"] for k, v in whole.metrics.items()
    }
    again = manifest(result)["queries"]["cma-es"]
    assert sent <= again <= sent + 20  # the pool was classified twice
    assert before < service.images


def test_a_service_of_labels(grey: dict[str, Path], tmp_path: Path, service: Service) -> None:
    service.usual = lambda x: good({"labels": [("ann", "bob")[i] for i in halves(x).argmax(1)]})
    target = endpoint(service, "&access=label")
    result = audit(**grey, **SMALL, target=target, attack=BREP, out=tmp_path / "run")
    found = manifest(result)
    assert found["target_access"] == "label" and found["attacks"] == ["brep-mi"]
    assert found["given"]["target"] == target  # not taken for a path


def test_a_limit_of_queries_holds(grey: dict[str, Path], tmp_path: Path, model: str) -> None:
    given = {**CMA, "most_queries": 25}
    result = audit(**grey, **SMALL, target=model, attack=given, out=tmp_path / "run", budget=[22])
    assert manifest(result)["queries"]["cma-es"] <= 25


REFUSED: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "attack": (
        {"attack": ["plug-and-play"]},
        (
            "--attack plug-and-play: needs white-box access",
            "gives scores only",
            "another --attack: cma-es, ",
            "lokt",
        ),
    ),
    "arm": (
        {"arm": "natural-gradient"},
        ("arm natural-gradient needs white-box access", "--arm vanilla or target-aware", "steps=0"),
    ),
    "arm with labels": (
        {"arm": "target-aware", "access": "label", "attack": BREP},
        ("give --arm vanilla, or --set",),
    ),
    "pivots": ({"adaptation": {"steps": 2, "pivots": 2}}, ("adaptation.pivots needs gradients",)),
    "more access": (
        {"access": "white-box", "attack": ["cma-es"]},
        ("gives scores access only", "leave --access white-box"),
    ),
    "headers": ({"endpoint_header": ["A=B"]}, ("--endpoint-header", "leave it out")),
    "access": ({"access": "none"}, ("access: expected", "white-box")),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_needs_more_access_is_refused_before_anything_is_written(
    grey: dict[str, Path], tmp_path: Path, model: str, case: str
) -> None:
    given, parts = REFUSED[case]
    with refused(*parts):
        audit(**grey, **{**SMALL, "target": model, "attack": CMA, **given}, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_onnx_evaluator_is_refused(grey: dict[str, Path], tmp_path: Path, model: str) -> None:
    with refused("--evaluator", "gives scores access only", "or leave it out"):
        audit(**grey, **SMALL, evaluator=model, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_commands_say_what_is_wrong_in_one_line(
    here: dict[str, Path], cli: CommandLine, service: Service
) -> None:
    export(Network(2), Path("model.onnx"))
    folders = "--private private --public public --embedding public --features public"
    gone = service.url.replace("127.0.0.1", "localhost.invalid")
    for down in (f"endpoint:{gone}?retries=0", "endpoint:http://127.0.0.1:9/x?retries=0"):
        cli.refuses(f"audit {folders} --target {down}", "--target endpoint:", "tries")
    spec = endpoint(service)
    cli.refuses(f"audit {folders} --target {spec} --mean 0.5", "leave --mean and --std out")
    cli.refuses(
        f"audit {folders} --target {spec} --endpoint-header Authorization=NO_SUCH_VARIABLE",
        "NO_SUCH_VARIABLE is not set",
    )
    cli.refuses(
        f"audit {folders} --target {spec} --access white-box --arm vanilla",
        "gives scores access only",
    )
    cli.refuses(
        f"audit {folders} --target {spec} --evaluator {spec}", "--evaluator", "is a service"
    )
    labels = endpoint(service, "&access=label")
    cli.refuses(f"triage --private private --target {labels} --out t", "no signals")
    out, _ = cli.succeeds(f"triage --private private --target {spec} --out t")
    assert "Most at risk" in out
    cli.succeeds("triage --private private --target model.onnx --out t2")


def test_missing_class_names_of_a_service(
    grey: dict[str, Path], tmp_path: Path, service: Service
) -> None:
    service.usual = lambda x: good({"probabilities": [[0.2, 0.3, 0.5]] * len(x)})
    with refused("expected probabilities of shape (1, 2), found (1, 3)"):
        audit(**grey, **SMALL, target=endpoint(service), out=tmp_path / "run")
    (tmp_path / "classes.txt").write_text("one\ntwo\nthree\n")
    with refused("class ann of --private is not among the 3 classes"):
        audit(
            **grey, **SMALL, target=endpoint(service), classes=tmp_path / "classes.txt",
            out=tmp_path / "run",
        )  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_single_commands_take_an_onnx_file(trained: dict[str, Path], cli: CommandLine) -> None:
    export(Network(2), Path("model.onnx"))
    Path("classes.txt").write_text("ann\nbob\n")
    given = "--prior prior --target model.onnx --classes classes.txt"
    cli.refuses(f"attack {given} --out a", "needs white-box access", "another --attack: cma-es")
    small = " ".join(f"--set {name}={value}" for name, value in CMA.items())
    _, err = cli.succeeds(f"attack {given} --out a --attack cma-es {small}")
    assert "images sent to the target, scores access" in err
    cli.refuses(f"adapt {given} --public public --out b", "give --arm vanilla or target-aware")
    cli.succeeds(
        f"adapt {given} --public public --out b --arm vanilla --set steps=2 --features none"
    )
