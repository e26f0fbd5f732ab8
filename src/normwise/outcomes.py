"""Records of claims: what was asked, measured and concluded, and how it is drawn. Standard library only.

They follow the rules of :mod:`normwise.records`. A number is a mean over paired seeds with its interval; a verdict is
what :attr:`Answer.verdict` holds and was computed from that interval, see ``claims/statistics.py``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from normwise.records import Interval, Settings, load_record

CLAIMS_VERSION = 1

HOLDS, IN_PART, FAILS, UNDECIDED = "holds", "holds in part", "does not hold here", "undecided"


@dataclass(frozen=True)
class Answer:
    """One hypothesis and what was measured.

    The hypothesis is that the estimated quantity lies between ``at_least`` and ``at_most``; ``None`` leaves a side
    open. ``values`` are the paired numbers, one per seed. With ``ratio`` they are ratios, whose geometric mean is
    estimated. Written, a number is multiplied by ``factor`` and followed by ``unit``. ``published`` is what the paper
    reports. Of a claim's answers those that ``decide`` make its verdict; the others are asked besides. ``estimate`` is
    ``None`` where nothing could be measured. ``note`` says why, or what it would take to decide what is undecided.
    ``brief`` names the hypothesis within a sentence. ``exact`` numbers are no matter of chance.
    """

    statement: str
    verdict: str
    values: list[float]
    estimate: Interval | None
    at_least: float | None = None
    at_most: float | None = None
    unit: str = ""
    factor: float = 1.0
    ratio: bool = False
    published: str = ""
    decides: bool = True
    note: str = ""
    brief: str = ""
    exact: bool = False


@dataclass(frozen=True)
class Series:
    """One line of a figure: a mean with its interval at each x. ``look`` names the method whose colour it has."""

    name: str
    x: list[float]
    y: list[Interval]
    look: str = ""
    dashed: bool = False


@dataclass(frozen=True)
class Figure:
    """A chart. With ``ticks`` the x values are positions 0, 1, ... of those names.

    ``factor`` multiplies the y values; ``guides`` are y values at which a thin line is drawn.
    """

    title: str
    x_name: str
    y_name: str
    series: list[Series]
    ticks: list[str] = field(default_factory=list)
    log_x: bool = False
    log_y: bool = False
    factor: float = 1.0
    guides: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Gallery:
    """A grid of pictures: rows × columns of PNG files as base64."""

    title: str
    columns: list[str]
    rows: list[str]
    pictures: list[list[str]]


@dataclass(frozen=True)
class Outcome:
    """What became of one claim.

    ``experiments`` name → settings, as the studies were run; ``trials`` and ``seconds`` count those of all of them,
    also where several claims rest on one experiment. ``code`` reruns the claim. ``looks`` are the numbers of seeds at
    which the runs are judged; before there were stages they were judged once, at 5.
    """

    number: int
    name: str
    title: str
    claim: str
    source: str
    verdict: str
    answers: list[Answer]
    figures: list[Figure]
    experiments: dict[str, Settings]
    trials: int
    lost: int
    seconds: float
    code: str
    quick: bool
    how: str = ""
    notes: list[str] = field(default_factory=list)
    galleries: list[Gallery] = field(default_factory=list)
    looks: list[int] = field(default_factory=lambda: [5])


@dataclass(frozen=True)
class Claims:
    """All outcomes as they are stored in ``claims.json``."""

    created: str
    command: str
    versions: dict[str, str]
    machine: dict[str, str]
    outcomes: list[Outcome]
    version: int = CLAIMS_VERSION


def load_claims(path: str | os.PathLike[str]) -> Claims:
    """Read a ``claims.json``.

    Args:
        path: the file.

    Returns:
        The claims.

    Raises:
        StoreError: the file cannot be read, holds something else, or is of a newer version than this normwise knows.

    Example:
        >>> load_claims("nowhere.json")
        Traceback (most recent call last):
        ...
        normwise.errors.StoreError: cannot read the claims nowhere.json: No such file or directory
    """
    return load_record(path, Claims, "claims", CLAIMS_VERSION)
