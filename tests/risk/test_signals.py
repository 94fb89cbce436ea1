"""Signals against closed forms, autograd and slow loops; independent of row order and batch size."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor, nn
from torch.nn import functional as F

from inversight.core.errors import ConfigError, StageError
from inversight.data import ImageSet
from inversight.models.networks import build_classifier
from inversight.models.target import Access, Target, target_of
from inversight.risk.signals import (
    SIGNALS,
    centre_distance,
    confidence,
    forgetting_events,
    last_layer_gradient_norm,
    local_density,
    signals,
)

CLASSES = ("a", "b", "c")


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int = 30, seed: int = 0) -> ImageSet:
    pixels = torch.randint(0, 256, (n, 1, 8, 8), generator=rng(seed), dtype=torch.uint8)
    ids = tuple(f"{(7 * i) % n:03d}.png" for i in range(n))
    return ImageSet(pixels, torch.arange(n) % 3, ids, CLASSES, tuple(map(str, range(n))))


def network(seed: int = 0) -> Target:
    saved = build_classifier(
        "resnet", classes=CLASSES, image_shape=(1, 8, 8), width=4, mean=[0.5], std=[0.2],
        rng=rng(seed),
    )  # fmt: skip
    nn.init.normal_(saved.module.classifier.weight, generator=rng(seed))
    return target_of(saved, "test")


def wrapped(*layers: nn.Module) -> Target:
    return Target(nn.Sequential(*layers).eval(), CLASSES, (1, 8, 8), (0.0,), (1.0,), "test")


def autograd_norm(logits: Tensor, label: Tensor, parameters: Any) -> float:
    """Return the length of the gradient of the cross-entropy with respect to ``parameters``."""
    parts = torch.autograd.grad(F.cross_entropy(logits, label), list(parameters))
    return float(sum(p.double().square().sum() for p in parts) ** 0.5)


def test_confidence_of_two_classes_in_closed_form() -> None:
    a = torch.tensor([-3.0, 0.0, 0.5, 40.0])
    found = confidence(torch.stack([a, torch.zeros(4)], 1), torch.zeros(4, dtype=torch.int64))
    a = a.double()
    p, q = a.sigmoid(), (-a).sigmoid()
    torch.testing.assert_close(found["loss"], (-a).exp().log1p(), rtol=1e-12, atol=1e-12)
    assert torch.equal(found["margin"], a)
    torch.testing.assert_close(found["entropy"], -p * p.log() - q * q.log(), rtol=1e-6, atol=1e-12)


def test_confidence_is_the_same_for_logits_and_log_probabilities() -> None:
    logits, labels = 5 * torch.randn(50, 4, generator=rng()), torch.arange(50) % 4
    a, b = confidence(logits, labels), confidence(logits.log_softmax(1), labels)
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    certain = confidence(torch.tensor([[0.0, -math.inf]]), torch.tensor([0]))
    assert certain["loss"] == 0 and certain["entropy"] == 0 and certain["margin"] == math.inf


@pytest.mark.parametrize("bias", [True, False])
def test_gradient_norm_equals_autograd(bias: bool) -> None:
    layer = nn.Linear(7, 4, bias=bias).double()
    x, y = torch.randn(20, 7, generator=rng(), dtype=torch.float64), torch.arange(20) % 4
    found = last_layer_gradient_norm(x, layer(x).detach(), y, bias=bias)
    expected = [autograd_norm(layer(x[i]), y[i], layer.parameters()) for i in range(20)]
    assert found.tolist() == pytest.approx(expected)


def test_gradient_norm_is_accurate_for_confident_predictions() -> None:
    logits = torch.tensor([[60.0, 0.0]])
    found = last_layer_gradient_norm(torch.zeros(1, 3), logits, torch.tensor([0]))
    assert found.item() == pytest.approx(math.sqrt(2) * math.exp(-60), rel=1e-9)


def test_gradient_norm_of_a_whole_network_equals_autograd() -> None:
    target, private = network(), images()
    target.module.requires_grad_(True)
    last = target.module.classifier.parameters
    found = signals(target, private).values["gradient_norm"]
    logits = [target(private.select(torch.tensor([i])).floats())[0] for i in range(len(private))]
    expected = [autograd_norm(z, y, last()) for z, y in zip(logits, private.labels, strict=True)]
    assert found.tolist() == pytest.approx(expected, rel=1e-4)


def slow_places(x: np.ndarray, labels: np.ndarray, k: int) -> tuple[list[float], list[float]]:
    centre, density = [], []
    for i in range(len(x)):
        others = [j for j in range(len(x)) if j != i and labels[j] == labels[i]]
        near = sorted(float(np.linalg.norm(x[i] - x[j])) for j in others)[:k]
        centre.append(float(np.linalg.norm(x[i] - x[others].mean(0))) if others else math.nan)
        density.append(1.0 / max(1e-6, float(np.mean(near))) if others else math.nan)
    return centre, density


features = hnp.arrays(
    np.float32, st.tuples(st.integers(1, 12), st.integers(1, 4)),
    elements=st.floats(-100, 100, width=32),
)  # fmt: skip


@given(features, st.integers(1, 4), st.integers(1, 6))
def test_centre_distance_and_density_equal_a_loop(x: np.ndarray, classes: int, k: int) -> None:
    labels = np.arange(len(x)) % classes
    centre, density = slow_places(x.astype(np.float64), labels, k)
    t, y = torch.from_numpy(x), torch.from_numpy(labels)
    np.testing.assert_allclose(centre_distance(t, y).numpy(), centre, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(local_density(t, y, k).numpy(), density, rtol=1e-6)


@given(hnp.arrays(np.bool_, st.tuples(st.integers(1, 6), st.integers(1, 8))))
def test_forgetting_counts_changes_from_right_to_wrong(right: np.ndarray) -> None:
    found = forgetting_events(torch.from_numpy(right)).tolist()
    for column, events in zip(right.T.tolist(), found, strict=True):
        text = "".join("r" if r else "w" for r in column)
        assert events == (math.inf if "r" not in text else text.count("rw"))


def test_signs_of_an_image_far_from_its_class() -> None:
    x, y = torch.tensor([[0.0], [0.1], [-0.1], [9.0]]), torch.zeros(4, dtype=torch.int64)
    far = {"centre_distance": centre_distance(x, y), "local_density": local_density(x, y)}
    for name, values in far.items():
        assert (SIGNALS[name].sign * values).argmin() == 3


def test_returns_every_signal_in_the_order_of_the_images() -> None:
    target, private = network(), images()
    found = signals(target, private, checkpoints=[network(1), network(2)])
    assert tuple(found.values) == tuple(SIGNALS) and not found.missing
    with torch.no_grad():
        logits = [model(private.floats()) for model in (network(1), network(2), target)]
    right = torch.stack([z.argmax(1) == private.labels for z in logits])
    assert torch.equal(found.values["forgetting"], forgetting_events(right))
    loss = F.cross_entropy(logits[-1], private.labels, reduction="none")
    torch.testing.assert_close(found.values["loss"].float(), loss)
    assert torch.equal(found.values["margin"] > 0, right[-1])
    assert found.ids == private.ids


def test_row_order_does_not_matter() -> None:
    target, private = network(), images()
    order = torch.randperm(len(private), generator=rng(3))
    one, other = (
        signals(target, rows, checkpoints=[network(1)], batch_size=7).values
        for rows in (private, private.select(order))
    )
    for name in SIGNALS:
        assert torch.equal(one[name][order], other[name]), name


def test_batch_size_does_not_matter() -> None:
    one, other = (dict(signals(network(), images(), batch_size=n).values) for n in (1, 64))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_less_access_gives_fewer_signals() -> None:
    target, private = network(), images()
    whole = signals(target, private).values
    scores = signals(target.restricted(Access.SCORES), private)
    expected = {name: whole[name] for name in ("loss", "margin", "entropy")}
    torch.testing.assert_close(dict(scores.values), expected, rtol=1e-4, atol=1e-5)
    assert "needs more than scores access" in scores.missing["gradient_norm"]
    label = target.restricted(Access.LABEL)
    assert set(signals(label, private, checkpoints=[label]).values) == {"forgetting"}
    alone = signals(label, private)
    assert not alone.values and "needs more than label access" in alone.missing["loss"]


POOLED = (nn.AdaptiveAvgPool2d((1, 3)), nn.Flatten())
SHARED = nn.Linear(3, 3)


@pytest.mark.parametrize(
    ("layers", "deep", "reason"),
    [
        ((*POOLED, SHARED, nn.Tanh()), {"centre_distance", "local_density"}, "not the logits"),
        ((*POOLED, SHARED, SHARED), set(), "more than once"),
        (POOLED, set(), "has no torch.nn.Linear layer"),
    ],
    ids=["layer after the last linear one", "shared linear layer", "no linear layer"],
)
def test_networks_without_a_last_linear_layer(layers: Any, deep: set[str], reason: str) -> None:
    found = signals(wrapped(*layers), images())
    assert set(found.values) == {"loss", "margin", "entropy"} | deep
    assert reason in found.missing["gradient_norm"]


def test_only_image_of_a_class_has_no_distance_or_density() -> None:
    private = images(7).select(torch.tensor([0, 1, 3]))  # of classes a, b, a
    found = signals(network(), private).values
    for name in ("centre_distance", "local_density"):
        assert found[name].isnan().tolist() == [False, True, False]


def test_rejects_other_classes() -> None:
    with pytest.raises(ConfigError, match="other classes"):
        signals(network(), replace(images(), classes=("a", "c", "b")))


def test_rejects_outputs_that_are_not_finite() -> None:
    layer = nn.Linear(64, 3)
    layer.weight.data[0, 0] = math.nan
    with pytest.raises(StageError, match=r"not a finite number for image \d+\.png"):
        signals(wrapped(nn.Flatten(), layer), images())
