from __future__ import annotations

import pytest
import torch

from inversight.embeddings.base import Features
from inversight.scores import Summary, ddcs, first_of_each, gap_to_control
from inversight.scores.assignment import assign
from tests.scores.build import features, gaussian, shuffled


def gap(private: Features, guided: Features, control: Features, bootstrap: int = 200) -> Summary:
    return gap_to_control(
        *(assign(private, made, memory=1 << 30) for made in (guided, control)),
        labels=private.labels,
        ids=private.ids,
        bootstrap=bootstrap,
        rng=torch.Generator().manual_seed(0),
    )


PRIVATE = gaussian(30, 4, classes=3)
GUIDED, CONTROL = (gaussian(24, 4, classes=3, seed=s, prefix="r") for s in (1, 2))


def test_by_hand() -> None:
    private = features([[0.0], [10.0]])
    found = gap(private, features([[0.5], [0.1]]), features([[2.0], [12.0]]))
    # Guided: 1 / 0.1^2 and nothing; control: 1 / 2^2 for either.
    assert found.value == pytest.approx((100 + 0) / 2 - (0.25 + 0.25) / 2)
    assert found.extra["attack"] == pytest.approx(50) and found.extra["control"] == pytest.approx(
        0.25
    )
    assert (found.extra["covered"], found.extra["control_covered"]) == (0.5, 1.0)
    assert (found.extra["private_images"], found.extra["reconstructions"]) == (2, 2)


def test_it_is_the_difference_of_two_ddcs() -> None:
    found = gap(PRIVATE, GUIDED, CONTROL)
    one, other = (ddcs(PRIVATE, made).summary for made in (GUIDED, CONTROL))
    assert found.value == pytest.approx(one["ddcs_best"].value - other["ddcs_best"].value)  # type: ignore[operator]
    assert found.extra["covered"] == pytest.approx(one["covered"].value)
    assert found.extra["control_covered"] == pytest.approx(other["covered"].value)


def test_nothing_gained_is_nothing_and_its_interval_is_a_point() -> None:
    found = gap(PRIVATE, GUIDED, GUIDED)
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)


def test_direction_and_interval() -> None:
    near = Features(tuple(b[:24] + 0.05 for b in PRIVATE.blocks), PRIVATE.labels[:24], GUIDED.ids)
    found, back = gap(PRIVATE, near, CONTROL), gap(PRIVATE, CONTROL, near)
    assert found.low is not None and found.high is not None and found.value is not None
    assert 0 < found.low < found.value < found.high
    assert back.value == pytest.approx(-found.value)
    assert gap(PRIVATE, near, CONTROL, bootstrap=0).low is None


def test_images_are_resampled_with_both_of_their_scores() -> None:
    """The same large scores on both sides cancel in every resample; apart they would not."""
    exact = Features(
        tuple(b[:6] + 1e-2 for b in PRIVATE.blocks), PRIVATE.labels[:6], GUIDED.ids[:6]
    )

    def with_exact(made: Features) -> Features:
        blocks = tuple(torch.cat(pair) for pair in zip(exact.blocks, made.blocks, strict=True))
        ids = (*(f"x{i}" for i in exact.ids), *made.ids)
        return Features(blocks, torch.cat([exact.labels, made.labels]), ids)

    paired = gap(PRIVATE, with_exact(GUIDED), with_exact(CONTROL))
    alone = ddcs(PRIVATE, with_exact(GUIDED)).summary["ddcs_best"]
    assert paired.low is not None and paired.high is not None
    assert alone.low is not None and alone.high is not None
    assert paired.high - paired.low < 0.05 * (alone.high - alone.low)


def test_row_order_does_not_matter() -> None:
    mixed = (shuffled(made, i)[0] for i, made in enumerate((PRIVATE, GUIDED, CONTROL)))
    assert gap(*mixed) == gap(PRIVATE, GUIDED, CONTROL)


def test_the_first_of_each_class_in_order() -> None:
    labels = torch.tensor([1, 0, 1, 2, 1, 0])
    assert first_of_each(labels, torch.tensor([1, 2, 0])).tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="class 2: 2 rows wanted, 1 there"):
        first_of_each(labels, torch.tensor([0, 0, 2]))
