"""``compare``: the main job from model and data to verdict."""

from __future__ import annotations

import dataclasses
import datetime
import math
import os
import tempfile
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch

from normwise import devices as present
from normwise.errors import InputError
from normwise.files import check_folder
from normwise.nn.own import Given
from normwise.records import Settings, Setup, StepCost, Trial, from_dict, to_dict
from normwise.study.causal import without_leaks
from normwise.study.compute import Compute
from normwise.study.costs import measured
from normwise.study.engines import Engine, Processes, engine_of, run
from normwise.study.equal import without_equals
from normwise.study.machine import machine, versions
from normwise.study.own import check_methods, check_travels, fingerprints, notes, with_methods
from normwise.study.plan import default_epochs, scaled_lrs
from normwise.study.racing import TUNE_SHARE
from normwise.study.result import FILES, Study
from normwise.study.store import STUDY_NAME, Store
from normwise.study.stored import draw_up
from normwise.study.tasks import Task, load_task, make_task
from normwise.study.trial import Trainer
from normwise.study.worker import Job

DEFAULT_BATCH_SIZES = (2, 32)
DEFAULT_SEEDS = 5
QUICK_SEEDS = 3
# Rates beyond either end of the default grid that the search may go on to.
SEARCH = 3
# Seeds that the search for a rate may use: the first for every rate, the others where rates are near each other.
TUNE_SEEDS = 3
_TUNE_SEED = 1000


def compare(
    make_model: Callable[..., Any] | str | None = None,
    data: Any = "digits",
    *,
    loss: Any = None,
    metric: Any = None,
    optimizer: Any = None,
    augment: Any = None,
    collate: Any = None,
    accumulate: int | None = None,
    methods: Given | Sequence[Given] | None = None,
    batch_sizes: int | Sequence[int] = DEFAULT_BATCH_SIZES,
    seeds: int | Sequence[int] | None = None,
    lrs: float | Sequence[float] | None = None,
    tune_seeds: int | None = None,
    epochs: float | Mapping[int, float] | None = None,
    out: str | os.PathLike[str] | None = None,
    title: str | None = None,
    quick: bool = False,
    race: bool = False,
    fresh: bool = False,
    workers: int = 1,
    storage: str | None = None,
    study: str | None = None,
    engine: str | Engine = "processes",
    devices: int = 1,
    device: str | torch.device = present.AUTO,
    precision: str | int = "32",
    compile: bool = False,
    num_workers: int = 0,
    allow_leak: bool = False,
    progress: bool = True,
    command: str | None = None,
) -> Study:
    """Find out which normalization a model should use, by training it under each.

    At each batch size every method first gets the same small search for its learning rate (on a seed of its own), then
    is trained once per seed. For one seed all methods start from the same weights and see the same data in the same
    order, so that their scores are compared in pairs. Methods are chosen on the validation part; test is only reported.

    Args:
        make_model: ``make_model(norm)`` builds a fresh model, with ``norm(channels)`` where it wants a normalization
            (``norm(channels, dim=1)`` for other than the inputs' number of spatial axes). For the method ``"weight"``
            every convolution and linear layer gets weight normalization, for ``"none"`` nothing is added. A function
            without arguments builds a model with layers of its own, which are converted to each method. Either may
            give a Lightning module. Or a text: ``"my_project.py:make_model"``, ``"timm:resnet18"``. Default: the data
            set's reference model.
        data: ``"digits"`` or another name; ``(inputs, targets)`` or a dict of tensors or arrays, a data set, a loader,
            a list of batches, a Lightning data module, a Hugging Face data set, or train, valid and test of these, see
            the :ref:`forms of data <arguments>`; or a :class:`~normwise.study.Task` that says everything itself.
        loss: a name of ``torch.nn.functional``, a criterion, a function of (output, target), or ``loss(model, batch)``;
            default cross-entropy for class numbers, else the mean squared error.
        metric: a name (``"accuracy"``, ``"mean_iou"``, ``"r_squared"``, ``"perplexity"``, ``"loss"``, minus the last
            two, or what a Lightning module logs), an object of torchmetrics, a function of (outputs, targets), or
            ``metric(model, loader)``; higher is better.
        optimizer: a class of ``torch.optim`` or its name, a function of (params, lr), or ``optimizer(model)``, which
            gives an optimizer, or it and a schedule; either may take ``lr``, the second ``steps``. Without ``lr`` the
            rates it sets are multiplied by the rates under trial.
        augment: ``augment(batch, generator)`` gives a training batch; every method gets the same draws.
        collate: makes a batch of a list of samples of a torch data set.
        accumulate: batches that make one optimizer step; default 1.
        methods: one or several: keys of ``METHODS``, with options where you want others than the defaults:
            ``"group(num_groups=4)"``, ``"switchable(variance=official)"``, ``"weight(init=data)"``; default the six
            and ``"none"``. And methods of your own: a :class:`normwise.methods.Method`, what builds a layer, as in
            ``lambda channels: MyLayer(channels)``, or either by name, ``"my_file.py:MyMethod"``. Methods that make the
            same network, as ``"as_is"`` and the one it was written with, are trained once.
        batch_sizes: one or several to compare at.
        seeds: how many, or which; at least two, since one run cannot tell a difference from chance. Default 5, with
            ``quick`` 3.
        lrs: the learning rates to try, at batch size 32; for others they are scaled by √(b / 32). With an optimizer of
            your own they are rates, or factors of the rates it sets, at the largest batch size compared; default a
            quarter, once and four times your own. Where the best of some method lies at an end of the default rates,
            all methods try the next one beyond it, at most three times either way; rates that you give are kept to.
        tune_seeds: that the search for a rate may use. All rates get the first; where a method that may lead has two
            rates whose scores are near each other, the two best of every method get the others. Default 3, with
            ``quick`` 1.
        epochs: passes over the data, or batch size → passes. The default is short, about 1000 · √(2 / b) steps for
            your own model: give your usual length for an answer that holds for it.
        out: a folder to keep the study in, which makes it resumable, and to write ``study.json`` and ``report.html``
            to; default none.
        title: of the report.
        quick: short training and few seeds.
        race: stop a method as soon as it is clearly behind (:mod:`normwise.study.racing`), and search for learning
            rates with trials of a third of the length. The same verdict from less training; methods that stop early
            have wide intervals. Worth it with many methods or seeds.
        fresh: start over where ``out`` already holds a study, which stays in its database under another name.
        workers: processes that share the trials; for more than one ``make_model`` and methods of your own must be
            importable from a module.
        storage: the database to keep the study in, ``postgresql://USER@HOST/DATABASE``, where workers of many machines
            can take part; default a file in ``out``.
        study: its name in that database; default that of the data.
        engine: what starts the workers: ``"processes"`` of this machine, ``"ray"``, or a
            :class:`~normwise.study.RayCluster`. With ``storage``, ``workers=0`` watches those that others start.
        devices: that train one trial together, with synced statistics: for models and batches too large for one. On
            accelerators each trains its share on one of them.
        device: what to train on: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``, ``"xpu"`` or whatever torch has;
            ``"auto"`` takes the accelerator that torch reports, else the CPU. A study keeps to one kind of device.
            Several workers take several accelerators in turn, unless a number is given.
        precision: ``"32"`` as the model is written; ``"bf16"`` or ``"16"`` by torch's autocast, ``"16"`` with a scaler
            of gradients, whose skipped steps are told. Initial weights, data and their order are those of ``"32"``.
        compile: compile each model with ``torch.compile``.
        num_workers: processes that read a torch data set ahead, as of a loader. The batches stay the same.
        allow_leak: compare methods with which a causal model sees what it is to predict. By default they are left out,
            and refused where ``methods`` names them.
        progress: show it on standard error.
        command: what to record as the command that makes this study.

    Returns:
        The study: its verdicts, table and report.

    Raises:
        InputError: an argument cannot be used, the model fails under every method, or ``out`` holds a file of the name
            of one of its own that normwise did not write.

    Example:
        >>> study = compare(methods=["none", "batch"], batch_sizes=[64], seeds=2, epochs=0.2, progress=False)
        >>> study.verdicts[0].batch_size
        64
    """
    compute = Compute(present.resolve(device), str(precision), compile, num_workers)
    own = {"loss": loss, "metric": metric, "optimizer": optimizer, "augment": augment, "collate": collate}
    task = _task_of(make_model, data, own | {"accumulate": accumulate})
    chosen = methods is not None
    if methods is not None:
        task, methods = with_methods(task, methods)
    task = task.on(compute)
    settings = make_settings(task, methods, batch_sizes, seeds, lrs, epochs, quick, race, devices, tune_seeds)
    how = engine_of(engine, workers)
    if not how.trains and isinstance(how, Processes) and storage is None:
        raise InputError("workers must be at least 1 where nobody else can take part: give storage=, too")
    others = how != Processes(1)
    if others or devices > 1:
        check_travels(task, "other processes")
    check_folder(out, "study", FILES)
    with ExitStack() as stack:
        stack.enter_context(present.current(compute.device))
        _check_model(task, settings)
        if not allow_leak:
            settings = without_leaks(task, settings, chosen)
        settings = without_equals(task, settings)
        place: str | Path | None = storage or (None if out is None else Path(out))
        if place is None and others:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="normwise-")))
        name = study or (STUDY_NAME if storage is None else task.name + "-quick" * quick + "-race" * race)
        store = Store(place, settings, fresh, name)
        store.note(
            title=title or f"Which normalization for {task.name}?",
            command=command or _python_command(settings, task.own),
            created=store.about.get("created") or datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            versions=versions(),
            machine=machine(task.threads, compute),
            source=task.source,
        )
        where = place.resolve() if isinstance(place, Path) else place
        handed = (task.home or task) if others and task.source is None else None
        job = Job(where, name, handed, present.asked(device), devices)
        trials = run(store, task, how, job, progress)
        _measure_costs(store, task, trials)
        compared = Study(draw_up(settings, store.about, trials))
    if out is not None:
        compared.save(out)
    return compared


def make_settings(
    task: Task,
    methods: Sequence[str] | None = None,
    batch_sizes: int | Sequence[int] = DEFAULT_BATCH_SIZES,
    seeds: int | Sequence[int] | None = None,
    lrs: float | Sequence[float] | None = None,
    epochs: float | Mapping[int, float] | None = None,
    quick: bool = False,
    race: bool = False,
    devices: int = 1,
    tune_seeds: int | None = 1,
) -> Settings:
    """Check the arguments of :func:`compare` and fix what they leave open."""
    samples = task.splits.train.size
    methods = check_methods(task, list(task.methods if methods is None else methods))
    sizes = _checked_sizes(batch_sizes, samples)
    tunes = _checked_count("tune_seeds", tune_seeds if tune_seeds is not None else 1 if quick else TUNE_SEEDS)
    seeds = _checked_seeds(seeds if seeds is not None else QUICK_SEEDS if quick else DEFAULT_SEEDS)
    if lrs is None and not task.lrs:
        raise InputError("your optimizer's function names no learning rate: give lrs, or a default as in lr=0.1")
    rates = _checked_lrs(task.lrs if lrs is None else lrs)
    reference = task.lrs_at or max(sizes) * task.accumulate
    steps = task.quick_steps if quick else task.steps
    return Settings(
        task=task.name,
        methods=methods,
        batch_sizes=sizes,
        seeds=seeds,
        tune_seeds=[max(_TUNE_SEED, max(seeds) + 1) + k for k in range(tunes)],
        lrs={str(b): scaled_lrs(rates, b * task.accumulate, reference) for b in sizes},
        epochs={str(b): _epochs_at(epochs, b, default_epochs(steps, b, samples)) for b in sizes},
        score_name=task.score_name,
        optimizer=task.optimizer_name + _accumulated(task),
        schedule=task.schedule_name,
        splits=task.splits.sizes(),
        model=task.describe_model(),
        notes=[*task.compute.notes(), *task.notes, *notes(task, methods), *task.conversions(methods)],
        quick=quick,
        race=race,
        tune_share=TUNE_SHARE if race else 1.0,
        devices=_checked_devices(devices, sizes, task.compute),
        floor=task.floor,
        search=SEARCH if lrs is None and not quick else 0,
        tune_ties=tunes - 1,
        own=fingerprints(task, methods),
        **task.compute.settings(),
    )


def _measure_costs(store: Store, task: Task, trials: Sequence[Trial]) -> None:
    """Time the steps of a finished study in turn, once. On several devices a step is not what one process would do."""
    known = [from_dict(StepCost, cost) for cost in store.about.get("costs", [])]
    if store.settings.devices == 1:
        store.note(costs=[to_dict(cost) for cost in measured(task, store.settings, trials, known)])


def _task_of(make_model: Any, data: Any, own: Mapping[str, Any]) -> Task:
    """``own`` are the arguments that make a task the user's, those left open being ``None``."""
    given = {name: value for name, value in own.items() if value is not None}
    if isinstance(data, Task):
        if make_model is not None or given:
            raise InputError(f"a Task brings its own {', '.join(['make_model', *own])}: give one or the other")
        return data
    if make_model is None and not given and isinstance(data, str):
        return load_task(data)
    return make_task(make_model, data, **given)


def _check_model(task: Task, settings: Settings) -> None:
    """Refuse, before anything is stored, a method of one's own that never works, and a model that works with none."""
    sizes, why = settings.batch_sizes, partial(_failure, task, settings)
    for method in settings.own:
        if (reason := why(method, sizes[0])) and all(why(method, size) for size in sizes[1:]):
            raise InputError(f"your method {method} fails in the first step: {reason}")
    for size in sizes:
        reason = why(settings.methods[0], size)
        if reason and all(why(method, size) for method in settings.methods[1:]):
            raise InputError(
                f"the model fails with every method at batch size {size}; with {settings.methods[0]}: {reason}"
            )


def _failure(task: Task, settings: Settings, method: str, batch_size: int) -> str | None:
    """Why a method fails in a first step at a batch size, if it does."""
    few = task.splits._replace(
        train=task.splits.train.take(slice(batch_size)),
        **{name: getattr(task.splits, name).take(slice(8)) for name in ("valid", "test")},
    )
    try_out = Trainer(dataclasses.replace(task, splits=few), {batch_size: 1}, measure_memory=False)
    trial = try_out(Setup("tune", method, batch_size, min(settings.lrs[str(batch_size)]), 0))
    return trial.reason if trial.state == "failed" else None


def _accumulated(task: Task) -> str:
    return f"; {task.accumulate} batches accumulated per step" if task.accumulate > 1 else ""


def _checked_sizes(batch_sizes: int | Sequence[int], samples: int) -> list[int]:
    sizes = list(dict.fromkeys(_as_list(batch_sizes)))
    if not sizes:
        raise InputError("no batch size given")
    for size in sizes:
        if not _is_int(size) or size < 1:
            raise InputError(f"a batch size must be a whole number of at least 1, got {size!r}")
        if size > samples:
            raise InputError(f"batch size {size} is larger than the training data ({samples} samples)")
    return [int(size) for size in sizes]


def _checked_seeds(seeds: int | Sequence[int]) -> list[int]:
    chosen = list(dict.fromkeys(range(seeds) if isinstance(seeds, int) else _as_list(seeds)))
    if len(chosen) < 2:
        raise InputError(f"{len(chosen)} seed(s) cannot tell a difference from chance: give at least 2, better 3 to 10")
    if not all(_is_int(seed) and seed >= 0 for seed in chosen):
        raise InputError(f"seeds must be whole numbers of at least 0, got {seeds!r}")
    return [int(seed) for seed in chosen]


def _checked_lrs(lrs: float | Sequence[float]) -> list[float]:
    rates = _as_list(lrs)
    if not rates or not all(isinstance(lr, int | float) and 0 < lr < math.inf for lr in rates):
        raise InputError(f"learning rates must be one or more finite numbers above 0, got {lrs!r}")
    return [float(lr) for lr in rates]


def _checked_devices(devices: int, sizes: Sequence[int], compute: Compute) -> int:
    if min(sizes) < _checked_count("devices", devices):
        raise InputError(f"a batch of {min(sizes)} cannot be shared by {devices} devices: give larger --batch-sizes")
    present.refuse_more(compute.device, devices)
    return int(devices)


def _checked_count(name: str, count: int) -> int:
    if not _is_int(count) or count < 1:
        raise InputError(f"{name} must be a whole number of at least 1, got {count!r}")
    return int(count)


def _epochs_at(epochs: float | Mapping[int, float] | None, batch_size: int, default: float) -> float:
    value = epochs.get(batch_size, default) if isinstance(epochs, Mapping) else default if epochs is None else epochs
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise InputError(f"epochs must be a finite number above 0, got {value!r}")
    return float(value)


def _as_list(values: Any) -> list[Any]:
    return list(values) if isinstance(values, Iterable) and not isinstance(values, str) else [values]


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _python_command(s: Settings, own: Container[str]) -> str:
    methods = ", ".join(m if m in own else repr(m) for m in s.methods)
    sizes = f"batch_sizes={s.batch_sizes}, seeds={s.seeds}, epochs={ {int(b): e for b, e in s.epochs.items()} }"
    how = f"quick={s.quick}, race={s.race}, device={s.device!r}, precision={s.precision!r}, compile={s.compile}"
    return f"normwise.compare(make_model, data, methods=[{methods}], {sizes}, {how})"
