"""The digits of the demonstration."""

from __future__ import annotations

import torch

from inversight.data import load_digits


def test_digits_are_disjoint_balanced_and_follow_the_seed() -> None:
    found = load_digits(seed=3, per_class=4, public_images=100)
    parts = (found.private, found.holdout, found.public)
    hashes = [h for part in parts for h in part.hashes]
    assert len(set(hashes)) == len(hashes)
    assert [len(p) for p in parts] == [40, 40, 100]
    for part in parts[:2]:
        assert torch.bincount(part.labels).tolist() == [4] * 10
    for part in parts:
        assert list(part.ids) == sorted(part.ids)
        assert all(
            i.split("/")[0] == part.classes[y] for i, y in zip(part.ids, part.labels, strict=True)
        )
        assert int(part.images.max()) == 255
    again = load_digits(seed=3, per_class=4, public_images=100)
    assert again.private.ids == found.private.ids and again.public.ids == found.public.ids
    assert torch.equal(again.private.images, found.private.images)
    assert load_digits(seed=4, per_class=4).private.ids != found.private.ids
