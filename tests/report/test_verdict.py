from __future__ import annotations

from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inversight.report import model_card, render_card
from inversight.report.card import escaped
from inversight.report.formatting import number
from inversight.report.verdict import headline, median_interval, summary, verdict
from tests.report.examples import manifest, metrics, metrics_of, plain_data, samples
from tests.report.exposure_examples import SHADOWS, exposed_data, exposure_metrics
from tests.report.parsers import assert_texts


def covering(n: int, k: int) -> float:
    """P(k-th smallest <= median <= k-th largest of n), counted."""
    return sum(comb(n, j) for j in range(k, n - k + 1)) / 2**n


@pytest.mark.parametrize("n", [6, 7, 10, 20, 100, 501])
def test_median_interval_is_the_shortest_of_order_statistics_at_95_percent(n):
    values = np.random.default_rng(n).permutation(np.arange(1, n + 1)).astype(float)
    found = median_interval(values.tolist())
    k = int(found["low"])  # the k-th smallest of 1..n is k
    assert found == {"value": np.median(values), "low": k, "high": n + 1 - k}
    assert covering(n, k) >= 0.95 > covering(n, k + 1)


def test_fewer_than_six_values_have_no_interval():
    found = median_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found == {"value": 3.0, "low": None, "high": None}


def judged(private, holdout=None, *, found=None, exact=False, **changes):
    table = samples(len(private)).assign(nearest_distance=private, exact_hit=exact)
    return verdict(
        plain_data(samples=table, holdout_nearest=holdout, metrics=found or metrics(), **changes)
    )


NEAR, FAR = np.linspace(0.1, 0.2, 40), np.linspace(0.3, 0.4, 40)
SAME = np.linspace(0.1, 0.4, 40)


def both(p, value, count):
    """Metrics of a run with a clear leakage gap, and shadow models."""
    return {**metrics_of(0.38, 0.005, 4), **exposure_metrics(value, p, count)}


def nearer(gap, p):
    """Metrics of a run whose distance gap comes before its clear leakage gap."""
    found = {"value": gap, "low": -1.0, "high": 1.5, "p_value": p, "explained": 0.62}
    return {**metrics_of(0.38, 0.005, 0), "distance_gap": found}


@pytest.mark.parametrize(
    ("found", "level", "named"),
    [
        (metrics_of(0.38, 0.005, 0), "leak", "leakage gap 0.38, p = 0.005"),
        (metrics_of(0.38, 0.005, 4), "leak", "leakage gap 0.38, p = 0.005"),
        (metrics_of(0.02, 0.4, 0), "none-seen", "leakage gap 0.02, p = 0.4"),
        (metrics_of(0.02, 0.4, 4), "unclear", "leakage gap 0.02, p = 0.4"),
        (metrics_of(-0.3, 0.9, 0), "none-seen", "leakage gap -0.3, p = 0.9"),
        (nearer(0.31, 0.004), "leak", "nearer to the reconstructions than holdout images of the"),
        (nearer(0.31, 0.004), "leak", "distance gap 0.31, p = 0.004"),
        (nearer(-0.1, 0.8), "none-seen", "distance gap -0.1, p = 0.8"),
        (nearer(None, None), "leak", "leakage gap 0.38, p = 0.005"),
        (metrics_of(None, None, 4), "leak", "4 of 30 private images are flagged"),
        (metrics_of(0.4, None, 4), "leak", "false-discovery rate of 10 %"),
        (metrics_of(None, None, 0), "none-seen", "None of 30 private images is flagged"),
        (metrics_of(None, None, None), "unclear", "needs more holdout images"),
        ({}, "unclear", "no holdout"),
        (both(0.0001, 1.06, 9), "leak", "exposure of the set 1.06, p = 0.0001, randomisation test"),
        (both(0.0001, 1.06, 0), "leak", "randomisation test over 24 shadow models"),
        (both(0.3, 1.01, 0), "none-seen", "does not prove that any image is safe"),
        (both(0.3, 1.01, 9), "unclear", "One by one, 9 of 200 images are exposed"),
        (both(0.3, 1.01, 1), "unclear", "One by one, 1 of 200 images is exposed"),
        (both(0.01, 0.99, 0), "none-seen", "were not shown to give reconstructions nearer"),
        (both(None, 1.06, 9), "leak", "leakage gap 0.38, p = 0.005"),
        (both(None, None, None), "leak", "leakage gap 0.38, p = 0.005"),
    ],
)
def test_first_available_test_decides_the_headline(found, level, named):
    assert headline(found).level == level
    assert named in headline(found).sentence


@pytest.mark.parametrize("private", [NEAR, SAME, FAR])
def test_medians_do_not_affect_the_headline(private):
    found = judged(private, SAME, found=metrics_of(0.38, 0.005))
    assert (found.level, found.sentence) == ("leak", headline(metrics_of(0.38, 0.005)).sentence)
    assert any(g.startswith("Median nearest distance") for g in found.facts)


# A small p or a count is written exactly, a value to three digits.
VALUES = st.one_of(st.none(), st.floats(-5, 5).map(lambda x: float(f"{x:.3g}")))
CHANCES = st.one_of(st.none(), st.integers(1, 1001).map(lambda k: k / 1001))
COUNTS = st.one_of(st.none(), st.integers(0, 30))


@given(VALUES, CHANCES, COUNTS, st.sampled_from([NEAR, SAME, FAR]), st.booleans())
def test_no_sentence_contradicts_a_number(gap, p, count, private, exact):
    """Headline, report, card and printed summary agree with gap, p-value, flags and each other."""
    found = metrics_of(gap, p, count)
    report = judged(private, SAME, found=found, exact=exact)
    card = model_card(manifest(), found)
    printed = summary(found)
    first = headline(found)
    assert report.sentence.startswith(first.sentence) and first.sentence in printed
    assert card["inversight"]["verdict"] == first.sentence
    assert escaped(first.sentence) in render_card(card)

    set_tested = gap is not None and p is not None
    shown = set_tested and gap > 0 and p <= 0.05
    for text in (" ".join([report.sentence, *report.facts]), printed, render_card(card)):
        claims = {
            "recovers something": shown,
            "No leakage of the private images as a set was shown": set_tested and not shown,
            "has no test of leakage": not set_tested and count is None,
            "is flagged at": not set_tested and count == 0,
            "are flagged at": not set_tested and bool(count),
            "One by one": set_tested and not shown and bool(count),
        }
        assert {claim: claim in text for claim in claims} == claims
        for word in ("exposed", "not clearly nearer", "no clear leakage"):
            assert word not in text
        if set_tested:
            assert f"leakage gap {number(gap)}, p = {number(p)}" in text
    if exact:
        assert "reproduced exactly" in report.sentence and report.level == "leak"
    elif shown:
        assert report.level == "leak"


GAP = {"value": 2.5, "low": 1.5, "high": 3.5, "attack": 4.0, "control": 1.5}
NO_GAP = {"value": None, "reason": "there is a holdout"}
FEW = np.array([0.5, 0.1, 0.3, 0.2, 0.4, 0.6])
FULL = metrics_of(low=0.1, high=0.7)
BARE = metrics_of(low=None, high=None, p=None)
NOT_SAFE = [
    "does not mean that they are safe", "not shown to be safe", "119 holdout images, 3 or more",
    "2 images were not tested",
]  # fmt: skip


@pytest.mark.parametrize(
    ("private", "holdout", "changes", "stated", "unstated"),
    [
        (NEAR, FAR, {}, ["40 of 40 private images lie nearer than all but the nearest 5 % of the"], []),
        (NEAR, FAR, {}, ["about 2 would by chance", "private 0.15 [", "holdout 0.35 ["], []),
        (NEAR, None, {}, ["--holdout"], ["control"]),
        (NEAR, None, {"control_gap": GAP}, ["Gap to the control: 2.5 [1.5, 3.5]", "(4)", "(1.5)"], []),
        (NEAR, None, {"control_gap": GAP}, ["no evidence that any image leaked"], []),
        (NEAR, None, {"control_gap": NO_GAP}, [], ["control"]),
        (NEAR, [0.5] * 40, {"control_gap": NO_GAP}, [], ["control"]),
        (FEW, None, {}, ["p1/1.png (0.1), p3/3.png (0.2), p2/2.png (0.3)"], []),
        ([0.5, np.nan, 0.3, np.nan], [np.nan, 0.2], {}, ["2 of 4 private images have no"], []),
        (SAME, [0.2] * 40, FULL, ["Leakage gap: 0.4 [0.1, 0.7]", "(2.4)", "(2)"], []),
        (SAME, [0.2] * 40, FULL, ["as large in 1.2 % of cases (p = 0.012)"], []),
        (SAME, [0.2] * 40, BARE, ["Leakage gap: 0.4, the mean"], ["cases"]),
        (SAME, SAME, metrics_of(count=0, not_judged=2), ["0 of 28 images flagged", *NOT_SAFE], []),
        (SAME, SAME, metrics_of(count=4, not_judged=2), ["4 of 28 images flagged", *NOT_SAFE], []),
        (SAME, SAME, metrics_of(count=None), ["against the holdout: needs more holdout images."], []),
        (SAME, SAME, metrics_of(count=None), ["No number here is a calibrated", NOT_SAFE[0]], []),
    ],
)  # fmt: skip
def test_facts(private, holdout, changes, stated, unstated):
    found = judged(np.array(private), holdout, found={**metrics(), **changes})
    assert_texts(" ".join(found.facts), stated, unstated)
    assert found.level == "unclear" or changes


def test_does_not_compare_with_the_holdout_in_the_features_of_the_evaluator():
    found = judged(NEAR, FAR.tolist(), embedding="evaluator")
    assert found.level == "unclear"
    assert any("trained on the private images" in fact for fact in found.facts)
    assert not any("Median" in fact for fact in found.facts)


@given(
    st.one_of(st.none(), st.floats(0.5, 2).map(lambda x: float(f"{x:.3g}"))), CHANCES,
    st.one_of(st.none(), st.integers(0, 30)), VALUES, CHANCES, COUNTS,
)  # fmt: skip
def test_no_sentence_contradicts_a_number_of_exposure(mean, p, count, gap, gap_p, flags):
    found = {**metrics_of(gap, gap_p, flags), **exposure_metrics(mean, p, count, 30)}
    report = judged(NEAR, SAME, found=found, shadows=SHADOWS)
    printed, first = summary(found), headline(found)
    card = model_card(manifest(shadows=SHADOWS), found)
    assert report.sentence == first.sentence == card["inversight"]["verdict"]
    assert first.sentence in printed

    tested = mean is not None and p is not None
    shown = tested and mean > 1 and p <= 0.05
    if not tested:
        assert (first.level, first.sentence) == (
            headline(metrics_of(gap, gap_p, flags)).level,
            headline(metrics_of(gap, gap_p, flags)).sentence,
        )
    elif shown:
        assert first.level == "leak"
    else:
        assert first.level == ("unclear" if count else "none-seen")
    for text in (" ".join([report.sentence, *report.facts]), printed):
        claims = {
            "Models trained on a private image give reconstructions nearer": shown,
            "were not shown to give reconstructions nearer": tested and not shown,
            f"{count} of 30 private images that can be judged {'is' if count == 1 else 'are'} exposed": (
                tested and count is not None
            ),
            "Single images were not tested for exposure": tested and count is None,
            "One by one": bool(count) if tested else "One by one" in first.sentence,
            # Only the first test speaks of the set in the headline's words.
            "as a set": not tested and "as a set" in first.sentence,
        }
        assert {claim: claim in text for claim in claims} == claims
        if tested:
            assert f"exposure of the set {number(mean)}, p = {number(p)}" in text
            assert "has no test of leakage" not in text and "calibrated risk" not in text


SMALLER, LARGER = ({**SHADOWS, "train_images": n, "target_images": 100} for n in (79, 126))
GIVEN = {"settings": {"target": "my.models:net"}}
NAMED = {**SHADOWS, "recipe": "my.recipes:train", "prior": "adapted", "looks": 2}


@pytest.mark.parametrize(
    ("changes", "stated", "unstated"),
    [
        ({}, ["Exposure of the set: 1.06 [1.04, 1.09]", "in 0.01 % of cases (p = 0.0001)"], []),
        ({}, ["an exposure of the set of 1.02 or more is found in 80 % of cases"], ["given model"]),
        (
            {},
            ["9 of 200 private images that can be judged are exposed at a false-discovery rate of"],
            [],
        ),
        (
            {},
            [
                "stands out alone is found in 80 % of cases if its exposure is 1.35 or more",
                "1 more could not be judged",
            ],
            [],
        ),
        (
            {},
            ["Tested were 24 shadow models (recipe: the audit's own training), trained on complem"],
            [],
        ),
        (
            {},
            ["Each was trained on 200 images, the target on 200.", "100 % of", "93 % of"],
            ["look "],
        ),
        ({}, ["not adapted to them", "An image that is not exposed was not shown"], ["memorise"]),
        ({"shadows": SMALLER}, ["0.79 times as many images", "memorise more", "be smaller"], []),
        ({"shadows": LARGER}, ["1.26 times as many images", "memorise less", "be larger"], []),
        ({"shadows": {**SMALLER, "train_images": 80}}, [], ["memorise"]),
        ({"shadows": {**SMALLER, "train_images": 125}}, [], ["memorise"]),
        ({"shadows": NAMED}, ["(recipe: my.recipes:train)", "adapted to each", "look 2"], []),
        ({"shadows": NAMED, **GIVEN}, ["not the given model itself"], []),
        ({"shadows": {}}, ["are exposed at a false-discovery"], ["Tested were"]),
        (
            {"shadows": {"models": 24}},
            ["Tested were 24 shadow models"],
            ["Each was", "classify"],
        ),
        (
            {"shadows": {**SHADOWS, "looks": [16, 24]}},
            ["This is look 2 at", "corrected for 2 looks"],
            ["in 0.01 % of cases"],
        ),
        ({"shadows": {**SHADOWS, "train_images": 99.5}}, ["on 99.5 images, the target on 200"], []),
    ],
)
def test_facts_of_exposure(changes, stated, unstated):
    assert_texts(" ".join(verdict(exposed_data(**changes)).facts), stated, unstated)


@pytest.mark.parametrize(
    ("p", "low", "said"), [(0.004, 0.99, True), (0.004, 1.01, False), (0.3, 1.01, True)]
)
def test_facts_explain_why_test_and_interval_disagree(p, low, said):
    found = {**metrics_of(), **exposure_metrics(p=p, low=low)}
    text = " ".join(verdict(exposed_data(metrics=found)).facts)
    assert ("the interval has the 12 pairs of models alone" in text) == said


def test_facts_know_models_that_are_no_pairs_of_halves():
    found = exposure_metrics(p=0.004, low=0.99)
    del found["exposure_mean"]["pairs"]
    text = " ".join(verdict(exposed_data(metrics={**metrics_of(), **found})).facts)
    stated = ["trained with and without each image", "the interval has the 24 models alone"]
    assert_texts(text, stated, ["pairs", "complementary"])


def test_facts_name_the_most_exposed_images_by_the_shrunken_value():
    data = exposed_data()
    table = data.samples[data.samples["exposed"].fillna(False)]
    best = table.sort_values("exposure_shrunken", ascending=False)["id"]
    [fact] = [f for f in verdict(data).facts if f.startswith("Most exposed")]
    places = [fact.index(name) for name in best[:3]]
    assert places == sorted(places) and best.iloc[3] not in fact
    none = data.samples.assign(exposed=False)
    assert "Most exposed" not in " ".join(verdict(exposed_data(samples=none)).facts)


def test_facts_say_what_the_given_model_shows():
    found = exposure_metrics(given_auc=0.61, given_p_value=0.04)
    text = " ".join(verdict(exposed_data(metrics={**metrics_of(), **found})).facts)
    assert_texts(text, ["with an AUC of 0.61", "p = 0.04 by its rank among the shadow models"])


def test_headline_names_an_exact_hit():
    found = verdict(plain_data())
    assert found.level == "leak"
    assert "1 of 30 private images was reproduced exactly" in found.sentence
    assert "p1/1.png" in found.sentence
