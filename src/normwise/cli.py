"""The command line: one subcommand per public verb. torch is imported only by those that need it."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter, UnknownCommandError

from normwise._version import __version__
from normwise.claims.commands import app as claims
from normwise.errors import InputError, MissingDependencyError, NormwiseError, StoreError, described, place_of
from normwise.files import make_printable
from normwise.probe.commands import app as probe
from normwise.study.address import is_url, redact
from normwise.study.commands import app as study_app
from normwise.study.commands import read
from normwise.study.consult_commands import app as consult
from normwise.surgery.commands import app as surgery
from normwise.surgery.sources import specs

if TYPE_CHECKING:
    from rich.console import RenderableType

_OUT = "normwise-compare"
# Not among the requirements of any extra.
_WORKED_WITH = (
    *("accelerate", "lightning", "mlflow", "mlflow-skinny", "numpy", "pytorch-lightning", "timm", "torchvision"),
    *("transformers", "wandb"),
)
# Set in the environment, it shows tracebacks that are otherwise one line.
_TRACE = "NORMWISE_TRACEBACK"

app = App(
    name="normwise",
    help="Which normalization should this network use? Trains it under each and says which, how surely, and why.",
    version=__version__,
    default_parameter=Parameter(negative=()),
    suppress_keyboard_interrupt=False,
)
app.update(surgery)
app.update(probe)
app.command(claims)
app.update(consult)
app.command(study_app)


@app.command
def compare(
    model: str | None = None,
    /,
    *,
    data: str = "digits",
    methods: str | None = None,
    batch_sizes: str = "2,32",
    seeds: str | None = None,
    lrs: str | None = None,
    tune_seeds: int | None = None,
    epochs: float | None = None,
    quick: bool = False,
    race: bool = False,
    out: Path | None = None,
    fresh: bool = False,
    workers: int | None = None,
    storage: Annotated[str | None, Parameter(env_var="NORMWISE_STORAGE")] = None,
    study: str | None = None,
    engine: str = "processes",
    address: str | None = None,
    cpus: float = 1,
    gpus: float = 0,
    devices: int = 1,
    device: str = "auto",
    precision: Literal["32", "bf16", "16"] = "32",
    compile: bool = False,
    num_workers: int = 0,
    title: str | None = None,
    serve: int | None = None,
    loss: str | None = None,
    metric: str | None = None,
    optimizer: str | None = None,
    augment: str | None = None,
    collate: str | None = None,
    accumulate: int = 1,
    allow_leak: bool = False,
) -> None:
    """Train one model under each normalization and say which to use.

    Prints a verdict and a table, and writes study.json and report.html. A run that was stopped, even killed, goes on
    where it was when the same command is given again; the same command in two terminals shares the work.

    A first look in under a minute: normwise compare --quick

    Some methods only, more seeds: normwise compare --methods batch,group --batch-sizes 2,8,32 --seeds 8

    Larger images: normwise compare --data fashion-mnist --out fashion

    On the second GPU, in bfloat16: normwise compare --device cuda:1 --precision bf16

    Your own model and data: normwise compare my_project.py:make_model --data my_project.py:make_data

    Args:
        model: What builds your model, as module:callable or path.py:callable: called with norm, to take its layers
            from, or with nothing, where the layers it has are converted to each method; a Lightning module's class will
            do. Or timm:NAME. Default: the reference model of a data set that has a name.
        data: What to train on: digits, fashion-mnist, japanese-vowels, austen or textures (all but the first can name
            a folder or texture behind a colon); text:FILE, for a language model; or a callable named like the model,
            which gives (inputs, targets), torch data sets or loaders, or a dict of train, valid and test.
        methods: Which to compare, separated by commas, with options if need be: batch,group(num_groups=4). See
            'normwise methods'. Default: the six and none; as_is is a model with the layers that it has. One of your
            own is path.py:NAME or module:NAME: a Method, a class of them, or what builds a layer for a number of
            channels, with options if need be: my_file.py:MyMethod(0.3).
        batch_sizes: Samples per training step, separated by commas. Methods are compared at each.
        seeds: How many times to train each method (3), or which seeds (1,2,3). More give narrower intervals. Default:
            5, with --quick 3.
        lrs: Learning rates to try for each method, at batch size 32, separated by commas; scaled by √(b/32) for others.
            With your own optimizer: rates or factors of its rate, at the largest batch size.
        tune_seeds: Seeds that the search for a learning rate may use: the first for every rate, the others for the best
            rates of each method where they are near each other. Default: 3, with --quick 1.
        epochs: Passes over the training data. Default: short runs that fit the data set.
        quick: Short training and few seeds: shows what you get, decides little.
        race: Stop a method as soon as it is clearly behind, and search for learning rates with shorter trials. The
            same verdict from less training; worth it with many methods or seeds.
        out: Folder for the results. Default: normwise-compare/DATA, with -quick or -race behind it.
        fresh: Start over; the old study stays in the database under another name.
        workers: Processes that share the work. Default: one per core, at most 4; on accelerators one for each. With
            --storage, 0 leaves the work to others: normwise study work.
        storage: Keep the study in a database that other machines reach, postgresql://USER@HOST/DATABASE, so that they
            can take part. Its password is better left to ~/.pgpass or PGPASSWORD.
        study: The study's name in that database. Default: that of the folder.
        engine: What starts the workers: processes, of this machine, or ray.
        address: Of the Ray cluster, such as HOST:6379. Default: that of this machine, or one started for this study.
        cpus: That each worker is given on the Ray cluster.
        gpus: Likewise; a fraction shares one. Default: as many as --devices where the study is for an accelerator.
        devices: Processes that train one trial together, with synced statistics; each on an accelerator of its own.
        device: What to train on: auto, cpu, cuda, cuda:1, mps, xpu or whatever torch has. auto takes the accelerator
            that torch reports, else the CPU. A study keeps to one kind of device and to one precision.
        precision: 32 as the model is written; bf16 or 16 by torch's autocast, 16 with a scaler of gradients, whose
            skipped steps are told.
        compile: Compile each model with torch.compile.
        num_workers: Processes that read a torch data set ahead. The batches stay the same.
        title: Title of the report.
        serve: Show the report in a browser while the study runs, at http://127.0.0.1:PORT, on this machine only; 0
            takes a free port.
        loss: A callable loss(model, batch). Default: cross-entropy for class numbers, else the squared error.
        metric: A callable metric(model, loader), higher is better; or accuracy, mean_iou, r_squared, loss (minus it),
            or what a Lightning module logs, such as val_acc. Default: by the targets.
        optimizer: A callable optimizer(model), or optimizer(model, lr, steps), that gives an optimizer, or it and a
            schedule.
        augment: A callable augment(batch, generator) that gives a training batch.
        collate: A callable that makes a batch of a list of samples.
        accumulate: Batches that make one optimizer step.
        allow_leak: Compare methods with which a causal model sees what it is to predict, too.

    Raises:
        InputError: the options contradict each other.
    """
    if quick and epochs is not None:
        raise InputError("--quick chooses the epochs itself: give --quick or --epochs")
    folder = out if out is not None else Path(_OUT) / (_folder_name(model, data) + "-quick" * quick + "-race" * race)
    run = _needing_extras().compare
    with _live(storage or folder, study, serve):
        done = run(
            model,
            data,
            loss=loss,
            metric=metric,
            optimizer=optimizer,
            augment=augment,
            collate=collate,
            accumulate=None if accumulate == 1 else accumulate,
            methods=None if methods is None else specs(methods),
            batch_sizes=_numbers(batch_sizes, "--batch-sizes"),
            seeds=None if seeds is None else _seeds(seeds),
            lrs=None if lrs is None else _reals(lrs, "--lrs"),
            tune_seeds=tune_seeds,
            epochs=epochs,
            quick=quick,
            race=race,
            out=folder,
            fresh=fresh,
            storage=storage,
            study=study,
            devices=devices,
            device=device,
            precision=precision,
            compile=compile,
            num_workers=num_workers,
            allow_leak=allow_leak,
            **_engine(engine, workers, address, cpus, gpus, device, devices),
            title=title,
            command=_command(),
        )
    from normwise import report as drawing

    _print(drawing.table(done.record))
    for note in done.record.settings.notes:
        print(note)
    print(f"\nstudy   {folder / 'study.json'}\nreport  {folder / 'report.html'}")


@app.command
def report(
    where: Annotated[str, Parameter(name="STUDY")],
    /,
    *,
    study: str | None = None,
    out: Path | None = None,
    serve: int | None = None,
) -> None:
    """Draw a stored study, diagnosis or advice again: the table here, the page beside it. Needs no torch.

    For instance: normwise report normwise-compare/digits

    Args:
        where: A study.json, a study.db, the folder that holds one, or postgresql://USER@HOST/DATABASE; or what
            'normwise diagnose --out' or 'normwise advise --out' wrote.
        study: The study's name, where a database holds several.
        out: The file to write. Default: report.html beside the study, or here; another record's own name with .html.
        serve: Show a study in a browser at http://127.0.0.1:PORT instead, as it stands whenever the page is asked for,
            until interrupted; on this machine only. 0 takes a free port.
    """
    if serve is not None:
        with _live(where, study, serve):
            threading.Event().wait()
    from normwise import report as drawing
    from normwise.advice import is_advice, load_advice
    from normwise.files import check_target, write_own
    from normwise.findings import is_diagnosis, load_diagnosis

    if not is_url(where) and is_diagnosis(Path(where)):
        seen = load_diagnosis(Path(where))
        kind, name = "diagnosis", f"{Path(where).stem}.html"
        draw, shown = partial(drawing.diagnosis_html, seen), partial(drawing.diagnosis_table, seen)
    elif not is_url(where) and is_advice(Path(where)):
        told = load_advice(Path(where))
        kind, name = "advice", f"{Path(where).stem}.html"
        draw, shown = partial(drawing.advice_html, told), partial(drawing.advice_table, told)
    else:
        record = read(where, study)
        kind, name = "study", "report.html"
        draw, shown = partial(drawing.html, record), partial(drawing.table, record)
    page = out if out is not None else _beside(where) / name
    check_target(page, kind, page=True)
    with _whole(where):
        text, table = draw(), shown()
    write_own(page, text, kind, page=True)
    _print(table)
    print(f"\nreport  {page}")


@app.command
def methods() -> None:
    """List the methods that can be compared, and the paper of each."""
    from normwise.methods import METHODS

    width = max(map(len, METHODS))
    for method in METHODS.values():
        print(f"{method.name:<{width}}  {method.summary}" + (f" ({method.paper})" if method.paper != "-" else ""))


@app.command
def env(*, as_json: Annotated[bool, Parameter(name="--json", negative=())] = False) -> None:
    """Say which versions and kernels are in use here, and how to get the native ones.

    For a bug report: normwise env --json

    Args:
        as_json: Print JSON, with the system and the versions of the packages that normwise works with.
    """
    from normwise import kernels

    facts = {"normwise": __version__, **kernels.describe_environment()}
    if as_json:
        import torch

        facts |= {"accelerator": str(torch.accelerator.current_accelerator()), "system": platform.platform()}
        print(json.dumps({**facts, "packages": _versions()}, indent=2))
        return
    width = max(map(len, facts))
    for title, value in facts.items():
        print(f"{title:<{width}}  {value}")


@app.command
def completion(shell: Literal["bash", "zsh", "fish", "powershell"], /) -> None:
    """Print a script with which the shell completes normwise's commands and options.

    In bash, for this session: source <(normwise completion bash)

    For good: normwise completion bash > ~/.local/share/bash-completion/completions/normwise

    In zsh, with a folder of $fpath: normwise completion zsh > ~/.zsh/completions/_normwise

    In fish: normwise completion fish > ~/.config/fish/completions/normwise.fish

    Args:
        shell: bash, zsh, fish or powershell.
    """
    print(app.generate_completion(shell=shell), end="")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 when all went well, 2 for bad input, 130 when interrupted.

    Args:
        arguments: default those of the process.

    Raises:
        SystemExit: always.

    Example:
        >>> main(["--version"])
        Traceback (most recent call last):
        ...
        SystemExit: 0
    """
    make_printable()
    try:
        app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
    except (CycloptsError, NormwiseError) as error:
        _fail(_with_all_commands(error) if isinstance(error, UnknownCommandError) else str(error))
    except KeyboardInterrupt:
        print(f"\nnormwise: interrupted; what was finished is kept. Resume with: {_command()}", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:
        # Who read the output has gone, as head does. What is left in the buffer would fail again at the exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except SystemExit as stop:
        if place_of(stop) is None:
            raise
        _fail(f"your code failed: {described(stop)}")
    except Exception as error:
        # No place had a better word for it.
        _tell(error)
    raise SystemExit(0)


def _with_all_commands(error: UnknownCommandError) -> str:
    """The error of a command that does not exist, with all that do; cyclopts names the first eight."""
    known = ", ".join(name for name in error.app or () if not name.startswith("-"))
    return f"{str(error).partition(' Available commands:')[0]} Commands: {known}"


def _versions() -> dict[str, str]:
    """The installed packages among all that some part of normwise works with."""
    names, found = set(_WORKED_WITH), {}
    with suppress(metadata.PackageNotFoundError):  # run from its sources
        needed = metadata.requires("normwise") or []
        names |= {re.split(r"[^\w.-]", requirement, maxsplit=1)[0] for requirement in needed}
    for name in sorted(names - {"normwise", "torch"}):
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _tell(error: Exception) -> None:
    """Say in one line what was not foreseen, and how to see where it happened."""
    if os.environ.get(_TRACE):
        traceback.print_exception(error)
    whose = "your code failed" if place_of(error) else "cannot go on"
    _fail(f"{whose}: {described(error)}; set {_TRACE}=1 for the whole traceback")


def _fail(message: str) -> None:
    print(f"normwise: error: {redact(' '.join(message.split()))}", file=sys.stderr)
    raise SystemExit(2) from None


@contextmanager
def _live(where: str | Path, study: str | None, port: int | None) -> Iterator[None]:
    """Serve a study's page while the body runs, if a port was given."""
    if port is None:
        yield
        return
    from normwise.report import live
    from normwise.study.progress import ahead

    with live.serving(lambda: read(str(where), study), port, ahead=ahead) as address:
        print(f"live report at {address}", file=sys.stderr, flush=True)
        yield


def _needing_extras():  # type: ignore[no-untyped-def]  # the module's own type would import torch
    try:
        from normwise.study import comparison
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("normwise"):
            raise
        raise MissingDependencyError(f"compare needs {error.name}: pip install 'normwise[compare]'") from error
    return comparison


@contextmanager
def _whole(where: str) -> Iterator[None]:
    """Say that a stored record contradicts itself where it cannot be drawn: every field has its type, and no sense."""
    try:
        yield
    except NormwiseError:
        raise
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        raise StoreError(f"cannot draw {where}: it is damaged, parts of it contradict each other ({said})") from error


def _print(shown: RenderableType) -> None:
    from rich.console import Console

    Console().print(shown)


def _command() -> str:
    """The command that continues this run: what was typed, without --fresh and without passwords."""
    return shlex.join(["normwise", *(redact(a) for a in sys.argv[1:] if a != "--fresh")])


def _beside(where: str) -> Path:
    """The folder of a study; for a database that has none, this one."""
    path = Path(where)
    return Path() if is_url(where) else path if path.is_dir() else path.parent


def _engine(
    name: str, workers: int | None, address: str | None, cpus: float, gpus: float, device: str, each: int
) -> dict[str, Any]:
    """What compare is told about its workers."""
    if name == "ray":
        from normwise.study.engines import RayCluster

        return {"engine": RayCluster(workers, address, cpus, gpus)}
    if address is not None or gpus or cpus != 1:
        raise InputError("--address, --cpus and --gpus are for --engine ray")
    from normwise import devices

    return {"engine": name, "workers": devices.workers(device, each) if workers is None else workers}


def _folder_name(model: str | None, data: str) -> str:
    """Of a study: a data set's name without its folder, or that of the user's model."""
    return re.sub(r"[^\w.]+", "-", data.partition(":")[0] if model is None else model.rpartition("/")[2]).strip("-")


def _words(text: str) -> list[str]:
    return [word for word in (part.strip() for part in text.split(",")) if word]


def _numbers(text: str, option: str) -> list[int]:
    try:
        return [int(word) for word in _words(text)]
    except ValueError:
        raise InputError(f"{option} must be whole numbers separated by commas, got {text!r}") from None


def _reals(text: str, option: str) -> list[float]:
    try:
        return [float(word) for word in _words(text)]
    except ValueError:
        raise InputError(f"{option} must be numbers separated by commas, got {text!r}") from None


def _seeds(text: str) -> int | list[int]:
    """``3`` is a count, ``1,2,3`` are seeds."""
    numbers = _numbers(text, "--seeds")
    return numbers[0] if len(numbers) == 1 and not text.strip().endswith(",") else numbers
