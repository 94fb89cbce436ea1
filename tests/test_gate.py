"""``--fail-on`` expressions."""

from __future__ import annotations

import operator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inversight.errors import ConfigError
from inversight.evaluation import METRICS
from inversight.gate import Gate

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
    gate = Gate.parse(f" {metric} {sign} {threshold!r} ")
    assert gate == Gate(metric, sign, threshold)
    assert gate.exceeded({metric: {"value": value}}) is OPERATORS[sign](value, threshold)


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
        Gate.parse(text)


def test_unknown_metrics_get_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"no metric is called coverag; did you mean coverage\?"):
        Gate.parse("coverag>0.2")


def test_what_a_run_will_end_without_is_refused_before_it() -> None:
    gate = Gate.parse("flagged>0.05")
    gate.check(holdout=True, embedding="pixel")
    with pytest.raises(ConfigError, match="flagged needs a holdout: give --holdout"):
        gate.check(holdout=False, embedding="pixel")
    with pytest.raises(ConfigError, match="has seen the private images"):
        Gate.parse("leakage_gap>1").check(holdout=True, embedding="evaluator")
    control = Gate.parse("control_gap>1")
    control.check(holdout=False, embedding="pixel")
    with pytest.raises(ConfigError, match="without a holdout; with one, use leakage_gap"):
        control.check(holdout=True, embedding="pixel")
    Gate.parse("coverage>0.2").check(holdout=False, embedding="evaluator")


def test_a_metric_without_a_value_never_passes_silently() -> None:
    with pytest.raises(ConfigError, match=r"coverage has no value.*too few images"):
        Gate.parse("coverage>0.2").exceeded(
            {"coverage": {"value": None, "reason": "too few images"}}
        )
