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

    Example:
        >>> Hit("bn1", "too few", {"elements": 2.0}).severity is None
        True
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
    """A kind of finding: its code, how grave it is, how it is found, and what it does to training.

    Example:
        >>> Rule("few-elements", "warning", lambda seen: iter(()), "noise").code
        'few-elements'
    """

    code: str
    severity: str
    find: Callable[[Diagnosis], Iterator[Hit]]
    effect: str


def judge(seen: Diagnosis, rules: Iterable[Rule]) -> list[Finding]:
    """Apply rules to what was measured.

    Args:
        seen: a diagnosis; its findings are not read.
        rules: the table.

    Returns:
        The findings, in the order of the rules.

    Example:
        >>> from normwise.findings import ModelFacts, RunTrace
        >>> rule = Rule("odd", "info", lambda seen: iter([Hit("fc", "is odd")]), "nothing")
        >>> print(*judge(Diagnosis("", ModelFacts("Net", "mlp", ["mlp"], 1, 1), RunTrace()), [rule]))
        info     fc: is odd
    """
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
    """The expression that gives a layer of ``model``.

    Args:
        layer: its name.

    Returns:
        Python.

    Example:
        >>> at("body.0"), at("")
        ('model.get_submodule("body.0")', 'model')
    """
    return f'model.get_submodule("{layer}")' if layer else "model"


def put(layer: str, new: str) -> str:
    """The statement that puts a module in a layer's place.

    Args:
        layer: its name.
        new: an expression.

    Returns:
        Python.

    Example:
        >>> put("bn", "torch.nn.Identity()")
        'model.set_submodule("bn", torch.nn.Identity())'
    """
    return f'model.set_submodule("{layer}", {new})' if layer else f"model = {new}"


def convert_to(method: str, layer: str) -> str:
    """The call that converts one layer.

    Args:
        method: a method's name.
        layer: the layer's.

    Returns:
        Python.

    Example:
        >>> convert_to("group", "bn1")
        'model = normwise.convert(model, "group", where="bn1").model'
    """
    return f'model = normwise.convert(model, "{method}", where="{layer}").model'


def calibrate_at(layer: str) -> str:
    """The call that measures one layer's statistics anew, or all layers'.

    Args:
        layer: its name; empty for all.

    Returns:
        Python.

    Example:
        >>> calibrate_at("bn1"), calibrate_at("")
        ('normwise.calibrate(model, loader, where="bn1")', 'normwise.calibrate(model, loader)')
    """
    return f'normwise.calibrate(model, loader, where="{layer}")' if layer else "normwise.calibrate(model, loader)"


def calibrate_command(layer: str) -> str:
    """The command that does what :func:`calibrate_at` does.

    Args:
        layer: its name; empty for all.

    Returns:
        A shell command.

    Example:
        >>> calibrate_command("bn1")
        "normwise calibrate MODEL --data DATA --where 'bn1' --out mended.pt"
    """
    where = f" --where '{layer}'" if layer else ""
    return f"normwise calibrate MODEL --data DATA{where} --out mended.pt"


def convert_command(method: str, layer: str) -> str:
    """The command that does what :func:`convert_to` does.

    Args:
        method: a method's name.
        layer: the layer's.

    Returns:
        A shell command.

    Example:
        >>> convert_command("group", "bn1")
        "normwise convert MODEL --to group --where 'bn1' --out mended.pt"
    """
    return f"normwise convert MODEL --to {method} --where '{layer}' --out mended.pt"


def count(number: float, noun: str) -> str:
    """A number with its noun.

    Args:
        number: how many.
        noun: in the singular.

    Returns:
        Text.

    Example:
        >>> count(1, "pass"), count(2, "channel")
        ('1 pass', '2 channels')
    """
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{number:,.0f} {noun if number == 1 else plural}"
