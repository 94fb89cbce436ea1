"""Which of your training images could an attacker reconstruct from your classifier?"""

from inversight.audit import AuditResult, audit, resume
from inversight.errors import InputError, InversightError, StageError

__all__ = ["AuditResult", "InputError", "InversightError", "StageError", "audit", "resume"]
