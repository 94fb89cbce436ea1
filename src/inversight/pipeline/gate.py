"""``--fail-on``: thresholds on metrics.json for pipelines."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inversight.core.config import nearest
from inversight.core.errors import ConfigError
from inversight.pipeline.metrics import CONTROL_GAP, METRICS, RISKS
from inversight.risk import check_embedding

_FORM = re.compile(r"\s*([a-z_0-9]+)\s*(<=|>=|<|>)\s*([-+0-9.eE]+)\s*")

_SHARES = (
    "covered",
    "coverage",
    "precision",
    "recall",
    "accuracy_top1",
    "accuracy_top5",
    "flagged",
)
"""Metrics in [0, 1]."""


@dataclass(frozen=True)
class Gate:
    """``metric OPERATOR number``, as in ``coverage>0.2``."""

    metric: str
    operator: str
    threshold: float

    @classmethod
    def parse(cls, text: str) -> Gate:
        """Read an expression.

        Raises:
            ConfigError: another form, or a name that metrics.json does not have.
        """
        match = _FORM.fullmatch(text)
        try:
            if match is None:
                raise ValueError
            threshold = float(match[3])
        except ValueError:
            raise ConfigError(
                f"--fail-on {text}: expected METRIC>NUMBER or METRIC<NUMBER, as in 'coverage>0.2'"
            ) from None
        if match[1] not in METRICS:
            known = nearest(match[1], METRICS) or f"; there are {', '.join(METRICS)}"
            raise ConfigError(f"--fail-on {text}: no metric is called {match[1]}{known}")
        return cls(match[1], match[2], threshold)

    def __str__(self) -> str:
        return f"{self.metric}{self.operator}{self.threshold:.12g}"

    def check(self, *, holdout: bool, embedding: str) -> None:
        """Refuse before a run what it is known to end without.

        Raises:
            ConfigError: the metric needs a holdout and there is none, or the other way round, or it
                needs another embedding; or the metric is a share and the threshold is none, so that
                it would hold always or never.
        """
        if self.metric in _SHARES and not 0 <= self.threshold <= 1:
            raise ConfigError(
                f"--fail-on {self}: {self.metric} is a share from 0 to 1; write 5 % as 0.05"
            )
        if self.metric == CONTROL_GAP and holdout:
            raise ConfigError(
                f"--fail-on: {self.metric} is of audits without a holdout; with one, use leakage_gap"
            )
        if self.metric in RISKS:
            if not holdout:
                raise ConfigError(f"--fail-on: {self.metric} needs a holdout: give --holdout")
            check_embedding(embedding)

    def exceeded(self, metrics: Mapping[str, Mapping[str, Any]]) -> bool:
        """Whether the expression holds; a metric that could not be computed never passes silently.

        Raises:
            ConfigError: the metric has no value in this run.
        """
        value = metrics[self.metric]["value"]
        if value is None:
            raise ConfigError(
                f"--fail-on: {self.metric} has no value in this run ({metrics[self.metric]['reason']})"
            )
        holds: dict[str, bool] = {
            "<": value < self.threshold,
            "<=": value <= self.threshold,
            ">": value > self.threshold,
            ">=": value >= self.threshold,
        }
        return holds[self.operator]


def gates(fail_on: str | Sequence[str] | None) -> tuple[Gate, ...]:
    """The thresholds of a setting ``fail_on``: none, one expression or several.

    Raises:
        ConfigError: one of them has another form or names no metric.
    """
    if fail_on is None:
        return ()
    return tuple(map(Gate.parse, [fail_on] if isinstance(fail_on, str) else fail_on))


def exceeded(
    thresholds: Sequence[Gate], metrics: Mapping[str, Mapping[str, Any]]
) -> tuple[str, ...]:
    """Those that hold, each with the value found, as in ``flagged>0.05 (0.12)``.

    Raises:
        ConfigError: one asks for a metric that has no value in this run.
    """
    held = [gate for gate in thresholds if gate.exceeded(metrics)]
    return tuple(f"{gate} ({metrics[gate.metric]['value']:.4g})" for gate in held)
