"""``--fail-on``: a threshold on metrics.json for pipelines."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from inversight.config import nearest
from inversight.errors import ConfigError
from inversight.evaluation import CONTROL_GAP, METRICS, RISKS
from inversight.risk import check_embedding

_FORM = re.compile(r"\s*([a-z_0-9]+)\s*(<=|>=|<|>)\s*([-+0-9.eE]+)\s*")


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
            raise ConfigError(
                f"--fail-on {text}: no metric is called {match[1]}{nearest(match[1], METRICS)}"
            )
        return cls(match[1], match[2], threshold)

    def check(self, *, holdout: bool, embedding: str) -> None:
        """Refuse before a run what it is known to end without.

        Raises:
            ConfigError: the metric needs a holdout and there is none, or the other way round, or
                it needs another embedding.
        """
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
