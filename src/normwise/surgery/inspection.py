"""What :func:`inspect` found: a table of layers, and what is wrong with them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from normwise import findings as records
from normwise.files import finite
from normwise.findings import Finding, gravest_first
from normwise.methods import traits_of
from normwise.results import Result, counted, layers


@dataclass(frozen=True)
class Row:
    """One normalization layer. What a checkpoint does not tell (eps, momentum, the class) is ``None``.

    ``weight`` says how the weight scales: ``"1 + w"`` where it is an offset from 1; of a checkpoint with the evidence.
    ``gate`` says what a second input does, ``role`` where it stood in a run (pre, post, branch end, final, …).
    ``method`` is ``"?"`` where a module is called a norm and not understood.
    """

    names: list[str]
    type: str | None
    method: str
    channels: int
    eps: float | None = None
    momentum: float | None = None
    num_groups: int | None = None
    batches: int | None = None
    variance_min: float | None = None
    variance_max: float | None = None
    dead: int = 0
    frozen: bool = False
    weight: str | None = None
    gate: str | None = None
    role: str | None = None


@dataclass(frozen=True, repr=False)
class Inspection(Result):
    """All layers and all findings; ``print`` it for a table.

    Example:
        >>> import normwise, torch
        >>> normwise.inspect(torch.nn.Sequential(torch.nn.BatchNorm1d(3))).worst
        'warning'
    """

    layers: list[Row]
    findings: list[Finding] = field(default_factory=list)
    version: int = 1
    placement: str | None = None

    _kind: ClassVar[str] = "inspection"
    _newest: ClassVar[int] = 1

    def _headline(self) -> str:
        return f"of {layers(len(self.layers))}: {counted(finding.severity for finding in self.findings)}"

    def _rows(self) -> list[dict[str, Any]]:
        return [asdict(row) for row in self.layers]

    @property
    def worst(self) -> str | None:
        """The highest severity among the findings; ``None`` without any."""
        return records.worst(self.findings)

    def fails(self, severity: str) -> bool:
        """Whether there is a finding of this severity or a higher one.

        Args:
            severity: one of :data:`normwise.findings.SEVERITIES`.

        Returns:
            Whether there is.

        Raises:
            InputError: an unknown severity.

        Example:
            >>> Inspection([]).fails("info")
            False
        """
        return records.fails(self.findings, severity)

    def to_json(self) -> str:
        """Strict JSON; numbers that are not finite are ``null``.

        Returns:
            The text, ending in a newline.

        Example:
            >>> json.loads(Inspection([]).to_json())
            {'layers': [], 'findings': [], 'version': 1, 'placement': None}
        """
        return json.dumps(finite(asdict(self)), indent=2, allow_nan=False, ensure_ascii=False) + "\n"

    def __str__(self) -> str:
        """A table of the layers, then the findings, the gravest first."""
        head = ["layer", "type", "method", "channels", "eps", "momentum", "batches", "variance", "dead", "weight"]
        rows = [head, *(_columns(row) for row in self.layers)]
        if not any(row.weight for row in self.layers):
            rows = [row[:-1] for row in rows]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(text.ljust(w) for text, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        found = gravest_first(self.findings)
        lines += [] if self.placement is None else ["", f"placement of the blocks: {self.placement}"]
        return "\n".join([*lines, "", *(map(str, found) if found else ["no findings"])])


def _columns(row: Row) -> list[str]:
    spread = "" if row.variance_min is None else f"{row.variance_min:.3g} .. {row.variance_max:.3g}"
    groups = f" ({row.num_groups} groups)" if row.num_groups is not None and traits_of(row.method).grouped else ""
    return [
        ", ".join(row.names) or "(the model)",
        (row.type or "?") + (" frozen" if row.frozen else ""),
        row.method + groups + (" gated" if row.gate else ""),
        str(row.channels or "any"),
        "?" if row.eps is None else f"{row.eps:g}",
        "" if row.momentum is None else f"{row.momentum:g}",
        "" if row.batches is None else str(row.batches),
        spread,
        str(row.dead or ""),
        row.weight or "",
    ]
