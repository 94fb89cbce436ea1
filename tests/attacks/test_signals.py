"""Signals, selectors and images of a first layer whose images are known."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from inversight.attacks.kinks import ImageSolver, Likely
from inversight.attacks.mlp import read_mlp
from inversight.attacks.selectors import SignalSearch
from inversight.attacks.signals import FirstLayer, unit
from inversight.attacks.stationarity import span_of, whole_space
from inversight.core.seeding import generator
from tests.attacks.perceptrons import perceptron, sum_of, trained


def cosines(one: Tensor, other: Tensor) -> Tensor:
    """Return the absolute cosines (A, B) of vectors (A, n) and (B, n)."""
    return (unit(one) @ unit(other).T).abs()


def test_a_signal_is_polished_to_its_exact_zeros_and_selects_its_image() -> None:
    given = sum_of()
    span = span_of(given.mlp)
    assert span is not None
    layer = FirstLayer(given.mlp, span)
    assert layer.many and layer.images == 8
    known = unit(given.signals.T @ layer.columns)
    noise = torch.randn(known.shape, generator=generator(1), dtype=torch.float64)
    found = layer.polished(unit(known + 1e-4 * noise) @ layer.columns.T)
    assert float(cosines(found, known).diagonal().min()) > 1 - 1e-12
    assert torch.equal(layer.zeros(found), given.signals.T == 0)
    assert [layer.class_of(one) for one in found] == given.labels.tolist()
    # A selector is a column of the inverse: it vanishes on all images but its own.
    inverse = torch.linalg.inv(given.images @ span.basis.T).T
    assert float(cosines(layer.selectors(found), inverse).diagonal().min()) > 1 - 1e-10
    assert layer.class_of(unit(known[0] + known[1])) is None


class AnySignal(FirstLayer):
    """Takes every signal for that of an image: of six images too many lie on kinks for the usual test."""

    def class_of(self, vector: Tensor) -> int | None:
        return 0


def test_the_search_finds_selectors_of_training_images() -> None:
    given = trained()
    mlp = read_mlp(given.target)
    span = span_of(mlp)
    assert span is not None and len(span.basis) == 6
    inputs = mlp.scale * given.images.flatten(1) + mlp.shift
    images = torch.cat([inputs, torch.ones(6, 1, dtype=torch.float64)], dim=1) @ span.basis.T
    layer = AnySignal(mlp, span)
    search = SignalSearch(layer)
    noise = torch.randn(60, 6, generator=generator(2), dtype=torch.float64)
    search.search(images.repeat(10, 1) + 0.2 * noise, generator(3))
    found = cosines(torch.linalg.inv(images).T, layer.selectors(search.vectors)).max(dim=1).values
    assert int((found > 0.9999).sum()) >= 3


def test_what_is_known_of_an_image_is_taken_out_of_the_signals_of_others() -> None:
    given = sum_of()
    span = span_of(given.mlp)
    assert span is not None
    layer = FirstLayer(given.mlp, span)
    known, images = unit(given.signals.T @ layer.columns), given.images @ span.basis.T
    search = SignalSearch(layer)
    search.vectors = unit(torch.stack([known[0], known[1] + 0.5 * known[0], known[2]]))
    search.settle([0], images[:1], generator(5))
    assert search.settled == 1 and search.labels.tolist() == given.labels[:3].tolist()
    assert float(cosines(search.vectors, known[:3]).diagonal().min()) > 1 - 1e-10
    search.settle([1, 2], images[:3], generator(5))
    assert len(search) == search.settled == 3


def test_an_image_is_solved_exactly_from_its_kinks() -> None:
    rng, neurons, pixels = generator(4), 300, 12
    image = torch.rand(pixels, generator=rng, dtype=torch.float64)
    known = torch.cat([image, torch.ones(1, dtype=torch.float64)])
    rows = torch.randn(neurons, pixels + 1, generator=rng, dtype=torch.float64)
    second = torch.randn(3, neurons, generator=rng, dtype=torch.float64)
    kinks = torch.arange(neurons) < 70
    rows[kinks] -= torch.outer(rows[kinks] @ known, known) / known.square().sum()
    share = torch.where(rows @ known > 0, 1.0, 0.0)
    share[kinks] = 0.1 + 0.7 * torch.rand(70, generator=rng)
    signal = share.double() * (second[0] - second[1:].mean(0))
    mlp = perceptron(rows, second)
    layer = FirstLayer(mlp, whole_space(mlp))
    others = torch.rand(40, pixels, generator=rng, dtype=torch.float64)
    likely = Likely(torch.cat([others, torch.ones(40, 1, dtype=torch.float64)], dim=1))
    none = torch.zeros(0, pixels + 1, dtype=torch.float64)
    found = ImageSolver(layer, likely, generator(0)).image(signal, none, none[:, 0] > 0)
    assert found.zeros >= 40
    torch.testing.assert_close(found.image, known, rtol=0, atol=1e-6)
    # A solution with pixels outside [0, 1] is no image.
    outside = replace(mlp, scale=0.5 * mlp.scale)
    solver = ImageSolver(FirstLayer(outside, whole_space(outside)), likely, generator(0))
    assert mlp.are_pixels(image) and not outside.are_pixels(image)
    assert solver.image(signal, none, none[:, 0] > 0).zeros == 0
    # A signal of other neurons certifies nothing.
    mixed = signal[torch.randperm(neurons, generator=rng)]
    assert ImageSolver(layer, likely, generator(0)).image(mixed, none, none[:, 0] > 0).zeros == 0


def test_neurons_that_are_copies_count_once() -> None:
    given = sum_of()
    mlp = given.mlp
    doubled = replace(
        mlp, weights=(torch.cat([mlp.weights[0], -2.0 * mlp.weights[0]]), mlp.weights[1].repeat(1, 2)),
        biases=(torch.cat([mlp.first[:, -1], -2.0 * mlp.first[:, -1]]), None),
    )  # fmt: skip
    single, twice = (FirstLayer(one, whole_space(one)) for one in (mlp, doubled))
    zeros = torch.rand(5, len(single.rows), generator=generator(0)) < 0.3
    assert 100 < int(single.distinct.sum()) == int(twice.distinct.sum())
    assert torch.equal(twice.counts(torch.cat([zeros, zeros], dim=1)), single.counts(zeros))
