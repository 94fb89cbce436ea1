"""Orders of classes: a model trained in another order is found out by its accuracy."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from inversight.data import ImageSet, image_set
from inversight.models.class_order import accuracy_by_order, low_accuracy, natural_order
from inversight.models.target import Target, accuracy_on

NUMBERS = tuple(sorted(str(i) for i in range(1, 13)))  # as folders sort: 1, 10, 11, 12, 2, ...


class Reader(nn.Module):
    """Knows each image by its grey value, and its class by the order it was trained in."""

    def __init__(self, names: tuple[str, ...], trained: tuple[str, ...]) -> None:
        super().__init__()
        self.position = torch.tensor([trained.index(name) for name in names])
        self.count = len(names)

    def forward(self, x: Tensor) -> Tensor:
        value = (x.mean((1, 2, 3)) * 255.0 / 20.0).round().long()
        return nn.functional.one_hot(self.position[value], self.count).float()


def setting(
    names: tuple[str, ...], trained: tuple[str, ...], file: tuple[str, ...] = ()
) -> tuple[Target, ImageSet]:
    """Return a target that was trained in the order ``trained``, named in that of ``names``, and images."""
    grey = torch.arange(len(names), dtype=torch.uint8).view(-1, 1, 1, 1) * 20
    images = image_set(grey.expand(-1, 1, 8, 8).contiguous(), names, names, names)
    reader = Reader(names, trained)
    return Target(reader, names, (1, 8, 8), (0.0,), (1.0,), "reader", label_names=file), images


def test_classes_in_natural_order_are_found_out() -> None:
    target, images = setting(NUMBERS, tuple(str(i) for i in range(1, 13)))
    accuracy = accuracy_on(target, images)
    assert accuracy == pytest.approx(1 / 12)  # "1" alone
    tried = accuracy_by_order(target, images)
    assert tried == {"natural order (1, 2, 10)": 1.0}
    text = low_accuracy(target, images, accuracy)
    assert (
        "only 8%" in text and "natural order (1, 2, 10) 100%" in text and "--classes FILE" in text
    )
    assert "\n" not in text


def test_case_and_the_files_own_order_are_tried() -> None:
    names = ("Bee", "Cow", "ant", "dog")
    target, images = setting(names, ("ant", "Bee", "Cow", "dog"))
    assert accuracy_by_order(target, images) == {"case-insensitive order": 1.0}
    mixed = ("dog", "ant", "Cow", "Bee")
    target, images = setting(names, mixed, mixed)
    assert accuracy_by_order(target, images)["the order in its own file (id2label)"] == 1.0
    # Of other names nothing can be said.
    other = replace(target, label_names=("w", "x", "y", "z"))
    assert set(accuracy_by_order(other, images)) == {"case-insensitive order"}


def test_without_a_better_order_other_causes_are_named() -> None:
    names = ("a", "b", "c")
    target, images = setting(names, ("b", "c", "a"))
    assert accuracy_by_order(target, images) == {}
    text = low_accuracy(target, images, 0.0)
    assert "only 0%" in text and "--mean" in text and "order" in text


@given(st.lists(st.integers(0, 10**6), unique=True, min_size=1))
def test_natural_order_sorts_numbers_by_value(numbers: list[int]) -> None:
    names = natural_order([f"class{n}x" for n in numbers])
    assert names == tuple(f"class{n}x" for n in sorted(numbers))
    assert sorted(natural_order(("a", "1", "", "a1", "²"))) == sorted(("a", "1", "", "a1", "²"))
