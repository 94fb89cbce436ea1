"""``--fail-on`` expressions."""

from __future__ import annotations

import operator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inversight.core.errors import ConfigError
from inversight.pipeline.metrics import METRICS
from inversight.pipeline.result import Threshold, crossed, thresholds

OPERATORS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
FINITE = st.floats(-1e6, 1e6)


@given(
    metric=st.sampled_from(sorted(METRICS)),
    sign=st.sampled_from(sorted(OPERATORS)),
    threshold=FINITE,
    value=FINITE,
    equal=st.booleans(),
)
def test_an_expression_means_what_python_means(
    metric: str, sign: str, threshold: float, value: float, equal: bool
) -> None:
    value = threshold if equal else value
    limit = Threshold.parse(f" {metric} {sign} {threshold!r} ")
    assert limit == Threshold(metric, sign, threshold)
    assert limit.holds({metric: {"value": value}}) is OPERATORS[sign](value, threshold)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "coverage",
        "coverage>",
        ">0.2",
        "coverage=0.2",
        "coverage>>1",
        "coverage>1e",
        "coverage>0.2 and x",
    ],
)
def test_other_forms_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--fail-on .*METRIC>NUMBER"):
        Threshold.parse(text)


def test_unknown_metrics_get_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"no metric is called coverag; did you mean coverage\?"):
        Threshold.parse("coverag>0.2")
    with pytest.raises(ConfigError, match=r"no metric is called xyz; there are ddcs_best, .*flag"):
        Threshold.parse("xyz>0.2")


def test_what_a_run_will_end_without_is_refused_before_it() -> None:
    limit = Threshold.parse("flagged>0.05")
    limit.check(holdout=True, embedding="pixel")
    with pytest.raises(ConfigError, match="flagged needs a holdout: give --holdout"):
        limit.check(holdout=False, embedding="pixel")
    with pytest.raises(ConfigError, match="has seen the private images"):
        Threshold.parse("leakage_gap>1").check(holdout=True, embedding="evaluator")
    control = Threshold.parse("control_gap>1")
    control.check(holdout=False, embedding="pixel")
    with pytest.raises(ConfigError, match="without a holdout; with one, use leakage_gap"):
        control.check(holdout=True, embedding="pixel")
    Threshold.parse("coverage>0.2").check(holdout=False, embedding="evaluator")


def test_a_metric_without_a_value_never_passes_silently() -> None:
    with pytest.raises(ConfigError, match=r"coverage has no value.*too few images"):
        Threshold.parse("coverage>0.2").holds(
            {"coverage": {"value": None, "reason": "too few images"}}
        )


@pytest.mark.parametrize("text", ["flagged>5", "covered<1.01", "accuracy_top1>=-0.1"])
def test_a_threshold_that_no_share_can_cross_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"is a share from 0 to 1; write 5 % as 0\.05"):
        Threshold.parse(text).check(holdout=True, embedding="pixel")


@pytest.mark.parametrize("text", ["flagged>0", "covered>1", "ddcs_best>5", "leakage_gap>-3"])
def test_thresholds_that_can_be_crossed_are_not(text: str) -> None:
    Threshold.parse(text).check(holdout=True, embedding="pixel")


def test_one_expression_several_or_none() -> None:
    assert thresholds(None) == ()
    assert thresholds("covered>0.5") == (Threshold("covered", ">", 0.5),)
    two = thresholds(["covered>0.5", "flagged >= 1e-2"])
    assert two == (Threshold("covered", ">", 0.5), Threshold("flagged", ">=", 0.01))
    with pytest.raises(ConfigError, match="covred"):
        thresholds(("flagged>0.1", "covred>0.5"))


def test_those_that_hold_are_named_with_their_value() -> None:
    metrics = {"covered": {"value": 0.75}, "flagged": {"value": 0.0}, "fid": {"value": 123.456}}
    found = crossed(thresholds(["covered>0.5", "flagged>0", "fid<200"]), metrics)
    assert found == ("covered>0.5 (0.75)", "fid<200 (123.5)")
    assert crossed(thresholds("flagged>0"), metrics) == ()
    assert crossed((), metrics) == ()
    metrics["flagged"] = {"value": None, "reason": "9 holdout images"}
    with pytest.raises(ConfigError, match="flagged has no value"):
        crossed(thresholds(["covered>0.5", "flagged>0"]), metrics)
