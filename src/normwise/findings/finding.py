"""What a person should know of a layer, and how grave it is. Standard library only."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from normwise.errors import InputError

SEVERITIES = ("info", "warning", "error")


@dataclass(frozen=True)
class Finding:
    """Something about a layer that a person should know; ``severity`` is one of ``SEVERITIES``.

    ``message`` says what was found, ``effect`` what it does to training, ``fix`` is code that mends it and ``command``
    the same on the command line, where there is one. ``changes`` is how far the fix, tried on a copy, moves the outputs
    in evaluation: the root mean square of the change over that of the outputs; ``None`` where that was not measured.
    ``evidence`` holds the numbers that the message rests on.

    Example:
        >>> print(Finding("bn1", "warning", "never-updated", "its running statistics never saw data"))
        warning  bn1: its running statistics never saw data
    """

    layer: str
    severity: str
    code: str
    message: str
    evidence: dict[str, float] = field(default_factory=dict)
    effect: str = ""
    fix: str = ""
    command: str = ""
    changes: float | None = None

    def __str__(self) -> str:
        """One line."""
        return f"{self.severity:<7}  {self.layer or 'the model'}: {self.message}"

    @property
    def price(self) -> str:
        """What the fix does to the outputs, in words; empty where that was not measured."""
        if self.changes is None or not self.fix:
            return ""
        if self.changes < 1e-5:
            return "the fix leaves the outputs in evaluation as they are"
        return f"the fix moves the outputs in evaluation by {self.changes:.2g} of their size"


def worst(findings: Iterable[Finding]) -> str | None:
    """Give the highest severity among findings.

    Args:
        findings: any.

    Returns:
        One of ``SEVERITIES``; ``None`` without findings.

    Example:
        >>> worst([Finding("a", "info", "x", ""), Finding("b", "error", "y", "")])
        'error'
    """
    return max((f.severity for f in findings), key=SEVERITIES.index, default=None)


def fails(findings: Iterable[Finding], severity: str) -> bool:
    """Whether there is a finding of a severity or a higher one.

    Args:
        findings: any.
        severity: one of ``SEVERITIES``.

    Returns:
        Whether there is.

    Raises:
        InputError: an unknown severity.

    Example:
        >>> fails([Finding("a", "warning", "x", "")], "info")
        True
    """
    if severity not in SEVERITIES:
        raise InputError(f"unknown severity {severity!r}: expected one of {', '.join(SEVERITIES)}")
    highest = worst(findings)
    return highest is not None and SEVERITIES.index(highest) >= SEVERITIES.index(severity)


def gravest_first(findings: Iterable[Finding]) -> list[Finding]:
    """Sort findings by severity, keeping the order among equals.

    Args:
        findings: any.

    Returns:
        The errors, the warnings, the infos.

    Example:
        >>> [f.layer for f in gravest_first([Finding("a", "info", "x", ""), Finding("b", "error", "y", "")])]
        ['b', 'a']
    """
    return sorted(findings, key=lambda f: -SEVERITIES.index(f.severity))
