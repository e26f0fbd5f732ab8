"""All that was found out about one model, as it is stored. Standard library only."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from normwise.findings.facts import ModelFacts
from normwise.findings.finding import Finding, fails, gravest_first, worst
from normwise.findings.traces import Gap, NormTrace, RunTrace, TokenTrace, WeightTrace
from normwise.records import dumps, keys_of, load_record
from normwise.results import Result, counted

DIAGNOSIS_VERSION = 1


@dataclass(frozen=True, repr=False)
class Diagnosis(Result):
    """What is wrong with a model's normalization, and all that was measured to say so; ``print`` it for a table.

    Example:
        >>> Diagnosis("2026-01-01", ModelFacts("Net", "conv", ["conv"], 2, 2), RunTrace()).worst is None
        True
    """

    created: str
    facts: ModelFacts
    run: RunTrace
    norms: list[NormTrace] = field(default_factory=list)
    weights: list[WeightTrace] = field(default_factory=list)
    gap: Gap | None = None
    findings: list[Finding] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    version: int = DIAGNOSIS_VERSION
    tokens: TokenTrace | None = None

    _kind: ClassVar[str] = "diagnosis"
    _newest: ClassVar[int] = DIAGNOSIS_VERSION

    def _headline(self) -> str:
        return f"of {self.facts.model}: {counted(finding.severity for finding in self.findings)}"

    def _rows(self) -> list[dict[str, Any]]:
        wanted = ("severity", "code", "layer", "message", "effect", "fix")
        return [{key: asdict(finding)[key] for key in wanted} for finding in gravest_first(self.findings)]

    @property
    def worst(self) -> str | None:
        """The highest severity among the findings; ``None`` without any."""
        return worst(self.findings)

    def fails(self, severity: str) -> bool:
        """Whether there is a finding of this severity or a higher one; see :func:`fails`."""
        return fails(self.findings, severity)

    def of(self, code: str) -> list[Finding]:
        """The findings with a code."""
        return [finding for finding in self.findings if finding.code == code]

    def to_json(self) -> str:
        """Strict JSON, which :func:`load_diagnosis` reads back."""
        return dumps(self)

    def __str__(self) -> str:
        """Every finding with its effect and its fix, the gravest first."""
        ran = f"{self.run.sampled} of {self.run.passes} passes measured"
        head = f"{self.facts.model}: {len(self.norms)} normalization layers, {ran}"
        placement = None if self.tokens is None else self.tokens.placement
        if placement is not None:
            head += f", blocks of placement {placement}"
        lines = [head]
        for f in gravest_first(self.findings):
            lines += [str(f), *(f"         {line}" for line in _said(f) if line)]
        return "\n".join(lines if self.findings else [head, "no findings"])


def _said(finding: Finding) -> list[str]:
    return [finding.effect, finding.price, *finding.fix.splitlines(), finding.command]


def is_diagnosis(path: str | os.PathLike[str]) -> bool:
    """Whether a file holds a diagnosis, and not a study.

    Args:
        path: the file.

    Returns:
        Whether it is JSON with a diagnosis's fields; ``False`` as well for what cannot be read.

    Example:
        >>> is_diagnosis("nowhere.json")
        False
    """
    return {"facts", "run", "findings"} <= keys_of(path)


def load_diagnosis(path: str | os.PathLike[str]) -> Diagnosis:
    """Read a diagnosis that was written with ``to_json``.

    Args:
        path: the file.

    Returns:
        The diagnosis.

    Raises:
        StoreError: the file cannot be read, is no diagnosis, or of a newer version than this normwise knows.

    Example:
        >>> load_diagnosis("nowhere.json")
        Traceback (most recent call last):
        ...
        normwise.errors.StoreError: cannot read the diagnosis nowhere.json: No such file or directory
    """
    return load_record(path, Diagnosis, "diagnosis", DIAGNOSIS_VERSION)
