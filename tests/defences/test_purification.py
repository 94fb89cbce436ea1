"""Coarser scores with the same best class; nothing else changes."""

from __future__ import annotations

import pytest
import torch

from inversight.core.errors import InputError
from inversight.core.seeding import generator
from inversight.defences import Purification
from inversight.models.target import Access
from tests.defences.problem import defend, images, undefended

P = (3.0 * torch.randn(200, 20, generator=generator(0))).softmax(1)
FLAT = (0.01 * torch.randn(200, 20, generator=generator(1))).softmax(1)  # all round to 0.1 or less


@pytest.mark.parametrize("p", [P, FLAT], ids=["peaked", "flat"])
@pytest.mark.parametrize("decimals", [None, 0, 1, 2])
@pytest.mark.parametrize("top_k", [None, 1, 3, 50])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_keeps_probabilities_and_best_class(
    p: torch.Tensor, decimals: int | None, top_k: int | None, temperature: float
) -> None:
    q = Purification(decimals=decimals, top_k=top_k, temperature=temperature).coarser(p)
    torch.testing.assert_close(q.sum(1), torch.ones(len(p)))
    assert bool((q >= 0).all()) and torch.equal(q.argmax(1), p.argmax(1))
    if top_k is not None:
        assert int((q > 0).sum(1).max()) <= top_k
    if decimals is not None:
        # But for the best class, scores are whole multiples of one step.
        rest = q.scatter(1, q.argmax(1, keepdim=True), 0.0)
        assert len({round(float(v), 4) for v in rest[0]}) <= 10**decimals + 1


def test_temperature_rescales_logits() -> None:
    logits = P.log()
    expected = (logits / 4.0).softmax(1)
    torch.testing.assert_close(
        Purification(decimals=None, temperature=4.0).coarser(P), expected, atol=1e-5, rtol=1e-4
    )


def test_rounds_to_one_decimal() -> None:
    p = torch.tensor([[0.57, 0.31, 0.12]])
    expected = torch.tensor([[0.6, 0.3, 0.1]])
    torch.testing.assert_close(Purification().coarser(p), expected, atol=1e-5, rtol=0.0)


def test_changes_only_scores_access() -> None:
    x, plain = images(7).floats(), undefended(8)
    made = defend(Purification())
    assert torch.equal(made.target(x), plain(x))
    assert torch.equal(made.target.restricted(Access.LABEL)(x), plain.restricted(Access.LABEL)(x))
    scores, before = (t.restricted(Access.SCORES)(x) for t in (made.target, plain))
    assert bool(scores.isfinite().all()) and not torch.equal(scores, before)
    assert torch.equal(scores.argmax(1), before.argmax(1))
    assert not scores.requires_grad
    assert made.classifier is None and made.target.module is plain.module


def test_rejects_settings_that_change_nothing() -> None:
    with pytest.raises(InputError, match="change nothing"):
        defend(Purification(decimals=None))
