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
from inversight.settings import ATTACKS, PriorTraining, resolve
from tests.pipeline.tiny import TINY, own_target, shared_file
from tests.priors.stylegan2_files import random_prior

Prepare = Callable[[dict[str, Path]], dict[str, Any]]
"""The arguments of an audit from the test's image folders, which may be changed."""


def also(**others: Any) -> Prepare:
    """Return the arguments ``others`` beside the folders; None removes one."""
    return lambda folders: {k: v for k, v in {**folders, **others}.items() if v is not None}


def foreign_holdout(folders: dict[str, Path]) -> dict[str, Any]:
    (folders["holdout"] / "bob").rename(folders["holdout"] / "eve")
    return dict(folders)


def missing_holdout(folders: dict[str, Path]) -> dict[str, Any]:
    shutil.rmtree(folders["holdout"] / "bob")
    return dict(folders)


def shared_holdout(folders: dict[str, Path]) -> dict[str, Any]:
    shutil.copy(folders["private"] / "ann" / "3.png", folders["holdout"] / "ann" / "copy.png")
    return dict(folders)


def linear_target(classes: int, **others: Any) -> Prepare:
    def prepare(folders: dict[str, Path]) -> dict[str, Any]:
        return {**folders, "target": own_target(folders["private"].parent, classes), **others}

    return prepare


def conditional_prior(folders: dict[str, Path]) -> dict[str, Any]:
    small = Architecture(size=8, channels=1, z_dim=2, w_dim=2, c_dim=3, channel_max=2)
    file = folders["private"].parent / "prior.safetensors"
    random_prior(small).save(file)
    return {**folders, "attack": ["gmi"], "prior": str(file), "adaptation": {"steps": 0}}


OWN = {"class": "tests.examples:NoisePrior"}
DEMANDING = "tests.examples:DemandingAttack"
TOO_MANY = {"class": "plug-and-play", "candidates": 4, "keep": 5}
NO_LINEAR_LAYER = {"attack": ["lomma"], "target": "tests.examples:own_convolution"}


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (also(attack=["gmi"], prior=OWN), "gmi: needs a prior with a critic"),
        (also(attack=["ked-mi"], prior=OWN), "ked-mi: needs a prior with a critic"),
        (also(attack=["if-gmi"], prior=OWN), "if-gmi: needs a prior with intermediate"),
        (also(**NO_LINEAR_LAYER), "lomma: needs the target's penultimate features"),
        (conditional_prior, "gmi: needs a critic that judges an image alone"),
        (also(attack=[DEMANDING]), "DemandingAttack: needs a prior that sings"),
        (
            also(attack=["weight-reconstruction"]),
            "weight-reconstruction: needs a multilayer perceptron on pixels (Linear and ReLU) with more "
            "parameters than training images x pixels: of untrained, it has Conv2d layers (its ",
        ),
        (also(attack=[TOO_MANY]), "plug-and-play: expected keep <= candidates <= pool"),
    ],
)
def test_rejects_attacks_that_will_lack_something_before_anything_is_trained(
    grey: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prepare: Prepare,
    message: str,
) -> None:  # fmt: skip
    estimate = "inversight.pipeline.audit.estimate"
    monkeypatch.setattr(estimate, lambda _: pytest.fail("went on to the timing"))
    with pytest.raises(InputError, match=re.escape(f"--attack {message}")) as caught:
        audit(out=tmp_path / "run", **TINY | prepare(grey))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("architecture", ["resnet", "vgg"])
def test_priors_and_targets_trained_here_have_what_every_attack_needs(
    grey: dict[str, Path], architecture: str
) -> None:
    given: dict[str, Any] = {**grey, **TINY, "target_training": {"architecture": architecture}}
    given["adaptation"] = {**TINY["adaptation"], "pseudo_labels_top": 5}
    others = [name for name in ATTACKS if name != "weight-reconstruction"]  # it needs a perceptron
    usual = [name for name in others if name != "plg-mi"]
    known = [name for name in others if name not in ("gmi", "ked-mi", "lomma")]
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
    assert plan.likely_target.classes == plan.inputs.private.classes


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (also(public=None), "--public is missing"),
        (also(holdout=None, limit=1), "a classifier needs at least two"),
        (shared_file, "ann/3.png = x/copy.bmp"),
        (foreign_holdout, "class eve is not in --private"),
        (missing_holdout, "has no images of class bob"),
        (
            shared_holdout,
            "--private and --holdout share 1 image(s), first ann/3.png = ann/copy.png",
        ),
        (also(holdout=None, fail_on="flagged>0.05"), "flagged needs a holdout"),
        (also(fail_on="control_gap>0"), "control_gap is of audits without a holdout"),
        (also(fdr=1.0), "fdr: expected less than 1"),
        (also(fdr=0.0), "fdr: expected greater than 0"),
        (linear_target(3), "3 outputs, --private has 2 classes"),
        (linear_target(2, arm="projected"), "arm projected needs a target with convolutions"),
    ],
)
def test_wrong_input_writes_nothing(
    grey: dict[str, Path], tmp_path: Path, prepare: Prepare, message: str
) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        audit(out=tmp_path / "run", **prepare(grey), **TINY)
    assert not (tmp_path / "run").exists()
