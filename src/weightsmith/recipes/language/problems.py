"""Findings about many tensors, gathered so that one cause gives one finding."""

from __future__ import annotations

from dataclasses import dataclass, field

from weightsmith.findings import Finding, Severity
from weightsmith.wording import shown

_MOST_NAMES = 3
_Key = tuple[Severity, str, str, str, str]


@dataclass(slots=True)
class Problems:
    """Everything that was found, in the order of first appearance."""

    _tensors: dict[_Key, list[str]] = field(default_factory=dict)
    _others: dict[Finding, None] = field(default_factory=dict)

    def add(self, finding: Finding) -> None:
        """Note a finding that is not about single tensors."""
        self._others.setdefault(finding)

    def about(
        self, tensor: str, severity: Severity, code: str, subject: str, message: str, fix: str
    ) -> None:
        """Note something about one tensor; the same message about others becomes one finding with all names."""
        self._tensors.setdefault((severity, code, subject, message, fix), []).append(tensor)

    def error(self, tensor: str, code: str, subject: str, message: str, fix: str) -> None:
        """Note an error about one tensor."""
        self.about(tensor, Severity.ERROR, code, subject, message, fix)

    def findings(self) -> tuple[Finding, ...]:
        """All findings, errors first."""
        gathered = [
            Finding(severity, code, subject, f"{message}: {_named(names)}", fix)
            for (severity, code, subject, message, fix), names in self._tensors.items()
        ]
        order = list(Severity)
        return tuple(
            sorted([*self._others, *gathered], key=lambda finding: order.index(finding.severity))
        )


def _named(names: list[str]) -> str:
    listed = ", ".join(map(shown, names[:_MOST_NAMES]))
    more = len(names) - _MOST_NAMES
    return f"{listed} and {more} more" if more > 0 else listed
