"""The whole audit: target, prior, adaptation, attack, scores, report. The only room that knows every
stage."""

from inversight.pipeline.audits import audit, default_folder, resume
from inversight.pipeline.execution import execute
from inversight.pipeline.plan import Plan, check_unchanged
from inversight.pipeline.result import AuditResult

__all__ = [
    "AuditResult",
    "Plan",
    "audit",
    "check_unchanged",
    "default_folder",
    "execute",
    "resume",
]
