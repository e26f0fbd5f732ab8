"""Read studies back from their database as records, without torch and without changing anything there."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from dataclasses import dataclass
from typing import Any

from optuna.storages import BaseStorage
from optuna.trial import TrialState

from normwise import records
from normwise.errors import StoreError
from normwise.records import Settings, Trial
from normwise.study.catalog import Finished, check_version, find, open_database, quiet
from normwise.study.database import Database
from normwise.study.plan import total_setups
from normwise.study.salvage import damage_of
from normwise.study.verdict import judge

# Of what trials note, the commonest.
_NOTES = 6


@dataclass(frozen=True)
class Summary:
    """One study of a database at a glance; ``total`` is ``None`` for one that normwise did not make."""

    where: str
    study: str
    task: str | None
    finished: int
    total: int | None
    running: int
    version: int


def summaries(where: str | os.PathLike[str]) -> list[Summary]:
    """List the studies of a database."""
    database = open_database(where)
    found = []
    with database.guarded(), quiet():
        storage = _opened(database)
        for study in storage.get_all_studies():
            given = study.user_attrs.get("settings")
            settings = None if given is None else records.from_dict(Settings, given)
            trials = storage.get_all_trials(storage.get_study_id_from_name(study.study_name), deepcopy=False)
            states = Counter(trial.state for trial in trials)
            finished = Finished().of(trials) if settings else []
            found.append(
                Summary(
                    where=database.name,
                    study=study.study_name,
                    task=settings.task if settings else None,
                    finished=len(finished) if settings else states[TrialState.COMPLETE],
                    total=total_setups(settings, finished) if settings else None,
                    running=states[TrialState.RUNNING],
                    version=study.user_attrs.get("version", 1),
                )
            )
    return found


def read_study(where: str | os.PathLike[str], name: str | None = None) -> records.Study:
    """Read a study, finished or not, with the verdict that its trials give so far."""
    database = open_database(where)
    with database.guarded(), quiet():
        storage = _opened(database)
        name = find(storage, database, name)
        study_id = storage.get_study_id_from_name(name)
        about = storage.get_study_user_attrs(study_id)
        check_version(about, f"the study {name!r} in {database.name}")
        trials = Finished().of(storage.get_all_trials(study_id, deepcopy=False))
    return draw_up(records.from_dict(Settings, about["settings"]), about, trials)


def draw_up(settings: Settings, about: dict[str, Any], trials: list[Trial]) -> records.Study:
    """Give a study's record: what is known of it, and the standings and verdicts that follow."""
    costs = [records.from_dict(records.StepCost, cost) for cost in about.get("costs", [])]
    standings, verdicts = judge(settings, trials, costs)
    seen = Counter(note for trial in trials for note in trial.notes).most_common(_NOTES)
    told = [f"In {count} of {len(trials)} trials: {note}." for note, count in seen]
    return records.Study(
        title=about.get("title") or f"Which normalization for {settings.task}?",
        created=about.get("created", ""),
        command=about.get("command", ""),
        settings=dataclasses.replace(settings, notes=[*settings.notes, *told]) if told else settings,
        versions=about.get("versions", {}),
        machine=about.get("machine", {}),
        trials=trials,
        standings=standings,
        verdicts=verdicts,
        seconds=sum(trial.seconds for trial in trials),
        finished=len(trials) >= total_setups(settings, trials),
        costs=costs,
    )


def _opened(database: Database) -> BaseStorage:
    """Open what is there; a damaged file is left for ``compare``, which puts it aside."""
    if not database.exists():
        raise StoreError(f"{database.name} holds no study")
    damage = damage_of(database)
    if damage is not None:
        raise StoreError(
            f"{database.name} is damaged ({damage}): the command that made it puts it aside, keeps what can be read of "
            "it, and goes on"
        )
    return database.storage()
