"""Layers as linear maps against PyTorch's own derivatives of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.squeezenet import Fire

from inversight.embeddings.linearised import Map, linearised, recorded, unit_gram
from inversight.models.networks import ResidualBlock


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=rng(seed), dtype=torch.float64).to(dtype)


def drawn(layer: nn.Module) -> nn.Module:
    """The layer in float64 with weights of a known seed."""
    layer.double().requires_grad_(False)
    for i, (name, value) in enumerate(layer.eval().state_dict().items()):
        if value.dim():  # all but the counters of normalisation
            drawn_value = draw(*value.shape, seed=10 + i)
            value.copy_(drawn_value.abs() + 0.1 if name.endswith("running_var") else drawn_value)
    return layer


ROWS: dict[str, list[nn.Module]] = {
    "convolution": [nn.Conv2d(3, 4, 3, padding=1)],
    "strided, as AlexNet's first": [nn.Conv2d(3, 4, 5, stride=3, padding=2)],
    "dilated, in groups, without bias": [
        nn.Conv2d(3, 6, 3, padding=2, dilation=2, groups=3, bias=False)
    ],
    "halving": [nn.MaxPool2d(2)],
    "overlapping windows": [nn.MaxPool2d(3, 2)],
    "rounded up": [nn.MaxPool2d(3, 2, ceil_mode=True)],
    "normalisation": [nn.BatchNorm2d(3)],
    "normalisation without weights": [nn.BatchNorm2d(3, affine=False)],
    "fire": [Fire(3, 2, 4, 3)],
    "residual block": [ResidualBlock(3, 5, 2)],
    "rows": [nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.ReLU(), nn.Identity()))],
    "all": [
        nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 5, 3), nn.ReLU(),
        nn.MaxPool2d(3, 2), Fire(5, 2, 3, 3),
    ],
}  # fmt: skip
for _row in ROWS.values():
    for _layer in _row:
        drawn(_layer)


@pytest.mark.parametrize("size", [9, 12])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", ROWS)
def test_both_directions_are_pytorchs(name: str, size: int, layout: torch.memory_format) -> None:
    row = ROWS[name]
    function = nn.Sequential(*row)
    x = draw(2, 3, size, size).contiguous(memory_format=layout)
    y, jacobian = linearised(row, x, x.dtype)
    torch.testing.assert_close(y, function(x))
    v, u = draw(*x.shape, seed=1), draw(*y.shape, seed=2)
    _, expected = torch.func.jvp(function, (x,), (v,))
    torch.testing.assert_close(jacobian.push(v.clone()), expected)
    torch.testing.assert_close(jacobian.pull(u.clone()), torch.func.vjp(function, x)[1](u)[0])


def test_the_jacobian_may_take_less_precision_than_the_point() -> None:
    row = ROWS["all"]
    x = draw(2, 3, 12, 12)
    y, exact = linearised(row, x, x.dtype)
    same, half = linearised(row, x, torch.bfloat16)
    assert torch.equal(y, same)
    v, u = draw(*x.shape, seed=1), draw(*y.shape, seed=2)
    for rough, fine, given in ((half.push, exact.push, v), (half.pull, exact.pull, u)):
        found, expected = rough(given.bfloat16()), fine(given.clone())
        assert found.dtype == torch.bfloat16
        assert float((found - expected).norm() / expected.norm()) < 0.02


@pytest.mark.parametrize(
    "function",
    [torch.sin, lambda x: x[:, :1] * x[:, 1:].exp(), lambda x: x],
    ids=["diagonal", "mixing", "identity"],
)
def test_recorded_is_any_function(function: Map) -> None:
    x = draw(2, 3, 4, 4)
    y, jacobian = recorded(function, x)
    v, u = draw(*x.shape, seed=1), draw(*y.shape, seed=2)
    for factor in (1.0, 2.0):  # the graph serves many products
        _, expected = torch.func.jvp(function, (x,), (factor * v,))
        torch.testing.assert_close(jacobian.push(factor * v), expected)
        expected = torch.func.vjp(function, x)[1](factor * u)[0]
        torch.testing.assert_close(jacobian.pull(factor * u), expected)
    assert not y.requires_grad and not x.requires_grad


def test_gram_of_unit_vectors() -> None:
    f, v = draw(2, 5, 3, 3).abs() + 0.1, draw(2, 5, 3, 3, seed=1)
    scale = draw(1, 5, 1, 1, seed=2)

    def function(z: Tensor) -> Tensor:
        return scale * z / z.square().sum(1, keepdim=True).sqrt()

    _, pushed = torch.func.jvp(function, (f,), (v,))
    (expected,) = torch.func.vjp(function, f)[1](pushed)
    length = f.square().sum(1, keepdim=True).sqrt()
    torch.testing.assert_close(unit_gram(f, length, scale, f.dtype)(v), expected)
