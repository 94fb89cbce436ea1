"""A prior with a cache gives the images that it gives without, and makes each batch once."""

from __future__ import annotations

import pickle
from dataclasses import replace

import torch
from torch import Tensor

from inversight.core.seeding import generator
from inversight.priors import untrained_prior
from inversight.priors.image_cache import ImageCache


def test_batch_is_made_once_without_gradients() -> None:
    made: list[int] = []

    def make(latents: Tensor) -> Tensor:
        made.append(len(latents))
        return latents * 2

    cache, latents = ImageCache(), torch.rand(3, 2)
    with torch.no_grad():
        first, again = cache.get(latents, make), cache.get(latents.clone(), make)
        assert again is first and made == [3]
        cache.get(latents[:2], make)
        cache.get(latents.double(), make)
        assert made == [3, 2, 3]
    cache.get(latents.requires_grad_(), make)
    assert made == [3, 2, 3, 3]


def test_batches_used_last_are_kept() -> None:
    made: list[float] = []

    def make(latents: Tensor) -> Tensor:
        made.append(float(latents[0]))
        return latents

    cache = ImageCache(most_bytes=2 * 4 * 4)  # two batches of four floats
    with torch.no_grad():
        for value in (1.0, 2.0, 1.0, 3.0, 1.0, 2.0):
            cache.get(torch.full((4,), value), make)
    assert made == [1.0, 2.0, 3.0, 2.0]


@torch.no_grad()
def test_images_are_those_without_a_cache() -> None:
    prior = untrained_prior((1, 8, 8))
    cached = replace(prior, cache=ImageCache())
    latents = prior.sample(5, rng=generator(0))
    for _ in range(2):
        assert torch.equal(cached(latents), prior(latents))
        # Truncation changes latents, not the images of latents.
        assert torch.equal(cached.truncated(0.5)(latents), prior(latents))


def test_copy_for_another_process_is_empty() -> None:
    cache = ImageCache(most_bytes=100)
    with torch.no_grad():
        cache.get(torch.zeros(2), lambda x: x)
    assert pickle.loads(pickle.dumps(cache)).most_bytes == 100
    assert len(pickle.dumps(cache)) < 200
