"""The samples' columns, and ``--fail-on`` expressions."""

from __future__ import annotations

import operator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inversight import SAMPLE_COLUMNS, AuditResult
from inversight.core.errors import ConfigError
from inversight.pipeline.metrics import METRICS
from inversight.pipeline.result import Threshold, crossed, thresholds
from tests.pipeline.tables import assert_described
from tests.pipeline.tiny import read_result

AUDIT = ("in audits", "in white-box audits", "with a holdout")

OPERATORS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
FINITE = st.floats(-1e6, 1e6)


def test_columns_are_as_they_are_described(finished: AuditResult, audited: Path) -> None:
    assert_described(finished.samples, *AUDIT)
    assert_described(read_result(audited / "run").samples, *AUDIT, "with shadow models")
    assert all(c.name and c.meaning.endswith(".") for c in SAMPLE_COLUMNS.values())


@given(
    metric=st.sampled_from(sorted(METRICS)),
    sign=st.sampled_from(sorted(OPERATORS)),
    threshold=FINITE,
    value=FINITE,
    equal=st.booleans(),
)
def test_expression_means_what_it_means_in_python(
    metric: str, sign: str, threshold: float, value: float, equal: bool
) -> None:
    value = threshold if equal else value
    limit = Threshold.parse(f" {metric} {sign} {threshold!r} ")
    assert limit == Threshold(metric, sign, threshold)
    assert limit.holds({metric: {"value": value}}) is OPERATORS[sign](value, threshold)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *(
            (text, "--fail-on .*METRIC>NUMBER")
            for text in (
                "", "coverage", "coverage>", ">0.2", "coverage=0.2", "coverage>>1", "coverage>1e",
                "coverage>0.2 and x",
            )
        ),
        ("coverag>0.2", r"no metric is called coverag; did you mean coverage\?"),
        ("xyz>0.2", "no metric is called xyz; there are ddcs_best, .*flag"),
    ],
)  # fmt: skip
def test_rejects_what_is_no_threshold(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Threshold.parse(text)


SHARE = r"is a share from 0 to 1; write 5 % as 0\.05"


@pytest.mark.parametrize(
    ("text", "run", "message"),
    [
        ("flagged>0.05", {"holdout": False}, "flagged needs a holdout: give --holdout"),
        ("leakage_gap>1", {"embedding": "evaluator"}, "has seen the private images"),
        ("control_gap>1", {}, "without a holdout; with one, use leakage_gap"),
        ("control_gap>1", {"holdout": False, "control": False}, "of audits alone"),
        ("exposed>0.02", {}, "exposed needs the shadow models of an audit"),
        ("exposure_mean>1.05", {}, "exposure_mean needs the shadow models"),
        ("exposed>0.02", {"shadows": 4}, "needs at least 8 shadow models, found 4"),
        ("exposed>2", {"shadows": 8}, SHARE),
        ("exposure_auc>60", {"shadows": 8}, SHARE),
        ("exposed>0.02", {"shadows": 8, "holdout": False, "embedding": "evaluator"}, None),
        ("exposure_mean>1.05", {"shadows": 8}, None),
        ("flagged>5", {}, SHARE),
        ("covered<1.01", {}, SHARE),
        ("accuracy_top1>=-0.1", {}, SHARE),
        ("flagged>0", {}, None),
        ("covered>1", {}, None),
        ("ddcs_best>5", {}, None),
        ("leakage_gap>-3", {}, None),
        ("control_gap>1", {"holdout": False}, None),
        ("coverage>0.2", {"holdout": False, "embedding": "evaluator"}, None),
    ],
)
def test_rejects_before_a_run_what_it_cannot_check_after_it(
    text: str, run: dict[str, Any], message: str | None
) -> None:
    expected = nullcontext() if message is None else pytest.raises(ConfigError, match=message)
    with expected:
        Threshold.parse(text).check(**{"holdout": True, "embedding": "pixel", **run})


def test_one_expression_several_or_none() -> None:
    assert thresholds(None) == ()
    assert thresholds("covered>0.5") == (Threshold("covered", ">", 0.5),)
    two = thresholds(["covered>0.5", "flagged >= 1e-2"])
    assert two == (Threshold("covered", ">", 0.5), Threshold("flagged", ">=", 0.01))
    with pytest.raises(ConfigError, match="covred"):
        thresholds(("flagged>0.1", "covred>0.5"))


def test_thresholds_that_hold_are_named_with_their_value() -> None:
    metrics = {"covered": {"value": 0.75}, "flagged": {"value": 0.0}, "fid": {"value": 123.456}}
    found = crossed(thresholds(["covered>0.5", "flagged>0", "fid<200"]), metrics)
    assert found == ("covered>0.5 (0.75)", "fid<200 (123.5)")
    assert crossed(thresholds("flagged>0"), metrics) == ()
    assert crossed((), metrics) == ()
    # A metric without a value never passes silently.
    metrics["flagged"] = {"value": None, "reason": "9 holdout images"}
    with pytest.raises(ConfigError, match=r"flagged has no value.*9 holdout images"):
        crossed(thresholds(["covered>0.5", "flagged>0"]), metrics)
