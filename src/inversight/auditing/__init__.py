"""The whole audit: target, prior, adaptation, attack, scores, report. The only room that knows every
stage."""

from inversight.auditing.audits import audit, default_folder, resume
from inversight.auditing.execution import execute
from inversight.auditing.plan import Plan, check_unchanged
from inversight.auditing.result import AuditResult

__all__ = [
    "AuditResult",
    "Plan",
    "audit",
    "check_unchanged",
    "default_folder",
    "execute",
    "resume",
]
