"""``normwise study list | export | merge | work``: studies that exist. Only ``work`` imports torch."""

from __future__ import annotations

import csv
import io
import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from normwise.errors import InputError, MissingDependencyError, StoreError
from normwise.study.address import is_url, redact

if TYPE_CHECKING:
    from normwise.records import Study

# An address with a password is better kept out of command lines, which every user of a machine can see.
Storage = Annotated[str, Parameter(env_var="NORMWISE_STORAGE")]
_STUDIES = Path("normwise-compare")

app = App(name="study", help="List, export, merge and work on studies that exist.")


@app.command(name="list")
def list_(
    where: Annotated[str, Parameter(env_var="NORMWISE_STORAGE")] = str(_STUDIES),
    /,
    *,
    as_json: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> None:
    """List studies and how far they are.

    For instance: normwise study list postgresql://ann@db.example/studies

    Args:
        where: A folder (and those in it), a study.db, or postgresql://USER@HOST/DATABASE. Default: normwise-compare.
        as_json: Print them as JSON.

    Raises:
        StoreError: there is no study.
    """
    import dataclasses

    with _extras():
        from normwise.study.stored import summaries
    found = [summary for place in _places(where) for summary in summaries(place)]
    if as_json:
        print(json.dumps([dataclasses.asdict(summary) for summary in found], indent=2))
        return
    for one in found:
        of = "?" if one.total is None else one.total
        running = f", {one.running} running" if one.running else ""
        print(f"{one.study}  {one.task or 'not made by normwise'}  {one.finished} of {of} trials{running}  {one.where}")


@app.command
def export(where: Storage, /, *, study: str | None = None, out: Path | None = None) -> None:
    """Write a study as study.json, or its trials as a table for a spreadsheet or pandas.

    For instance: normwise study export normwise-compare/digits --out trials.csv

    Args:
        where: The folder of a study, a study.db or study.json, or postgresql://USER@HOST/DATABASE.
        study: Its name, where the database holds several.
        out: The file to write, .json or .csv. Default: JSON to standard output.

    Raises:
        InputError: the file's name ends otherwise.
    """
    from normwise.files import write_own
    from normwise.records import dumps

    record = read(where, study)
    if out is None:
        print(dumps(record), end="")
        return
    if out.suffix not in {".json", ".csv"}:
        raise InputError(f"cannot write {out}: expected a name that ends in .json or .csv")
    write_own(out, *((dumps(record), "study") if out.suffix == ".json" else (_csv(record), "table")))
    print(f"{len(record.trials)} trials  {out}")


@app.command
def merge(
    sources: Annotated[list[str], Parameter(negative=())],
    /,
    *,
    out: Path | None = None,
    storage: str | None = None,
    study: str | None = None,
) -> None:
    """Put the trials of several studies of the same comparison into one, such as those of two machines.

    They may differ in seeds, methods and batch sizes; a trial that several have is taken from the first. What the union
    leaves open is run when the command that made the first is given with the union's settings and the new place.

    For instance: normwise study merge mine/study.db theirs/study.json --out both

    Args:
        sources: Folders of studies, study.db or study.json files, or postgresql://USER@HOST/DATABASE.
        out: The folder for the merged study. It may hold one that was merged before.
        storage: Or the database, postgresql://USER@HOST/DATABASE.
        study: The name of the merged study in the database. Default: that of a study in a folder.

    Raises:
        InputError: it is not said where to, or the studies are of different comparisons.
    """
    from normwise.files import check_folder

    with _extras():
        from normwise.study.merging import merge_into, union
        from normwise.study.result import FILES
        from normwise.study.result import Study as Result
    if (out is None) == (storage is None):
        raise InputError("say where to: --out FOLDER or --storage postgresql://USER@HOST/DATABASE")
    check_folder(out, "study", FILES)
    given = [read(source) for source in sources]
    command = "normwise study merge " + " ".join(redact(source) for source in sources)
    record, differing = merge_into(storage or str(out), union(given), study, command)
    done = "finished" if record.finished else "some are missing"
    print(f"{len(record.trials)} trials of {len(given)} studies, {done}")
    if differing:
        print(
            f"{len(differing)} trials differ between the sources, the first was taken: {', '.join(differing[:3])}, ..."
        )
    if out is not None:
        stored, page = Result(record).save(out)
        print(f"study   {stored}\nreport  {page}")


@app.command
def work(*, storage: Storage, study: str | None = None, device: str = "auto") -> None:
    """Take part in a study until it is finished; any number of these may run, on any machine that reaches the database.

    The study must have been begun by normwise compare --storage. Interrupted, a worker gives its trial back.

    For instance: normwise study work --storage postgresql://ann@db.example/studies

    Args:
        storage: The database, postgresql://USER@HOST/DATABASE. Its password is better left to ~/.pgpass or PGPASSWORD.
        study: The study's name, where the database holds several.
        device: Where to train, of the study's kind: cuda:1, say. Default: the device of that kind that torch takes.
    """
    with _extras():
        from normwise import devices
        from normwise.study.progress import Display
        from normwise.study.store import Store
        from normwise.study.worker import Job
    # What batch systems send before they kill.
    signal.signal(signal.SIGTERM, _interrupt)
    store = Store(storage, name=study)
    place = devices.of_kind(device, store.settings.device, "the study")
    with Display(store.settings) as display:
        Job(storage, store.name, device=str(place))(display.update)


def read(where: str, study: str | None = None) -> Study:
    """Read a study from wherever it is kept: a study.json, or its database.

    Args:
        where: a folder, a file or a URL; of a folder's two files study.json is read.
        study: its name, where a database holds several.

    Returns:
        The record.

    Raises:
        StoreError: there is none, or it cannot be read.
    """
    from normwise.records import load_study

    if not is_url(where):
        path = Path(where)
        stored = path / "study.json" if path.is_dir() else path
        if path.is_dir() and not stored.exists() and not (path / "study.db").exists():
            raise StoreError(f"{path} holds no study: expected a study.json or study.db in it")
        if study is None and stored.suffix == ".json" and (stored.exists() or not path.is_dir()):
            return load_study(stored)
    with _extras():
        from normwise.study.stored import read_study
    return read_study(where, study)


def _places(where: str) -> list[str]:
    if is_url(where) or not Path(where).is_dir():
        return [where]
    found = sorted(Path(where).rglob("study.db"))
    if not found:
        raise StoreError(f"there is no study.db in {where} or its folders")
    return [str(path) for path in found]


def _csv(record: Study) -> str:
    """One line per trial; what is a list (curves, mixtures) is left to the JSON."""
    import dataclasses

    from normwise.records import Setup, Trial

    stream = io.StringIO()
    skipped = {"setup", "curve", "mixtures", "observed", "notes"}
    of_trial = [f.name for f in dataclasses.fields(Trial) if f.name not in skipped]
    of_setup = [f.name for f in dataclasses.fields(Setup)]
    writer = csv.writer(stream)
    writer.writerow([*of_setup, *of_trial])
    for trial in record.trials:
        writer.writerow([getattr(trial.setup, n) for n in of_setup] + [getattr(trial, n) for n in of_trial])
    return stream.getvalue()


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


@contextmanager
def _extras() -> Iterator[None]:
    """Turn a package that is missing into an error that says how to get it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("normwise"):
            raise
        raise MissingDependencyError(f"studies need {error.name}: pip install 'normwise[compare]'") from error
