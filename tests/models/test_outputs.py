"""Answers of models that are no plain logits: what is made of them has the model's own probabilities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from inversight.models.loading import load_target
from inversight.models.spec import ModelSpec
from inversight.models.target import Target
from tests.models.test_target import CLASSES, Small, images
from tests.refusals import refused

TWO = ("no", "yes")


class Answering(nn.Module):
    """Returns ``answer(logits)``."""

    def __init__(self, answer: Callable[[Tensor], Any], outputs: int = 3) -> None:
        super().__init__()
        self.network = Small(outputs=outputs)
        self.answer = answer

    def forward(self, x: Tensor) -> Any:
        return self.answer(self.network(x))


class Pair(NamedTuple):
    logits: Tensor
    auxiliary: Tensor


@dataclass
class Output:
    logits: Tensor
    loss: None = None


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Target, list[str]]]:
    """Return a loader of modules, which gives the target and what was said."""

    def of(module: nn.Module, classes: tuple[str, ...] = CLASSES) -> tuple[Target, list[str]]:
        monkeypatch.setitem(globals(), "made", lambda: module)
        said: list[str] = []
        spec = ModelSpec(f"{__name__}:made")
        target = load_target(spec, classes=classes, size=8, channels=1, warn=said.append)
        assert all(text.startswith(f"--target {spec.spec}: ") for text in said)
        return target, said

    return of


FORMS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "object": (Output, ""),
    "named tuple": (lambda z: Pair(z, 2 * z), ""),
    "mapping": (lambda z: {"loss": z.sum(), "logits": z}, ""),
    "other mapping": (lambda z: {"features": z[:, :2], "scores": z}, "scores is taken"),
    "tuple": (lambda z: (torch.cat([z, z], 1), z), "value 2 is taken"),
    "list": (lambda z: [z, 2 * z], "value 1 is taken"),
}


@pytest.mark.parametrize("form", FORMS)
def test_logits_are_found_in_answers_of_several_parts(load: Any, form: str) -> None:
    answer, said = FORMS[form]
    module, x = Answering(answer), images(5)
    target, notes = load(module)
    torch.testing.assert_close(target(x), module.network(x).detach())
    assert len(notes) == bool(said) and all(said in note for note in notes)
    x.requires_grad_(True)
    assert torch.autograd.grad(target(x)[:, 0].sum(), x)[0].abs().sum() > 0


def test_probabilities_become_log_probabilities(load: Any) -> None:
    module, x = Answering(lambda z: z.softmax(1)), images(6)
    target, notes = load(module)
    expected = module.network(x).log_softmax(1)
    torch.testing.assert_close(target(x), expected.detach(), atol=1e-5, rtol=1e-5)
    assert len(notes) == 1 and "gives probabilities" in notes[0]
    x.requires_grad_(True)
    ours, theirs = (
        torch.autograd.grad(y[:, 0].sum(), x)[0]
        for y in (target(x), module.network(x).log_softmax(1))
    )
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-3)
    # One that is rounded to 0 is finite.
    sharp = Answering(lambda z: (1000.0 * z).softmax(1))
    target, notes = load(sharp)
    assert target(x).isfinite().all() and "round probabilities" in notes[1]


def test_logits_that_sum_to_one_by_chance_are_logits(load: Any) -> None:
    module = Answering(lambda z: z - z.mean(1, keepdim=True) + 1.0 / 3.0)
    target, notes = load(module)
    assert notes == []
    torch.testing.assert_close(target(images(3)), module(images(3)).detach())


@pytest.mark.parametrize("form", ["logit", "probability"])
def test_one_output_becomes_logits_of_two_classes(load: Any, form: str) -> None:
    x = images(6)
    module = Answering(torch.sigmoid if form == "probability" else nn.Identity(), outputs=1)
    target, notes = load(module, TWO)
    second = module.network(x)[:, 0].detach().sigmoid()
    torch.testing.assert_close(
        target(x).softmax(1), torch.stack([1.0 - second, second], 1), atol=1e-5, rtol=1e-4
    )
    assert len(notes) == 1 and f"taken for the {form} of the second" in notes[0]


def test_a_small_logit_is_no_probability(load: Any) -> None:
    """All of its answers lie in [0, 1] on real images, and leave it on others."""
    module = Answering(lambda z: 0.5 + 0.01 * z, outputs=1)
    assert ((module(images(50)) > 0) & (module(images(50)) < 1)).all()
    _, notes = load(module, TWO)
    assert "taken for the logit of the second" in notes[0]


def test_one_output_for_three_classes_is_refused(load: Any) -> None:
    with refused("1 outputs", "3 classes"):
        load(Answering(nn.Identity(), outputs=1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_used_in_float32(load: Any, dtype: torch.dtype) -> None:
    module, x = Small().to(dtype), images(4)
    expected = Small().to(dtype).float()(x).detach()
    target, notes = load(module)
    torch.testing.assert_close(target(x), expected)
    assert len(notes) == 1 and str(dtype).removeprefix("torch.") in notes[0]


class Random(Small):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(super().forward(x), 0.5, training=True)


def test_answers_that_change_are_warned_of(load: Any) -> None:
    _, notes = load(Random())
    assert len(notes) == 1 and "differently from call to call" in notes[0]


def test_batch_normalisation_over_the_batch_is_refused(load: Any) -> None:
    class Batched(Small):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.batch_norm(super().forward(x), None, None, training=True)

    with refused("fails on one image alone"):
        load(Batched())


def test_one_class_more_than_private_images_is_named(load: Any) -> None:
    named = Small(outputs=3)
    with refused("3 outputs", "2 classes", "background class, the first"):
        load(named, CLASSES[:2])
