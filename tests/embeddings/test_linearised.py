"""Layers as linear maps against PyTorch's own derivatives of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.squeezenet import Fire

from inversight.embeddings.linearised import Jacobian, Map, linearised, recorded, unit_gram
from inversight.models.networks import ResidualBlock
from tests.draws import normal


def drawn(layer: nn.Module) -> nn.Module:
    """Return the layer in float64 with weights of a known seed."""
    layer.double().requires_grad_(False)
    for i, (name, value) in enumerate(layer.eval().state_dict().items()):
        if value.dim():  # all but the counters of normalisation
            random = normal(*value.shape, seed=10 + i)
            value.copy_(random.abs() + 0.1 if name.endswith("running_var") else random)
    return layer


ROWS: dict[str, list[nn.Module]] = {
    "convolution": [nn.Conv2d(3, 4, 3, padding=1)],
    "strided, as AlexNet's first": [nn.Conv2d(3, 4, 5, stride=3, padding=2)],
    "dilated, in groups": [nn.Conv2d(3, 6, 3, padding=2, dilation=2, groups=3, bias=False)],
    "halving": [nn.MaxPool2d(2)],
    "overlapping windows": [nn.MaxPool2d(3, 2)],
    "rounded up": [nn.MaxPool2d(3, 2, ceil_mode=True)],
    "normalisation": [nn.BatchNorm2d(3)],
    "normalisation without weights": [nn.BatchNorm2d(3, affine=False)],
    "fire": [Fire(3, 2, 4, 3)],
    "residual block": [ResidualBlock(3, 5, 2)],
    "nested": [nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.ReLU(), nn.Identity()))],
    "all": [
        nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 5, 3), nn.ReLU(),
        nn.MaxPool2d(3, 2), Fire(5, 2, 3, 3),
    ],
}  # fmt: skip
FUNCTIONS = {name: nn.Sequential(*map(drawn, row)) for name, row in ROWS.items()}


def check(jacobian: Jacobian, function: Map, x: Tensor, y: Tensor, factor: float = 1.0) -> None:
    """Compare both directions with torch.func's."""
    v, u = factor * normal(*x.shape, seed=1), factor * normal(*y.shape, seed=2)
    _, expected = torch.func.jvp(function, (x,), (v,))
    torch.testing.assert_close(jacobian.push(v.clone()), expected)
    torch.testing.assert_close(jacobian.pull(u.clone()), torch.func.vjp(function, x)[1](u)[0])


@pytest.mark.parametrize("size", [9, 12])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", ROWS)
def test_jacobians_equal_pytorchs(name: str, size: int, layout: torch.memory_format) -> None:
    x = normal(2, 3, size, size).contiguous(memory_format=layout)
    y, jacobian = linearised(ROWS[name], x, x.dtype)
    torch.testing.assert_close(y, FUNCTIONS[name](x))
    check(jacobian, FUNCTIONS[name], x, y)


def test_lower_precision_of_the_jacobian_keeps_the_output() -> None:
    x = normal(2, 3, 12, 12)
    (y, exact), (same, half) = (
        linearised(ROWS["all"], x, dtype) for dtype in (x.dtype, torch.bfloat16)
    )
    assert torch.equal(y, same)
    v, u = normal(*x.shape, seed=1), normal(*y.shape, seed=2)
    for rough, fine, given in ((half.push, exact.push, v), (half.pull, exact.pull, u)):
        found, expected = rough(given.bfloat16()), fine(given.clone())
        assert found.dtype == torch.bfloat16
        assert float((found - expected).norm() / expected.norm()) < 0.02


@pytest.mark.parametrize(
    "function", [torch.sin, lambda x: x[:, :1] * x[:, 1:].exp(), lambda x: x],
    ids=["diagonal", "mixing", "identity"],
)  # fmt: skip
def test_recorded_jacobian_of_any_function(function: Map) -> None:
    x = normal(2, 3, 4, 4)
    y, jacobian = recorded(function, x)
    for factor in (1.0, 2.0):  # the graph serves many products
        check(jacobian, function, x, y, factor)
    assert not y.requires_grad and not x.requires_grad


def test_gram_of_unit_vectors() -> None:
    f, v, scale = normal(2, 5, 3, 3).abs() + 0.1, normal(2, 5, 3, 3, seed=1), normal(1, 5, 1, 1)

    def function(z: Tensor) -> Tensor:
        return scale * z / z.square().sum(1, keepdim=True).sqrt()

    _, pushed = torch.func.jvp(function, (f,), (v,))
    (expected,) = torch.func.vjp(function, f)[1](pushed)
    length = f.square().sum(1, keepdim=True).sqrt()
    torch.testing.assert_close(unit_gram(f, length, scale, f.dtype)(v), expected)
