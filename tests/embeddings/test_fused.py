"""Layers in a row: the same numbers fused or not, and a derivative where it is asked for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from inversight.embeddings import fused
from inversight.embeddings.fused import Row


def layers(seed: int = 0) -> list[nn.Module]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return [
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 5, stride=2, bias=False),
            nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 4, 1),
        ]  # fmt: skip


@pytest.mark.parametrize("size", [16, 23])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_same_as_layer_by_layer(size: int, layout: torch.memory_format) -> None:
    made = layers()
    plain = nn.Sequential(*made)
    row = Row(made)
    for seed, batch in enumerate((1, 3, 1)):
        x = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))
        x = x.contiguous(memory_format=layout)
        kept = x.clone()
        with torch.no_grad():
            found = row(x)
            torch.testing.assert_close(found, plain(x), rtol=1e-5, atol=1e-6)
        assert torch.equal(x, kept)
        torch.testing.assert_close(row(x), plain(x))  # with derivatives


def test_derivatives_are_the_plain_ones() -> None:
    made = layers()
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)).requires_grad_(True)
    (found,) = torch.autograd.grad(Row(made)(x).square().sum(), x)
    (expected,) = torch.autograd.grad(nn.Sequential(*made)(x).square().sum(), x)
    torch.testing.assert_close(found, expected)


def test_without_the_operators_it_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    made = layers()
    x = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    row = Row(made)
    with torch.no_grad():
        torch.testing.assert_close(row(x), nn.Sequential(*made)(x))
    assert set(row._packed.values()) == {None}

    class Refusing:
        def __getattr__(self, name: str) -> object:
            raise AttributeError(name)

    monkeypatch.undo()
    monkeypatch.setattr(torch.ops, "mkldnn", Refusing(), raising=False)
    assert fused._pack(made[0], x) is None  # type: ignore[arg-type]


def test_a_first_relu_does_not_write_over_what_it_was_given() -> None:
    x = torch.tensor([[[[-1.0, 2.0]]]])
    with torch.no_grad():
        assert Row([nn.ReLU()])(x).tolist() == [[[[0.0, 2.0]]]]
    assert x.tolist() == [[[[-1.0, 2.0]]]]


def test_autocast_is_respected() -> None:
    x = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert Row(layers())(x).dtype == torch.bfloat16
