"""Which of your training images could an attacker reconstruct from your classifier?"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inversight.core.errors import (
        ConfigError,
        DataError,
        DiskFullError,
        InputError,
        InversightError,
        RunError,
        StageError,
        TargetError,
        WeightsError,
    )
    from inversight.models.loading import load_target
    from inversight.models.spec import ModelSpec
    from inversight.pipeline.audit import audit, resume
    from inversight.pipeline.expose import expose
    from inversight.pipeline.result import AuditResult
    from inversight.pipeline.score import score
    from inversight.report.words import SAMPLE_COLUMNS
    from inversight.scores import DDCS

__all__ = [
    "DDCS", "SAMPLE_COLUMNS", "AuditResult", "ConfigError", "DataError", "DiskFullError", "InputError",
    "InversightError", "ModelSpec", "RunError", "StageError", "TargetError", "WeightsError", "audit",
    "expose", "load_target", "resume", "score",
]  # fmt: skip

_MODULES = {
    "AuditResult": "pipeline.result",
    "DDCS": "scores",
    "SAMPLE_COLUMNS": "report.words",
    "ModelSpec": "models.spec",
    "audit": "pipeline.audit",
    "expose": "pipeline.expose",
    "load_target": "models.loading",
    "resume": "pipeline.audit",
    "score": "pipeline.score",
}
"""Where each public name is defined; errors, which are not listed, in core.errors."""


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: PyTorch takes seconds, and a help text needs none."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'core.errors')}"), name)


def __dir__() -> list[str]:
    """Return also the names that are not imported yet, so that an editor completes them."""
    return sorted({*globals(), *__all__})
