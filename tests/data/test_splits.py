"""Splits part each class."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inversight.data import ImageSet, image_set, split


def flat_set(labels: list[int]) -> ImageSet:
    names = ["abcde"[label] for label in labels]
    ids = [f"{name}/{i}" for i, name in enumerate(names)]
    return image_set(torch.zeros(len(ids), 1, 8, 8, dtype=torch.uint8), names, ids, "abcde")


@settings(max_examples=60)
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=60),
    fraction=st.floats(0.0, 1.0),
    seed=st.integers(0, 1000),
)
def test_split_parts_each_class_and_never_takes_its_last(
    labels: list[int], fraction: float, seed: int
) -> None:
    images = flat_set(labels)
    rest, held = split(images, fraction, rng=torch.Generator().manual_seed(seed))
    assert sorted(rest.ids + held.ids) == sorted(images.ids)
    for label in set(labels):
        total = labels.count(label)
        left = int((rest.labels == label).sum())
        assert left >= 1
        if fraction == 0.0:
            assert left == total
        elif total > 1:
            assert abs((total - left) - min(max(fraction * total, 1), total - 1)) <= 0.5
    again = split(images, fraction, rng=torch.Generator().manual_seed(seed))
    assert again[1].ids == held.ids
