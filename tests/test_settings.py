"""Presets, precedence and the checks across settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import Field

from inversight.attacks import MiFace, PlugAndPlay, Ppdg
from inversight.attacks.ppdg import INNER
from inversight.core.config import build, settings, to_mapping
from inversight.core.errors import ConfigError
from inversight.models.target import Access
from inversight.settings import ATTACKS, PriorTraining, documented, lay, prior_training, resolve
from inversight.settings.presets import attack_budgets
from tests.examples import NoisePrior
from tests.refusals import refused

REAL: dict[str, Any] = {"private": "p", "public": "q"}

BOTH = pytest.mark.parametrize("given", [{}, REAL], ids=["digits", "real"])
PRESETS = ("quick", "standard", "thorough")


def every_preset(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test for each preset, with the digits and with images of one's own."""
    return pytest.mark.parametrize("preset", PRESETS)(BOTH(test))


@settings
class OwnAttack:
    """An attack by import path."""

    steps: int = 3
    """Steps of the own attack."""
    inner: PlugAndPlay = Field(default_factory=lambda: PlugAndPlay(steps=9))
    """The attack inside."""


class OwnPrior:
    """A prior whose settings are arguments."""

    def __init__(self, depth: int) -> None:
        self.depth = depth


def built(given: dict[str, Any], *attacks: Any, preset: str = "quick") -> list[Any]:
    """Return the attacks of an audit, Plug & Play by default."""
    attacks = attacks or ("plug-and-play",)
    found = resolve({**given, "preset": preset, "attack": list(attacks)})
    return [build(spec, ATTACKS, role="attack") for spec in found.attack]


def trained(**given: Any) -> PriorTraining:
    """Return the training of the prior of an audit."""
    found = prior_training(resolve({**REAL, **given}))
    assert found is not None
    return found


def complete(found: Any) -> Any:
    """All settings, with those that attacks and prior have by default."""
    attacks = [to_mapping(build(spec, ATTACKS, role="attack")) for spec in found.attack]
    return {**to_mapping(found), "attack": attacks, "prior": to_mapping(prior_training(found))}


@every_preset
def test_every_preset_reads_back_as_printed(preset: str, given: dict[str, Any]) -> None:
    own = {"class": f"{__name__}:OwnAttack", "inner": {"pool": 300}}
    found = resolve({**given, "preset": preset, "attack": [*ATTACKS, own]})
    assert found.preset == preset
    assert found.evaluator_training.architecture != found.target_training.architecture
    text = documented(found)
    again = resolve(yaml.safe_load(text))
    assert complete(again) == complete(found) and documented(again) == text
    for meaning in ("Steps of the own attack.", "natural-gradient: the natural gradient"):
        assert f"# {meaning}" in text or f"#   {meaning}" in text
    assert build(own, ATTACKS, role="attack").inner.steps == 9
    assert text.count("# Layers of small's mapping network.") == 1


@pytest.mark.parametrize(
    "prior",
    ["runs/prior", {"class": f"{__name__}:OwnPrior", "depth": 3}, {"config": "paper256", "r1": 3}],
    ids=["path", "own", "published"],
)
def test_every_prior_reads_back(prior: Any) -> None:
    found = resolve({**REAL, "prior": prior})
    again = resolve(yaml.safe_load(documented(found)))
    assert prior_training(again) == prior_training(found)
    if prior_training(found) is None:
        assert again.prior == found.prior == prior


def test_budgets_grow_with_the_preset() -> None:
    steps = [trained(preset=preset).steps for preset in PRESETS]
    assert steps == sorted(set(steps))
    for name in ("pool", "candidates", "keep"):
        values = [getattr(built(REAL, preset=preset)[0], name) for preset in PRESETS]
        assert values == sorted(values)


@every_preset
def test_black_box_attacks_cost_about_as_much_as_plug_and_play(
    preset: str, given: dict[str, Any]
) -> None:
    """Beside the agents and surrogates that are trained; a step forward and back is three images."""
    names = ("plug-and-play", "mirror-black-box", "cma-es", "c2f-mi", "rlb-mi", "brep-mi", "lokt")
    white, *others, lokt = built(given, *names, preset=preset)
    work = white.candidates * (3 * white.steps + white.crops)
    for attack in others:
        assert 0.95 * work < attack.workload(NoisePrior()).forward < 1.02 * work
        assert attack.keep == white.keep
        for name in ("crops", "crop_flip"):
            assert getattr(attack, name, getattr(white, name)) == getattr(white, name)
    for attack in others[:2]:
        assert attack.pool == white.pool
    assert lokt.white_box == white
    assert white.crop_flip == lokt.training.flip == (given != {})


def test_a_part_of_an_attack_can_be_set_alone() -> None:
    lokt, lomma = built(
        REAL,
        {"class": "lokt", "white_box": {"steps": 3}},
        {"class": "lomma", "training": {"width": 4}},
    )
    assert (lokt.white_box.steps, lokt.white_box.keep, lokt.images) == (3, 10, 6000)
    assert (lokt.training.epochs, lokt.training.batch_size) == (10, 64)
    assert (lomma.surrogates, lomma.images, lomma.pool) == (1, 2000, 2000)
    assert (lomma.training.width, lomma.training.epochs, lomma.training.rotation) == (4, 16, 0.0)


@every_preset
def test_white_box_attacks_cost_about_as_much_as_plug_and_play(
    preset: str, given: dict[str, Any]
) -> None:
    """Images forward and back before its halvings; pixels alone, without a prior, take twice as many."""
    names = [n for n in ATTACKS if build(n, ATTACKS, role="attack").access is Access.WHITE_BOX]
    names.remove("weight-reconstruction")  # it sends no image
    plain, *others = built(given, *names, preset=preset)
    assert isinstance(plain, PlugAndPlay) and len(others) == 9
    plain = replace(plain, halvings=0)
    for attack in others:
        share = 2 if isinstance(attack, MiFace) else 1
        assert 0.9 * share < attack.image_steps / plain.image_steps < 1.1 * share
        if isinstance(attack, Ppdg):
            attack = replace(attack.inner, pool=plain.pool)
        assert (attack.candidates, attack.keep) == (plain.candidates, plain.keep)
        assert attack.crop_flip == (given != {})
        assert getattr(attack, "pool", plain.pool) == plain.pool


@every_preset
def test_each_attack_has_a_budget_in_the_rounds_of_ppdg(preset: str, given: dict[str, Any]) -> None:
    for name in INNER:
        alone, around, also = built(
            given, name, {"class": "ppdg", "around": name},
            {"class": "ppdg", "around": {"class": name, "keep": 6}}, preset=preset,
        )  # fmt: skip
        assert type(around.inner) is type(alone) and also.inner == replace(around.inner, keep=6)
        assert around.inner.steps == pytest.approx(0.3 * alone.steps, abs=0.5)
        assert around.inner.candidates == alone.candidates
        assert getattr(around.inner, "pool", 500) == 500
    (changed,) = built(given, {"class": "ppdg", "around": {"steps": 3}}, preset=preset)
    assert isinstance(changed.inner, PlugAndPlay) and changed.inner.steps == 3


@every_preset
def test_a_reconstruction_from_the_weights_keeps_as_many(
    preset: str, given: dict[str, Any]
) -> None:
    plain, weights = built(given, "plug-and-play", "weight-reconstruction", preset=preset)
    assert weights.keep == plain.keep


def test_a_stage_has_the_same_budget_as_an_audit() -> None:
    for name in ("plug-and-play", "vmi", "cma-es", "lokt"):
        (spec,) = resolve({**REAL, "preset": "standard", "attack": [name]}).attack
        assert spec == {"class": name, **attack_budgets("standard")[name]}
    with pytest.raises(ConfigError, match="did you mean quick"):
        attack_budgets("quik")


def test_given_values_go_before_the_preset() -> None:
    given = {"prior": {"steps": 7}, "adaptation": {"steps": 3}, "evaluator_training": {"epochs": 2}}
    found = resolve({**REAL, **given})
    assert trained(**given).steps == 7 and found.adaptation.steps == 3
    assert (found.evaluator_training.epochs, found.evaluator_training.architecture) == (2, "vgg")
    (attack,) = built(REAL, {"class": "plug-and-play", "keep": 4})
    assert (attack.keep, attack.pool) == (4, 2000)


def test_the_digits_need_no_weights_and_show_pictures() -> None:
    found = resolve({})
    assert (found.embedding, found.features, found.guidance_embedding) == ("public",) * 3
    assert found.images == "full" and resolve(REAL).images == "none"
    assert resolve(REAL).embedding == "lpips-vgg" and resolve(REAL).private == Path("p")


def test_custom_priors_keep_their_settings() -> None:
    for own in ({"class": "my.module:Prior", "depth": 3}, {"class": "my.module:Prior"}):
        found = resolve({**REAL, "prior": own})
        assert found.prior == own and prior_training(found) is None
    assert resolve({**REAL, "prior": "my.module:Prior"}).prior == {"class": "my.module:Prior"}


@pytest.mark.parametrize("prior", ["style", {"class": "style"}, {"mirror": True}])
def test_a_named_prior_keeps_the_preset(prior: Any) -> None:
    training = trained(preset="thorough", prior=prior)
    assert (training.steps, training.width) == (60000, 64)


FIVE = {"class": "style", "steps": 5}
BOTH_FIVE = [{"class": "gmi", "steps": 5}, {"class": "vmi", "steps": 5}]


@pytest.mark.parametrize(
    ("name", "base", "over", "expected"),
    [
        ("prior", {"steps": 5}, "style", FIVE),
        ("prior", "style", {"steps": 5}, FIVE),
        ("prior", {"depth": 5}, "m:P", {"depth": 5, "class": "m:P"}),
        ("prior", FIVE, "m:P", {"class": "m:P"}),
        ("prior", FIVE, "run", "run"),
        ("prior", FIVE, None, None),
        ("prior", "run", {"class": "style"}, {"class": "style"}),
        ("attack", {"steps": 5}, ("gmi", "vmi"), BOTH_FIVE),
        ("attack", ["gmi", {"class": "vmi", "steps": 2}], {"steps": 5}, BOTH_FIVE),
        ("attack", ["gmi"], ["vmi"], [{"class": "vmi"}]),
        ("attack", ["gmi"], [], []),
    ],
)
def test_settings_without_a_class_change_the_part_that_is_named(
    name: str, base: Any, over: Any, expected: Any
) -> None:
    assert lay({name: base, "seed": 3}, {name: over}) == {name: expected, "seed": 3}
    assert lay({}, {"prior": "style"}) == {"prior": {"class": "style"}}


def test_rejects_settings_of_an_existing_prior() -> None:
    for base, over in (("run", {"steps": 5}), ({"steps": 5}, "run")):
        with refused("prior.steps: ", "prior is run"):
            lay({"prior": base}, {"prior": over})


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ({"preset": "quik"}, ("preset", "did you mean quick?")),
        ({**REAL, "guidance_embedding": "evaluator"}, ("--guidance-embedding", "an attacker")),
        ({"private": "p"}, ("--public is missing",)),
        ({"public": "q"}, ("--public needs --private",)),
        ({"target": "t"}, ("--target needs --private",)),
        ({**REAL, "mean": [0.1, 0.2]}, ("--mean", "1 or 3", "found 2")),
        ({**REAL, "std": [0.0]}, ("--std", "above 0")),
        ({**REAL, "size": 4}, ("size", "found 4")),
        ({**REAL, "memory": 1}, ("memory",)),
        ({**REAL, "seed": -1}, ("seed", "-1")),
        ({**REAL, "adaptation": {"stps": 1}}, ("adaptation.stps", "did you mean steps?")),
        ({**REAL, "images": "blured"}, ("images", "none, blurred, full", "did you mean blurred?")),
    ],
)
def test_rejects_wrong_settings_in_one_line(given: dict[str, Any], parts: tuple[str, ...]) -> None:
    with refused(*parts, error=ConfigError):
        resolve(given)


@every_preset
def test_truncation_by_preset(preset: str, given: dict[str, Any]) -> None:
    truncation = 0.5 if preset == "thorough" else 1.0
    chosen = {"class": "plug-and-play", "truncation": 0.7}
    for attack, expected in (("plug-and-play", truncation), (chosen, 0.7)):
        assert built(given, attack, preset=preset)[0].truncation == expected
