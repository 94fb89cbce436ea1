"""Which of your training images could an attacker reconstruct from your classifier?"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inversight.core.errors import InputError, InversightError, StageError
    from inversight.pipeline import AuditResult, audit, resume

__all__ = ["AuditResult", "InputError", "InversightError", "StageError", "audit", "resume"]

_ROOMS = {
    "AuditResult": "pipeline",
    "InputError": "core.errors",
    "InversightError": "core.errors",
    "StageError": "core.errors",
    "audit": "pipeline",
    "resume": "pipeline",
}


def __getattr__(name: str) -> Any:
    """Load what is asked for when it is: PyTorch takes seconds, and a help text needs none of it."""
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)


def __dir__() -> list[str]:
    """Also what is not loaded yet, so that it is found by completion."""
    return sorted({*globals(), *__all__})
