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


def test_a_metric_without_a_value_never_passes_silently() -> None:
    with pytest.raises(ConfigError, match=r"coverage has no value.*too few images"):
        Gate.parse("coverage>0.2").exceeded(
            {"coverage": {"value": None, "reason": "too few images"}}
        )
