"""Labels sharper than hard ones, reached step by step."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from inversight.core.config import from_mapping
from inversight.core.errors import ConfigError, InputError
from inversight.core.seeding import generator
from inversight.defences import NegativeLabelSmoothing
from inversight.defences.negative_label_smoothing import ScheduledSmoothing, smoothed_loss
from tests.defences.problem import LONGER, defend, images, training_data

LOGITS = torch.randn(6, 4, generator=generator(0))
LABELS = torch.tensor([0, 1, 2, 3, 0, 1])


@pytest.mark.parametrize("alpha", [-1.0, -0.05, 0.0, 0.3])
def test_loss_by_its_definition(alpha: float) -> None:
    labels = (1 - alpha) * F.one_hot(LABELS, 4) + alpha / 4
    expected = -(labels * LOGITS.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(smoothed_loss(LOGITS, LABELS, alpha), expected)
    if alpha >= 0:
        torch.testing.assert_close(
            smoothed_loss(LOGITS, LABELS, alpha),
            F.cross_entropy(LOGITS, LABELS, label_smoothing=alpha),
        )


def test_schedule() -> None:
    shares = ScheduledSmoothing(alpha=-0.4, hard_until=0.25, full_from=0.75)
    found = [shares.at(done) for done in (0.0, 0.25, 0.5, 0.74999, 0.75, 0.99)]
    assert found == pytest.approx([0.0, 0.0, -0.2, -0.4, -0.4, -0.4], abs=1e-4)
    assert ScheduledSmoothing(-0.4, 0.0, 0.0).at(0.0) == -0.4


def test_networks_become_surer() -> None:
    given = training_data(training=LONGER)
    x, spread = images(7).floats(), []
    for alpha in (0.0, -0.5):
        logits = defend(NegativeLabelSmoothing(alpha=alpha), given).target(x)
        spread.append(float((logits.amax(1) - logits.amin(1)).mean()))
    assert spread[1] > 1.2 * spread[0]


def test_settings() -> None:
    with pytest.raises(ConfigError, match="alpha"):
        from_mapping(NegativeLabelSmoothing, {"alpha": 0.1})
    with pytest.raises(InputError, match="hard_until <= full_from"):
        defend(NegativeLabelSmoothing(hard_until=0.9, full_from=0.1))
