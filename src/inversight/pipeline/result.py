"""What an audit leaves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd


@dataclass(frozen=True)
class AuditResult:
    """What an audit leaves: the run folder, metrics.json and samples.parquet, read.

    crossed: the thresholds of ``fail_on`` that hold, each with the value found.
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
        """The report's path."""
        return self.run / "report.html"
