"""What advice consists of. Standard library only, so that it can be drawn without torch."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any, ClassVar

from normwise.advice.situation import Situation
from normwise.records import dumps, keys_of, load_record
from normwise.results import Result

ADVICE_VERSION = 1


@dataclass(frozen=True)
class Reason:
    """A rule that applies: how many points it was learned to add for a method, what papers say, and which.

    Example:
        >>> Reason("padding", -2.0, "Batches are padded.", "issue 70529").points
        -2.0
    """

    rule: str
    points: float
    text: str
    source: str

    @property
    def side(self) -> str:
        """Whether it speaks for the method or against it, as a sign."""
        return "+" if self.points > 0 else "−"


@dataclass(frozen=True)
class Cost:
    """What one training step costs with a method: seconds, and the most bytes that it holds; ``None`` if unmeasured.

    Example:
        >>> Cost(0.01, None).step_seconds
        0.01
    """

    step_seconds: float | None
    peak_bytes: int | None


@dataclass(frozen=True)
class Exemption:
    """A place at which a method cannot be used, what to use there, and why.

    Example:
        >>> Exemption("bn3", "layer", "one value per channel").use
        'layer'
    """

    place: str
    use: str
    why: str


@dataclass(frozen=True)
class Ranked:
    """One method: its ``points`` (how far behind the best it is expected, −1 being one point of accuracy), and why.

    ``points`` is ``None`` where nothing was measured of it, ``spread`` the deviation to be expected. ``refused`` says
    why the method cannot be used at all. ``exemptions`` name the places that want another method. ``options`` are
    what its layers are to be told beyond their defaults, ``code`` puts it into the model.

    Example:
        >>> Ranked("batch", -0.5, []).refused is None
        True
    """

    method: str
    points: float | None
    reasons: list[Reason]
    cost: Cost | None = None
    exemptions: list[Exemption] = field(default_factory=list)
    code: str = ""
    refused: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    spread: float | None = None

    @property
    def spec(self) -> str:
        """The method with its options, as :func:`normwise.compare` takes it: ``"group(num_groups=4)"``."""
        told = [f"{k}={'+'.join(v) if isinstance(v, list) else v}" for k, v in self.options.items()]
        return f"{self.method}({', '.join(told)})" if told else self.method


@dataclass(frozen=True)
class Check:
    """What a short comparison on the user's data said: the verdict, and whether the advice held.

    ``held`` means that the advised method was the best or tied with it; ``None`` where too little could be trained.

    Example:
        >>> Check(60.0, ["batch", "group"], "use batch", True, 0.0).held
        True
    """

    seconds: float
    methods: list[str]
    headline: str
    held: bool | None
    behind: float | None


@dataclass(frozen=True, repr=False)
class Advice(Result):
    """The advised method, then the others, best first, with reasons; refused ones last.

    ``probability`` is how likely the advised method is within a point of the best, as far as that is known.
    ``abstains`` says why the evidence does not reach, where the safe choice is advised; else it is empty.
    ``evidence`` says how the advised method did on the measured tasks most like this model.

    Example:
        >>> Advice("Net", Situation("conv", ["conv"], batch_size=2), [Ranked("group", -1.0, [])]).best.method
        'group'
    """

    model: str
    situation: Situation
    ranking: list[Ranked]
    notes: list[str] = field(default_factory=list)
    check: Check | None = None
    created: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    probability: float | None = None
    abstains: str = ""
    evidence: str = ""
    version: int = ADVICE_VERSION

    _kind: ClassVar[str] = "advice"
    _newest: ClassVar[int] = ADVICE_VERSION

    def _headline(self) -> str:
        return f"for {self.model}: {f'use {self.best.spec}' if self.ranking else 'no method'}"

    def _rows(self) -> list[dict[str, Any]]:
        return [
            {
                "method": r.spec,
                "points": r.points,
                "step_seconds": r.cost and r.cost.step_seconds,
                "peak_bytes": r.cost and r.cost.peak_bytes,
                "refused": r.refused,
                "reasons": "; ".join(reason.text for reason in r.reasons),
            }
            for r in self.ranking
        ]

    @property
    def best(self) -> Ranked:
        """The method to use."""
        return self.ranking[0]

    def to_json(self) -> str:
        """Give the advice as strict JSON.

        Returns:
            The text.

        Example:
            >>> Advice("Net", Situation("conv", ["conv"], batch_size=2), []).to_json().startswith("{")
            True
        """
        return dumps(self)

    def __str__(self) -> str:
        """What to use, the code, the reasons, and the order of the methods; ``report.advice_table`` draws more."""
        best = self.best
        chance = "" if self.probability is None else f" ({self.probability:.0%} to be within a point of the best)"
        lines = [f"{self.model}: use {best.method}{chance}", *(f"    {line}" for line in best.code.splitlines())]
        lines += [f"  · {self.evidence}"] * bool(self.evidence)
        lines += [f"  {reason.side} {reason.text} [{reason.source}]" for reason in best.reasons]
        lines += [f"  note: {note}" for note in self.notes]
        order = [f"{r.method} {r.points:+.1f}" for r in self.ranking if not r.refused and r.points is not None]
        return "\n".join([*lines, f"  {', '.join(order)}"])


def is_advice(path: str | os.PathLike[str]) -> bool:
    """Whether a file holds advice.

    Args:
        path: the file.

    Returns:
        Whether it is JSON with the fields of advice; ``False`` as well for what cannot be read.

    Example:
        >>> is_advice("nowhere.json")
        False
    """
    return {"situation", "ranking"} <= keys_of(path)


def load_advice(path: str | os.PathLike[str]) -> Advice:
    """Read advice that was written with ``to_json``.

    Args:
        path: the file.

    Returns:
        The advice.

    Raises:
        StoreError: the file cannot be read, is no advice, or of a newer version than this normwise knows.

    Example:
        >>> load_advice("nowhere.json")
        Traceback (most recent call last):
        ...
        normwise.errors.StoreError: cannot read the advice nowhere.json: No such file or directory
    """
    return load_record(path, Advice, "advice", ADVICE_VERSION)
