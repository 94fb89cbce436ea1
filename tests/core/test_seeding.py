"""Derived generators: equal for equal names, unrelated for others."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from inversight.core.seeding import derive_seed, draw_seed, follow, generator

PATHS = st.lists(
    st.one_of(st.integers(0, 9), st.sampled_from(["prior", "target", "a"])), max_size=3
)


@given(st.integers(0, 2**40), PATHS, PATHS)
def test_seeds_differ_by_name(seed: int, one: list[str | int], other: list[str | int]) -> None:
    a, b = derive_seed(seed, *one), derive_seed(seed, *other)
    assert (a == b) == (list(map(str, one)) == list(map(str, other)))
    assert 0 <= a < 2**63
    assert derive_seed(seed + 1, *one) != a


def test_generators_repeat_and_differ() -> None:
    first, again = (torch.rand(8, generator=generator(3, "x", 1)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, torch.rand(8, generator=generator(3, "x", 2)))


def test_draw_seed_advances_the_generator() -> None:
    rng = generator(0)
    assert draw_seed(rng) != draw_seed(rng)
    assert draw_seed(generator(0)) == draw_seed(generator(0))


def test_a_generator_follows_to_another_device() -> None:
    rng = generator(0)
    assert follow(rng, torch.device("cpu")) is rng
