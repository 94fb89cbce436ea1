"""What an audit or a scoring returns, and the thresholds of ``--fail-on`` that are checked on it."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from inversight.core.config import nearest
from inversight.core.errors import ConfigError
from inversight.pipeline.metrics import CONTROL_GAP, EXPOSURES, METRICS, RISKS
from inversight.risk import check_embedding
from inversight.risk.experiment import LEAST_TO_FLAG

Metrics = Mapping[str, Mapping[str, Any]]

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_FORM = re.compile(rf"\s*([a-z_0-9]+)\s*([<>]=?)\s*({_NUMBER})\s*", re.ASCII)
_OPERATORS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
_SHARES = (
    "covered", "coverage", "precision", "recall", "accuracy_top1", "accuracy_top5", "flagged",
    "exposed", "exposure_auc", "membership_auc",
)  # fmt: skip
"""Metrics in [0, 1]."""


@dataclass(frozen=True)
class AuditResult:
    """The result of an audit or of a scoring.

    run: the run folder. metrics: metrics.json. samples: samples.parquet, one row for each private image,
    with the columns of :data:`inversight.SAMPLE_COLUMNS`. crossed: the thresholds of ``fail_on`` that
    hold, each with the value found.
    """

    run: Path
    metrics: dict[str, dict[str, Any]]
    samples: pd.DataFrame
    warnings: tuple[str, ...]
    crossed: tuple[str, ...] = ()

    @property
    def exceeded(self) -> bool:
        """Whether any threshold of ``fail_on`` holds."""
        return bool(self.crossed)

    @property
    def report(self) -> Path:
        """The path of the report."""
        return self.run / "report.html"


@dataclass(frozen=True)
class Threshold:
    """``metric OPERATOR number``, as in ``coverage>0.2``."""

    metric: str
    operator: str
    number: float

    @classmethod
    def parse(cls, text: str) -> Threshold:
        """Read an expression.

        Raises:
            ConfigError: another form, or a name that metrics.json does not have.
        """
        match = _FORM.fullmatch(text)
        if match is None:
            raise ConfigError(
                f"--fail-on {text}: expected METRIC>NUMBER or METRIC<NUMBER, as in 'coverage>0.2'"
            )
        if match[1] not in METRICS:
            known = nearest(match[1], METRICS) or f"; there are {', '.join(METRICS)}"
            raise ConfigError(f"--fail-on {text}: no metric is called {match[1]}{known}")
        return cls(match[1], match[2], float(match[3]))

    def __str__(self) -> str:
        return f"{self.metric}{self.operator}{self.number:.12g}"

    def check(
        self, *, holdout: bool, embedding: str, control: bool = True, shadows: int = 0
    ) -> None:
        """Refuse before a run a threshold that cannot be checked after it.

        ``control``: the run draws a control if it has no holdout. ``shadows``: number of its shadow
        models.

        Raises:
            ConfigError: the metric needs a holdout, no holdout, another embedding or shadow models; or
                it is a share and the number is outside of [0, 1].
        """
        if self.metric in _SHARES and not 0 <= self.number <= 1:
            raise ConfigError(
                f"--fail-on {self}: {self.metric} is a share from 0 to 1; write 5 % as 0.05"
            )
        if self.metric == CONTROL_GAP and not control:
            raise ConfigError(
                f"--fail-on {self}: {self.metric} is of audits alone; a score has none"
            )
        if self.metric == CONTROL_GAP and holdout:
            raise ConfigError(
                f"--fail-on: {self.metric} is of audits without a holdout; with one, use leakage_gap"
            )
        if self.metric in EXPOSURES and not shadows:
            raise ConfigError(
                f"--fail-on: {self.metric} needs the shadow models of an audit (--shadows K)"
            )
        if self.metric == "exposed" and shadows < LEAST_TO_FLAG:
            raise ConfigError(
                f"--fail-on: {self.metric} needs at least {LEAST_TO_FLAG} shadow models, found {shadows}; "
                "with fewer no image is flagged"
            )
        if self.metric in RISKS:
            if not holdout:
                raise ConfigError(f"--fail-on: {self.metric} needs a holdout: give --holdout")
            check_embedding(embedding)

    def holds(self, metrics: Metrics) -> bool:
        """Return whether the expression holds of ``metrics``.

        Raises:
            ConfigError: the metric has no value, and must not pass silently.
        """
        value = metrics[self.metric]["value"]
        if value is None:
            raise ConfigError(
                f"--fail-on: {self.metric} has no value in this run ({metrics[self.metric]['reason']})"
            )
        return bool(_OPERATORS[self.operator](value, self.number))


def thresholds(fail_on: str | Sequence[str] | None) -> tuple[Threshold, ...]:
    """Return the thresholds of a setting ``fail_on``: none, one expression or several.

    Raises:
        ConfigError: one of them has another form or names no metric.
    """
    if fail_on is None:
        return ()
    return tuple(map(Threshold.parse, [fail_on] if isinstance(fail_on, str) else fail_on))


def crossed(limits: Sequence[Threshold], metrics: Metrics) -> tuple[str, ...]:
    """Return those that hold, each with the value found, as in ``flagged>0.05 (0.12)``.

    Raises:
        ConfigError: one asks for a metric that has no value in this run.
    """
    return tuple(
        f"{limit} ({metrics[limit.metric]['value']:.4g})"
        for limit in limits
        if limit.holds(metrics)
    )
