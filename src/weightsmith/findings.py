"""What a look at headers and configurations found, before any weight is read."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass


class Severity(enum.Enum):
    """How much a finding matters: an error stops the plan, the others do not."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing worth knowing: `message` is a sentence about `subject`, `fix` says what to do.

    `code` is a short stable word for scripts (`missing-tensor`); `subject` names the
    checkpoint, tensor or key that the finding is about.
    """

    severity: Severity
    code: str
    subject: str
    message: str
    fix: str = ""

    @property
    def sentence(self) -> str:
        """The message and its fix in one line."""
        return f"{self.message}; {self.fix}" if self.fix else self.message

    def to_mapping(self) -> dict[str, str]:
        """As JSON has it."""
        return {
            "severity": self.severity.value,
            "code": self.code,
            "subject": self.subject,
            "message": self.message,
            "fix": self.fix,
        }


def errors_among(findings: Iterable[Finding]) -> list[Finding]:
    """The findings that must stop a plan, in their order."""
    return [finding for finding in findings if finding.severity is Severity.ERROR]
