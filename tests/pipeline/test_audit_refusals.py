"""What is wrong with an audit's input is said before anything is written or trained."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inversight import InputError, audit
from inversight.core.console import Quiet
from inversight.core.seeding import generator
from inversight.pipeline.plan import Plan
from inversight.priors import StylePrior, train_prior
from inversight.priors.architecture import Architecture
from inversight.priors.stylegan2 import Discriminator, Generator
from inversight.settings import ATTACKS, PriorTraining, resolve
from tests.pipeline.tiny import TINY, own_weights, shared_file


def remove_public(folders: dict[str, Path]) -> dict[str, Any]:
    return {"private": folders["private"]}


def one_class(folders: dict[str, Path]) -> dict[str, Any]:
    return {"private": folders["private"], "public": folders["public"], "limit": 1}


def foreign_holdout(folders: dict[str, Path]) -> dict[str, Any]:
    (folders["holdout"] / "bob").rename(folders["holdout"] / "eve")
    return dict(folders)


def missing_holdout(folders: dict[str, Path]) -> dict[str, Any]:
    shutil.rmtree(folders["holdout"] / "bob")
    return dict(folders)


def shared_holdout(folders: dict[str, Path]) -> dict[str, Any]:
    shutil.copy(folders["private"] / "ann" / "3.png", folders["holdout"] / "ann" / "copy.png")
    return dict(folders)


def fail_without_holdout(folders: dict[str, Path]) -> dict[str, Any]:
    return {"private": folders["private"], "public": folders["public"], "fail_on": "flagged>0.05"}


def control_with_holdout(folders: dict[str, Path]) -> dict[str, Any]:
    return {**folders, "fail_on": "control_gap>0"}


def target_of_three(folders: dict[str, Path]) -> dict[str, Any]:
    weights = own_weights(folders["private"].parent / "w.safetensors", classes=3)
    return {**folders, "target": f"tests.examples:own_network?weights={weights}"}


def linear_target(folders: dict[str, Path]) -> dict[str, Any]:
    weights = own_weights(folders["private"].parent / "w.safetensors", classes=2)
    target = f"tests.examples:own_network?weights={weights}"
    return {**folders, "target": target, "arm": "projected"}


def one_attack(name: str, **others: Any) -> Callable[[dict[str, Path]], dict[str, Any]]:
    return lambda folders: {**folders, **others, "attack": [name]}


def no_linear_layer(folders: dict[str, Path]) -> dict[str, Any]:
    return {**folders, "attack": ["lomma"], "target": "tests.examples:own_convolution"}


def conditional_prior(folders: dict[str, Path]) -> dict[str, Any]:
    small = Architecture(size=8, channels=1, z_dim=2, w_dim=2, c_dim=3, channel_max=2)
    file = folders["private"].parent / "prior.safetensors"
    networks = Generator(small), Generator(small), Discriminator(small)
    StylePrior(*networks, PriorTraining()).save(file)
    return {**folders, "attack": ["gmi"], "prior": str(file), "adaptation": {"steps": 0}}


def too_many_kept(folders: dict[str, Path]) -> dict[str, Any]:
    return {**folders, "attack": [{"class": "plug-and-play", "candidates": 4, "keep": 5}]}


OWN_PRIOR = {"class": "tests.examples:NoisePrior"}


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (one_attack("gmi", prior=OWN_PRIOR), "--attack gmi: needs a prior with a critic"),
        (one_attack("ked-mi", prior=OWN_PRIOR), "--attack ked-mi: needs a prior with a critic"),
        (one_attack("if-gmi", prior=OWN_PRIOR), "--attack if-gmi: needs a prior with intermediate"),
        (no_linear_layer, "--attack lomma: needs the target's penultimate features"),
        (conditional_prior, "--attack gmi: needs a critic that judges an image alone"),
        (
            one_attack("tests.examples:DemandingAttack"),
            "--attack DemandingAttack: needs a prior that sings",
        ),
        (too_many_kept, "--attack plug-and-play: expected keep <= candidates <= pool"),
    ],
)
def test_what_an_attack_will_lack_is_said_before_anything_is_trained(
    grey: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    prepare: Callable[[dict[str, Path]], dict[str, Any]],
    message: str,
) -> None:
    monkeypatch.setattr(Plan, "forecast", lambda _: pytest.fail("went on to the timing"))
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        audit(out=tmp_path / "run", **TINY | prepare(grey))
    assert "--attack" in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("architecture", ["resnet", "vgg"])
def test_priors_and_targets_trained_here_have_what_every_attack_needs(
    grey: dict[str, Path], architecture: str
) -> None:
    given: dict[str, Any] = {**grey, **TINY, "target_training": {"architecture": architecture}}
    given["adaptation"] = {**TINY["adaptation"], "pseudo_labels_top": 5}
    usual = [name for name in ATTACKS if name != "plg-mi"]
    known = [name for name in ATTACKS if name not in ("gmi", "ked-mi", "lomma")]
    for arm, names in (
        ("pseudo-labels", known),
        ("conditional", known),
        ("target-aware", usual),
        ("projected", usual),
        ("vanilla", usual),
    ):
        plan = Plan.prepare(resolve({**given, "arm": arm, "attack": names}), Quiet())
        assert list(plan.attacks) == names
    trained = train_prior(
        plan.public_for_prior.images,
        training=PriorTraining(steps=1, batch_size=4, width=2),
        rng=generator(0),
    )
    likely = plan.likely_prior
    assert isinstance(likely, StylePrior)
    assert (likely.image_shape, likely.blocks) == (trained.image_shape, trained.blocks)
    assert plan.likely_target.classes == plan.inputs.classes


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (remove_public, "--public is missing"),
        (one_class, "a classifier needs at least two"),
        (shared_file, "ann/3.png = x/copy.bmp"),
        (foreign_holdout, "class eve is not in --private"),
        (missing_holdout, "has no images of class bob"),
        (
            shared_holdout,
            "--private and --holdout share 1 image(s), first ann/3.png = ann/copy.png",
        ),
        (fail_without_holdout, "flagged needs a holdout"),
        (control_with_holdout, "control_gap is of audits without a holdout"),
        (lambda folders: {**folders, "fdr": 1.0}, "fdr: expected less than 1"),
        (lambda folders: {**folders, "fdr": 0.0}, "fdr: expected greater than 0"),
        (target_of_three, "3 outputs, --private has 2 classes"),
        (linear_target, "arm projected needs a target with convolutions"),
    ],
)
def test_wrong_input_writes_nothing(
    grey: dict[str, Path],
    tmp_path: Path,
    prepare: Callable[[dict[str, Path]], dict[str, Any]],
    message: str,
) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        audit(out=tmp_path / "run", **prepare(grey), **TINY)
    assert not (tmp_path / "run").exists()
