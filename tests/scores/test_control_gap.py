from __future__ import annotations

import pytest
import torch

from inversight.embeddings.base import Features
from inversight.scores import Summary, ddcs, first_of_each, gap_to_control
from inversight.scores.assignment import assign
from tests.draws import rng
from tests.scores.build import features, gaussian, interval, joined, shuffled, value


def gap(private: Features, guided: Features, control: Features, bootstrap: int = 200) -> Summary:
    return gap_to_control(
        *(assign(private, made, memory=1 << 30) for made in (guided, control)),
        labels=private.labels, ids=private.ids, bootstrap=bootstrap, rng=rng(),
    )  # fmt: skip


PRIVATE = gaussian(30, 4, classes=3)
GUIDED, CONTROL = (gaussian(24, 4, classes=3, seed=s, prefix="r") for s in (1, 2))


def near(n: int, step: float, prefix: str = "x") -> Features:
    """Return reconstructions near the first ``n`` private images."""
    ids = tuple(f"{prefix}{name}" for name in GUIDED.ids[:n])
    return Features(tuple(b[:n] + step for b in PRIVATE.blocks), PRIVATE.labels[:n], ids)


def test_by_hand() -> None:
    private = features([[0.0], [10.0]])
    found = gap(private, features([[0.5], [0.1]]), features([[2.0], [12.0]]))
    # Guided: 1 / 0.1^2 and nothing; control: 1 / 2^2 for either.
    assert found.value == pytest.approx((100 + 0) / 2 - (0.25 + 0.25) / 2)
    assert found.extra == pytest.approx(
        {
            "attack": 50, "control": 0.25, "covered": 0.5, "control_covered": 1.0,
            "private_images": 2, "reconstructions": 2,
        }
    )  # fmt: skip


def test_equal_sets_have_no_gap() -> None:
    found = gap(PRIVATE, GUIDED, GUIDED)
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)


def test_direction_and_interval() -> None:
    close = near(24, 0.05)
    found, back = gap(PRIVATE, close, CONTROL), gap(PRIVATE, CONTROL, close)
    assert 0 < interval(found)[0] < value(found) < interval(found)[1]
    assert back.value == pytest.approx(-value(found))
    assert gap(PRIVATE, close, CONTROL, bootstrap=0).low is None


def test_resamples_both_scores_of_an_image_together() -> None:
    """The same large scores on both sides cancel in every resample; apart they would not."""
    guided, control = (joined(near(6, 1e-2), made) for made in (GUIDED, CONTROL))
    low, high = interval(gap(PRIVATE, guided, control))
    apart = interval(ddcs(PRIVATE, guided).summary["ddcs_best"])
    assert high - low < 0.05 * (apart[1] - apart[0])


def test_does_not_depend_on_row_order() -> None:
    mixed = (shuffled(made, i)[0] for i, made in enumerate((PRIVATE, GUIDED, CONTROL)))
    assert gap(*mixed) == gap(PRIVATE, GUIDED, CONTROL)


def test_first_of_each_class_in_order() -> None:
    labels = torch.tensor([1, 0, 1, 2, 1, 0])
    assert first_of_each(labels, torch.tensor([1, 2, 0])).tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="class 2: 2 rows wanted, 1 there"):
        first_of_each(labels, torch.tensor([0, 0, 2]))
