from __future__ import annotations

from math import comb

import numpy as np
import pytest

from inversight.report.verdict import median_interval, verdict
from tests.report.examples import metrics, plain_data, samples


def covering(n: int, k: int) -> float:
    """P(k-th smallest <= median <= k-th largest of n), counted."""
    return sum(comb(n, j) for j in range(k, n - k + 1)) / 2**n


@pytest.mark.parametrize("n", [6, 7, 10, 20, 100, 501])
def test_the_median_interval_is_the_shortest_of_order_statistics_at_95_percent(n):
    values = np.random.default_rng(n).permutation(np.arange(1, n + 1)).astype(float)
    found = median_interval(values.tolist())
    assert found.value == np.median(values)
    k = int(found.low)  # the k-th smallest of 1..n is k
    assert found.high == n + 1 - k
    assert covering(n, k) >= 0.95 > covering(n, k + 1)


def test_fewer_than_six_values_have_no_interval():
    assert median_interval([1.0, 2.0, 3.0, 4.0, 5.0]).low is None
    assert str(median_interval([2.0])) == "2"


def judged(private, holdout, **changes):
    table = samples(len(private)).assign(nearest_distance=private, exact_hit=False)
    return verdict(plain_data(samples=table, holdout_nearest=holdout, **changes))


def test_private_clearly_nearer_than_holdout_is_leakage():
    found = judged(np.linspace(0.1, 0.2, 40), np.linspace(0.3, 0.4, 40).tolist())
    assert found.level == "leak"
    assert "median nearest distance 0.15 against 0.35" in found.sentence
    below = [ground for ground in found.grounds if "the nearest 5 %" in ground]
    assert below[0].startswith("40 of 40 private images")


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_equally_near_or_farther_is_no_leakage_seen_and_never_called_safe(shift):
    holdout = np.linspace(0.1, 0.4, 40)
    found = judged(holdout + shift, holdout.tolist())
    assert found.level == "none-seen"
    assert "does not prove that any image is safe" in found.sentence


def test_without_a_holdout_the_run_cannot_tell():
    found = judged(np.linspace(0.1, 0.2, 40), None)
    assert found.level == "unclear"
    assert "cannot tell" in found.sentence
    assert any("--holdout" in ground for ground in found.grounds)


def test_the_gap_to_the_control_is_told_with_what_it_cannot_say():
    gap = {"value": 2.5, "low": 1.5, "high": 3.5, "attack": 4.0, "control": 1.5}
    near = np.linspace(0.1, 0.2, 40)
    found = judged(near, None, metrics={**metrics(), "control_gap": gap})
    assert found.level == "unclear"
    [ground] = [g for g in found.grounds if g.startswith("Gap to the control")]
    assert "2.5 [1.5, 3.5]" in ground and "(4)" in ground and "(1.5)" in ground
    assert "no evidence that any image leaked, and has no p value" in ground
    none = {"value": None, "reason": "there is a holdout"}
    for holdout in (None, [0.5] * 40):
        text = " ".join(judged(near, holdout, metrics={**metrics(), "control_gap": none}).grounds)
        assert "control" not in text


def test_too_few_images_are_not_compared():
    assert judged(np.array([0.1, 0.2, 0.3]), [0.9, 0.8, 0.9]).level == "unclear"


def test_distances_in_the_evaluators_features_are_not_compared_with_the_holdout():
    private, holdout = np.linspace(0.1, 0.2, 40), np.linspace(0.3, 0.4, 40).tolist()
    found = judged(private, holdout, embedding="evaluator")
    assert found.level == "unclear"
    assert any("trained on the private images" in ground for ground in found.grounds)


def test_an_exact_hit_leads_the_verdict_and_is_named():
    found = verdict(plain_data())
    assert found.level == "leak"
    assert found.sentence.startswith("1 of 30 private images was reproduced exactly")
    assert "p1/1.png" in found.sentence


def test_the_closest_three_are_named_in_order():
    found = judged(np.array([0.5, 0.1, 0.3, 0.2, 0.4, 0.6]), None)
    assert "p1/1.png (0.1), p3/3.png (0.2), p2/2.png (0.3)" in found.grounds[0]


def test_images_whose_class_was_not_reconstructed_are_counted_apart():
    found = judged(np.array([0.5, np.nan, 0.3, np.nan]), [np.nan, 0.2])
    assert any(ground.startswith("2 of 4 private images have no") for ground in found.grounds)


def test_every_verdict_says_that_zero_is_not_safe_and_that_nothing_is_calibrated():
    for holdout in (None, [0.2] * 40):
        text = " ".join(judged(np.linspace(0.1, 0.2, 40), holdout).grounds)
        assert "does not mean that they are safe" in text
        assert "No number here is a calibrated risk" in text


def calibrated(count, *, not_judged=0, **gap):
    judged = 30 - not_judged
    return {
        **metrics(),
        "flagged": {
            "value": count / judged, "low": None, "high": None, "count": count, "fdr": 0.1,
            "smallest_possible": 3, "private_images": judged, "holdout_images": 119,
            "not_judged": not_judged,
        },
        "leakage_gap": {
            "value": 0.4, "low": 0.1, "high": 0.7, "private": 2.4, "holdout": 2.0,
            "private_images": 30, "holdout_images": 119, "p_value": 0.012, **gap,
        },
    }  # fmt: skip


def test_flagged_images_are_a_leak_told_with_their_rate_and_power():
    same = np.linspace(0.1, 0.4, 30)
    found = judged(same, same.tolist(), metrics=calibrated(4))
    assert found.level == "leak"
    assert found.sentence.startswith("4 of 30 private images are flagged")
    assert "at most 10 % of flags are false alarms" in found.sentence
    text = " ".join(found.grounds)
    assert "With 119 holdout images none is flagged unless 3 or more stand out together" in text
    assert "drawn as the private ones" in text and "not shown to be safe" in text
    assert "No number here" not in text


def test_no_flag_is_not_called_safe():
    same = np.linspace(0.1, 0.4, 30)
    found = judged(same, same.tolist(), metrics=calibrated(0, not_judged=2))
    assert found.level == "none-seen"
    text = " ".join(found.grounds)
    assert "0 of 28 images flagged" in text and "not shown to be safe" in text
    assert "2 images were not judged" in text


def test_the_gap_is_told_with_its_interval_and_chance():
    text = " ".join(judged(np.linspace(0.1, 0.4, 30), [0.2] * 40, metrics=calibrated(0)).grounds)
    assert "Leakage gap: 0.4 [0.1, 0.7]" in text and "(2.4)" in text and "(2)" in text
    assert "as large in 1.2 % of cases" in text
    bare = calibrated(0, low=None, high=None, p_value=None)
    text = " ".join(judged(np.linspace(0.1, 0.4, 30), [0.2] * 40, metrics=bare).grounds)
    assert "Leakage gap: 0.4, the DDCS" in text and "cases" not in text


def test_what_could_not_be_judged_says_why():
    found = {**metrics(), "flagged": {"value": None, "reason": "needs at least 9 holdout images"}}
    text = " ".join(judged(np.linspace(0.1, 0.4, 30), [0.2] * 8, metrics=found).grounds)
    assert "by itself against the holdout: needs at least 9 holdout images." in text
    assert "No number here is a calibrated risk" in text
