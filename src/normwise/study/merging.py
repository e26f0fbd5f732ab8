"""Put several studies of one comparison together."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from normwise import records
from normwise.errors import InputError
from normwise.records import Settings, Trial
from normwise.study.store import STUDY_NAME, Store
from normwise.study.stored import draw_up

# What may differ between the studies: the rest says what is compared, and how.
_LISTS = ("methods", "batch_sizes", "seeds", "tune_seeds", "notes")
_BY_KEY = {"lrs": "batch size ", "epochs": "batch size ", "own": ""}


@dataclass(frozen=True)
class Union:
    """What several studies are together, and which of their trials differ though their setups are the same."""

    settings: Settings
    trials: list[Trial]
    first: records.Study
    differing: list[str]


def union(studies: Sequence[records.Study]) -> Union:
    """Unite the settings and the trials of studies."""
    first, *others = studies
    merged = dataclasses.asdict(first.settings)
    for study in others:
        for name, value in dataclasses.asdict(study.settings).items():
            merged[name] = _united(name, merged[name], value)
    trials: dict[str, Trial] = {}
    differing = []
    for trial in (t for study in studies for t in study.trials):
        kept = trials.setdefault(trial.setup.key, trial)
        if (kept.valid_score, kept.test_score) != (trial.valid_score, trial.test_score):
            differing.append(trial.setup.key)
    return Union(Settings(**merged), list(trials.values()), first, differing)


def merge_into(where: str, given: Union, name: str | None = None, command: str = "") -> tuple[records.Study, list[str]]:
    """Keep a union in a database."""
    store = Store(where, given.settings, name=name or STUDY_NAME)
    first = given.first
    store.note(
        title=first.title,
        command=command,
        created=first.created,
        versions=first.versions,
        machine=first.machine,
    )
    store.add(given.trials)
    return draw_up(given.settings, store.about, store.trials()), given.differing


def _united(name: str, mine: Any, theirs: Any) -> Any:
    if name in _LISTS:
        return list(dict.fromkeys([*mine, *theirs]))
    if name == "num_workers":
        return mine
    if name == "same_as":
        return theirs | mine
    if name in _BY_KEY:
        shared = {key: (mine[key], theirs[key]) for key in mine.keys() & theirs.keys() if mine[key] != theirs[key]}
        if not shared:
            return mine | theirs
        key, (mine, theirs) = shared.popitem()
        name = f"{name} at {_BY_KEY[name]}{key}"
    if mine != theirs:
        raise InputError(f"the studies differ in {name}: {mine} and {theirs}; they are not of one comparison")
    return mine
