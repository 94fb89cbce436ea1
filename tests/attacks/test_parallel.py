"""Several processes together reconstruct what one process does, and end together."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from inversight.attacks import (
    Attack,
    CmaEs,
    MiFace,
    MirrorGenetic,
    Ppdg,
    QueriesSpentError,
    Reconstructions,
    WeightReconstruction,
    run_assigned,
    run_attack,
)
from inversight.attacks.base import NoSampleError
from inversight.attacks.parallel import PartialResult, assignments, gather
from inversight.core.errors import InputError
from inversight.core.processes import ALONE
from inversight.core.seeding import generator
from inversight.models.target import Access
from inversight.priors import Prior
from tests.attacks.table import CASES
from tests.attacks.toy import CLASSES, LABELS, LinearPrior, NearestByLayer, OpenPrior, toy_target
from tests.attacks.two_processes import CASES as TOGETHER
from tests.attacks.two_processes import attacked
from tests.priors.tiny import one_of

EACH = {name: CASES[name].attack for name in CLASSES if name != "weight-reconstruction"}
"""Attacks that send images to the target."""


def every(attack: Attack, processes: int, module: NearestByLayer) -> list[PartialResult]:
    prior: Prior = LinearPrior() if attack.access is Access.LABEL else OpenPrior()
    if isinstance(attack, Ppdg):
        prior = CASES["ppdg"].prior
    return [
        run_assigned(
            attack, toy_target(module), prior, LABELS, rng=generator(0),
            processes=one_of(processes, index),
        )
        for index in range(processes)
    ]  # fmt: skip


def together_as(parts: list[PartialResult], name: str) -> Tensor:
    return torch.cat([getattr(part.found, name) for part in parts if part.found is not None])


@pytest.mark.parametrize("name", EACH)
def test_the_parts_equal_the_whole(name: str) -> None:
    """Also in the order of it; each image that was sent is counted where it was."""
    module, attack = NearestByLayer(), EACH[name]
    (whole,) = every(attack, 1, module)
    module.images = 0
    parts = every(attack, 2, module)
    assert sum(part.sent for part in parts) == module.images >= whole.sent
    assert torch.equal(together_as(parts, "labels"), together_as([whole], "labels"))
    for what in ("images", "latents", "losses"):
        torch.testing.assert_close(
            together_as(parts, what), together_as([whole], what), rtol=1e-3, atol=1e-4
        )


def test_classes_are_divided_evenly_and_in_order() -> None:
    attack, labels = EACH["plug-and-play"], torch.tensor([7, 3, 5, 4, 9])

    def parts(attack: Attack, labels: Tensor, processes: int) -> list[list[int]]:
        return [own.tolist() for _, own in assignments(attack, OpenPrior(), labels, processes)]

    assert parts(attack, labels, 3) == [[7, 3], [5, 4], [9]]
    assert parts(attack, labels[:2], 4) == [[7], [3], [], []]
    for joint in (MiFace(), WeightReconstruction()):
        assert parts(joint, labels, 3) == [labels.tolist(), [], []]


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        # Three pools of 300, and what is left for two, two and one of the five classes.
        (1900, [300 + 400, 300 + 400, 300 + 200]),
        # A third pool would be more than all.
        (800, [300 + 120, 300 + 80]),
        (500, [500]),
        # Below one pool nothing can be done, by whomever.
        (200, [200]),
    ],
)
def test_a_query_limit_is_divided(most: int, expected: list[int]) -> None:
    attack = MirrorGenetic(pool=300, most_queries=most)
    shares = assignments(attack, OpenPrior(), torch.arange(5), 3)
    limits = [part.most_queries for part, labels in shares if len(labels)]  # type: ignore[attr-defined]
    assert limits == expected and sum(limits) <= most
    assert sum(len(labels) for _, labels in shares) == 5


@pytest.mark.parametrize("most", [700, 1000])
def test_a_query_limit_holds_for_all_processes(most: int) -> None:
    how = CmaEs(pool=300, searches=6, population=6, generations=50, keep=3, crops=4)
    module = NearestByLayer()
    parts = every(replace(how, most_queries=most), 2, module)
    assert 600 < module.images <= most
    assert len(together_as(parts, "labels")) == 9
    with pytest.raises(QueriesSpentError, match="limit of 200"):
        every(replace(how, most_queries=200), 2, module)


def test_less_access_is_refused() -> None:
    target = toy_target(NearestByLayer()).restricted(Access.SCORES)
    with pytest.raises(InputError, match="needs white-box access"):
        run_assigned(
            EACH["gmi"], target, OpenPrior(), LABELS, processes=one_of(5, 4),
            rng=generator(0),
        )  # fmt: skip


def test_one_process_equals_run_attack() -> None:
    attack, target = EACH["plug-and-play"], toy_target(NearestByLayer())
    one = run_attack(attack, target, OpenPrior(), LABELS, rng=generator(0))
    part = run_assigned(attack, target, OpenPrior(), LABELS, processes=ALONE, rng=generator(0))
    other = gather(part, ALONE)
    assert other is not None and other.queries == one.queries
    assert torch.equal(one.images, other.images) and torch.equal(one.latents, other.latents)
    with pytest.raises(NoSampleError, match="none of 180 samples"):
        attacked("no-samples-at-all")


def test_two_processes_attack_as_one(two_processes: Path) -> None:
    """The main process has all reconstructions; an error of one process ends both."""
    ends = [json.loads((two_processes / f"attacks-{i}.json").read_text()) for i in range(2)]
    left_out = {"a-class-without-samples"}
    for name in {"uneven", "more-processes-than-classes", "joint"} | left_out:
        assert [end[name][0] for end in ends] == ["main", "other"]
        found = load_file(two_processes / f"{name}.safetensors")
        assert int(found.pop("queries")) == sum(end[name][1] for end in ends)
        alone = attacked(name)
        assert isinstance(alone, Reconstructions)
        assert found["labels"].tolist() == alone.labels.tolist()
        for what, tensor in found.items():
            torch.testing.assert_close(tensor, getattr(alone, what), rtol=1e-4, atol=1e-5)
        assert set(found["labels"].tolist()) == set(TOGETHER[name][2]) - (
            {2} if name in left_out else set()
        )
    for end in ends:
        assert end["no-samples-at-all"][:1] == ["NoSampleError"]
        assert "none of 180 samples" in end["no-samples-at-all"][1]
    assert [end["wrong-input-of-one"][:2] for end in ends] == [
        ["InputError", "process 1 of 2: a wrong thing"],
        ["InputError", "a wrong thing"],
    ]
    assert [end["error-of-one"][:2] for end in ends] == [
        ["StageError", "process 1 of 2: KeyError: 'odd'"],
        ["KeyError", "'odd'"],
    ]
