"""``--attack strongest``: what it stands for, for each target, and that a run goes on with it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from inversight import AuditResult, audit, resume
from inversight.core.console import Quiet
from inversight.core.seeding import generator
from inversight.models.target import Access
from inversight.pipeline.attack import build_attack
from inversight.pipeline.plan import Plan
from inversight.settings import attacks_with, documented, resolve, strongest_attack
from inversight.settings.strongest import TABLE, Measured
from tests.command import CommandLine
from tests.models.onnx_files import Network, export
from tests.pipeline.tiny import SMALL_ATTACK, TINY, Stop, StopAt, hashes
from tests.refusals import refused

pytestmark = pytest.mark.usefixtures("no_trials")
WEIGHTLESS = "--embedding public --features public --guidance-embedding public"


@dataclass
class Listening(Quiet):
    """Keeps what is said."""

    said: list[str] = field(default_factory=list)

    def say(self, text: str) -> None:
        self.said.append(text)


def prepare(*attacks: Any, **given: Any) -> tuple[Plan, list[str]]:
    """Return the plan of an audit with these attacks, and what was said."""
    listening = Listening()
    return Plan.prepare(resolve({**TINY, **given, "attack": attacks}), listening), listening.said


def perceptron(folder: Path, *, images: int | None = 12, varying: int = 64) -> str:
    """Return a perceptron of 48 neurons whose first layer is a sum over so many images; None: of noise.

    Their last pixels are constant, from number ``varying`` on.
    """
    rng = generator(0)
    first = torch.randn(48, 65, generator=rng)
    if images is not None:
        pixels = torch.rand(images, 64, generator=rng)
        pixels[:, varying:] = 0.5
        first = first[:, :images] @ torch.cat([pixels, torch.ones(images, 1)], dim=1)
    second = {"3.weight": torch.randn(2, 48, generator=rng), "3.bias": torch.zeros(2)}
    weights = {
        "1.weight": first[:, :64].contiguous(),
        "1.bias": first[:, 64].contiguous(),
        **second,
    }
    save_file(weights, folder / "own.safetensors")
    return f"tests.examples:own_perceptron?weights={folder / 'own.safetensors'}"


@pytest.mark.parametrize(
    ("access", "name", "parts"),
    [
        (None, "plug-and-play", ("white-box access", "on digits at 8x8", "effect over error 10.7")),
        ("scores", "cma-es", ("scores access", "on digits at 8x8", "effect over error of 8.9")),
        ("label", "brep-mi", ("label access", "on digits at 8x8", "effect over error of 7.6")),
    ],
)
def test_it_is_the_named_attack_for_every_access(
    grey: dict[str, Path], tmp_path: Path, access: str | None, name: str, parts: tuple[str, ...]
) -> None:
    target = None if access is None else str(export(Network(2), tmp_path / "m.onnx", batch=1))
    given = {**grey, "target": target, "access": access}
    found, said = prepare("strongest", **given)
    named, silent = prepare(name, **given)
    assert found.settings == named.settings and found.attacks == named.attacks
    assert list(found.attacks) == [name] and silent == []
    (reason,) = said
    assert (
        reason.startswith(f"--attack strongest is {name} here, ") and "carried over" not in reason
    )
    assert not [part for part in parts if part not in reason]
    facts = found.manifest()
    assert facts["chosen"] == reason and facts["notes"] == [reason]
    again, nothing = Listening(), json.loads(json.dumps(facts["given"]))
    assert Plan.prepare(resolve(nothing), again).attacks == named.attacks and again.said == []


def test_the_demonstration_has_its_own_budget() -> None:
    found, said = prepare("strongest")
    assert found.settings == prepare("plug-and-play")[0].settings and len(said) == 1


def test_weights_that_show_their_images_are_read(grey: dict[str, Path], tmp_path: Path) -> None:
    target = perceptron(tmp_path)
    found, said = prepare("strongest", **grey, target=target)
    assert list(found.attacks) == ["weight-reconstruction"]
    assert found.settings == prepare("weight-reconstruction", **grey, target=target)[0].settings
    assert said[0].startswith("--attack strongest is weight-reconstruction here, ")
    assert "the span of 12 training images" in said[0]


@pytest.mark.parametrize(
    ("weights", "given", "name"),
    [
        ({"images": None}, {}, "plug-and-play"),  # no span is seen
        ({"images": 6}, {}, "plug-and-play"),  # there are twice as many images
        ({"images": 30}, {}, "plug-and-play"),  # too few neurons to read one
        ({"images": 40, "varying": 15}, {}, "plug-and-play"),  # the span of the pixels that vary
        ({}, {"access": "scores"}, "cma-es"),
    ],
)
def test_other_weights_are_attacked_by_the_table(
    grey: dict[str, Path], tmp_path: Path, weights: dict[str, Any], given: dict[str, Any], name: str
) -> None:
    target = perceptron(tmp_path, **weights)
    assert list(prepare("strongest", **grey, target=target, **given)[0].attacks) == [name]


def test_what_the_weights_cannot_hold_is_not_read_out(
    grey: dict[str, Path], tmp_path: Path
) -> None:
    """The check of the attack refuses so many images."""
    with refused("--attack plug-and-play: unknown setting images"):
        prepare({"class": "strongest", "images": 80}, **grey, target=perceptron(tmp_path))


def test_settings_go_to_the_attack_and_several_attacks_are_one_each(grey: dict[str, Path]) -> None:
    assert prepare({"class": "strongest", "steps": 7}, **grey)[0].settings.attack == (
        prepare({"class": "plug-and-play", "steps": 7}, **grey)[0].settings.attack
    )
    assert list(prepare("mirror", "strongest", **grey)[0].attacks) == ["mirror", "plug-and-play"]
    assert list(prepare("strongest", "plug-and-play", **grey)[0].attacks) == ["plug-and-play"]
    with refused("--attack strongest: is plug-and-play here", "with other settings"):
        prepare("strongest", {"class": "plug-and-play", "steps": 7}, **grey)
    with refused("--attack strongest: is given twice"):
        prepare("strongest", "strongest", **grey)
    with refused("--attack plug-and-play: unknown setting stps; did you mean steps?"):
        prepare({"class": "strongest", "stps": 7}, **grey)
    with refused("--attack strongst: expected one of", "did you mean strongest?"):
        prepare("strongst", **grey)
    with refused("--attack strongest: is chosen by `inversight audit`"):
        build_attack("strongest")
    with refused("--attack ppdg: ", "around strongest: expected one of plug-and-play"):
        prepare({"class": "ppdg", "around": "strongest"}, **grey)


def test_a_resumed_run_keeps_the_attack_and_the_reason(
    finished: AuditResult, grey: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, (small,) = tmp_path / "run", TINY["attack"]
    with pytest.raises(Stop):
        audit(
            out=run, reporter=StopAt("plug-and-play", 1), **grey,
            **{**TINY, "attack": {**small, "class": "strongest"}},
        )  # fmt: skip
    other = (Measured("white-box", 8, "mirror", "digits", "it is new", "docs"),)
    monkeypatch.setattr("inversight.settings.strongest.TABLE", other)
    result = resume(run)
    assert hashes(run) == hashes(finished.run)
    manifest = json.loads((run / "run.json").read_text())
    assert manifest["attacks"] == ["plug-and-play"]
    assert manifest["settings"]["attack"][0]["class"] == "plug-and-play"
    reasons = [note for note in manifest["notes"] if note.startswith("--attack strongest is plug-")]
    assert reasons == [manifest["chosen"]]
    assert manifest["chosen"].partition("(")[0] in (result.run / "report.html").read_text()


def test_the_table_names_an_attack_for_every_access_and_size() -> None:
    for row in TABLE:
        assert row.attack in attacks_with(row.access) and row.attack != "weight-reconstruction"
    assert len({(row.access, row.edge) for row in TABLE}) == len(TABLE)
    for access in Access:
        for edge in (1, 8, 20, 64, 1024):
            name, reason = strongest_attack(access, edge)
            measured = any((row.access, row.edge) == (access, edge) for row in TABLE)
            carried = f"nothing was measured at {edge}x{edge}, so this is carried over" in reason
            assert f"is {name} here" in reason and carried is not measured


def test_a_row_holds_up_to_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    table = [Measured("scores", e, f"a{e}", "x", "y", "z") for e in (32, 8)]
    monkeypatch.setattr("inversight.settings.strongest.TABLE", table)
    found = [strongest_attack("scores", edge)[0] for edge in (7, 8, 9, 32, 33)]
    assert found == ["a8", "a8", "a32", "a32", "a32"]


def test_printed_settings_leave_it_open() -> None:
    found = resolve({"attack": [{"class": "strongest", "steps": 5}, "gmi"]})
    text = documented(found)
    again = resolve(yaml.safe_load(text))
    assert again.attack[0] == {"class": "strongest", "steps": 5} and documented(again) == text


def test_commands_know_it(trained: dict[str, Path], cli: CommandLine) -> None:
    folders = f"--private private --public public {WEIGHTLESS}"
    cli.refuses(f"audit {folders} --attack strongst", "did you mean strongest?")
    assert "strongest" in cli.succeeds("audit --print-config")[0]
    out, err = cli.succeeds(
        "attack --prior prior --target target --attack strongest --out a", SMALL_ATTACK
    )
    assert "--attack strongest is plug-and-play here, as with white-box access" in err
    assert "score it with" in out
    assert {file.name[:14] for file in Path("a").rglob("*.png")} == {"plug-and-play-"}
    Path("classes.txt").write_text("ann\nbob\n")
    down = "endpoint:http://127.0.0.1:9/x?retries=0"
    code, _, err = cli(
        f"attack --prior prior --target '{down}&access=label' --classes classes.txt",
        "--attack strongest --out b",
    )
    assert code == 2 and "--attack strongest is brep-mi here" in err and not Path("b").exists()
