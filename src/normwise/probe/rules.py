"""The findings: a function that looks at a diagnosis, and a row that says what it means. One table holds them all.

A new finding is a function that yields hits and a :class:`Rule` in one of the three lists. Rules read records only, so
that a stored diagnosis can be judged again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from normwise.findings import Diagnosis, Finding


@dataclass(frozen=True)
class Hit:
    """A rule's find at one layer; ``severity`` and ``effect`` override the rule's.

    ``command`` is the fix on the command line; MODEL and DATA in it stand for what the caller named.
    """

    layer: str
    message: str
    evidence: dict[str, float | None] = field(default_factory=dict)
    fix: str = ""
    severity: str | None = None
    effect: str | None = None
    command: str = ""


@dataclass(frozen=True)
class Rule:
    """A kind of finding: its code, how grave it is, how it is found, and what it does to training."""

    code: str
    severity: str
    find: Callable[[Diagnosis], Iterator[Hit]]
    effect: str


def judge(seen: Diagnosis, rules: Iterable[Rule]) -> list[Finding]:
    """Apply rules to what was measured."""
    return [
        Finding(
            layer=hit.layer,
            severity=hit.severity or rule.severity,
            code=rule.code,
            message=hit.message,
            evidence={name: float(value) for name, value in hit.evidence.items() if value is not None},
            effect=rule.effect if hit.effect is None else hit.effect,
            fix=hit.fix,
            command=hit.command,
        )
        for rule in rules
        for hit in rule.find(seen)
    ]


def at(layer: str) -> str:
    """The expression that gives a layer of ``model``."""
    return f'model.get_submodule("{layer}")' if layer else "model"


def put(layer: str, new: str) -> str:
    """The statement that puts a module in a layer's place."""
    return f'model.set_submodule("{layer}", {new})' if layer else f"model = {new}"


def convert_to(method: str, layer: str) -> str:
    """The call that converts one layer."""
    return f'model = normwise.convert(model, "{method}", where="{layer}").model'


def calibrate_at(layer: str) -> str:
    """The call that measures one layer's statistics anew, or all layers'."""
    return f'normwise.calibrate(model, loader, where="{layer}")' if layer else "normwise.calibrate(model, loader)"


def calibrate_command(layer: str) -> str:
    """The command that does what :func:`calibrate_at` does."""
    where = f" --where '{layer}'" if layer else ""
    return f"normwise calibrate MODEL --data DATA{where} --out mended.pt"


def convert_command(method: str, layer: str) -> str:
    """The command that does what :func:`convert_to` does."""
    return f"normwise convert MODEL --to {method} --where '{layer}' --out mended.pt"


def count(number: float, noun: str) -> str:
    """A number with its noun."""
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{number:,.0f} {noun if number == 1 else plural}"
