"""``normwise compare``: the main job. torch is imported when it runs, not for its help."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from normwise.arguments.methods import several
from normwise.cli.words import Precision, live, numbers, show, typed
from normwise.cli.words import seeds as count_or_seeds
from normwise.errors import InputError, MissingDependencyError

_OUT = "normwise-compare"

app = App(name="compare", help="Train a model under each normalization.")


@app.command
def compare(
    model: str | None = None,
    /,
    *,
    data: str = "digits",
    methods: list[str] | None = None,
    batch_sizes: list[str] | None = None,
    seeds: list[str] | None = None,
    lrs: list[str] | None = None,
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
    precision: Precision = "32",
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
            which gives data in any form: tensors or arrays, a Dataset, a DataLoader, a list of batches, a Lightning
            data module, a Hugging Face dataset, or a dict of these as train, valid and test.
        methods: Which to compare, separated by commas or given again, with options if need be:
            batch,group(num_groups=4). See 'normwise methods'. Default: the six and none; as_is is a model with the
            layers that it has. One of your own is path.py:NAME or module:NAME: a Method, a class of them, or what
            builds a layer for a number of channels, with options if need be: my_file.py:MyMethod(0.3).
        batch_sizes: Samples per training step, separated by commas or given again. Methods are compared at each.
            Default: 2,32.
        seeds: How many times to train each method (3), or which seeds (1,2,3). More give narrower intervals. Default:
            5, with --quick 3.
        lrs: Learning rates to try for each method, at batch size 32, separated by commas; scaled by √(b/32) for others.
            With your own optimizer: rates or factors of its rate, at the largest batch size.
        tune_seeds: Seeds that the search for a learning rate may use: the first for every rate, the others for the best
            rates of each method where they are near each other. Default: 3, with --quick 1.
        epochs: Passes over the training data. Default: short runs that fit the data set, with --quick shorter ones.
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
        loss: A name of torch.nn.functional, such as cross_entropy, or path.py:NAME: a function of (output, target), a
            criterion, or loss(model, batch). Default: cross-entropy for class numbers, else the squared error.
        metric: A name: accuracy, mean_iou, r_squared, perplexity or loss (minus them), or what a Lightning module logs,
            such as val_acc. Or path.py:NAME: an object of torchmetrics, a function of (output, target), or
            metric(model, loader); higher is better. Default: by the targets.
        optimizer: A name of torch.optim, such as AdamW, or path.py:NAME: a class, a function of (params, lr), or
            optimizer(model, lr, steps), which gives an optimizer, or it and a schedule.
        augment: A callable augment(batch, generator) that gives a training batch.
        collate: A callable that makes a batch of a list of samples.
        accumulate: Batches that make one optimizer step.
        allow_leak: Compare methods with which a causal model sees what it is to predict, too.
    """
    folder = out if out is not None else Path(_OUT) / (_folder_name(model, data) + "-quick" * quick + "-race" * race)
    comparison = _needing_extras()
    with live(storage or folder, study, serve):
        done = comparison.compare(
            model,
            data,
            loss=loss,
            metric=metric,
            optimizer=optimizer,
            augment=augment,
            collate=collate,
            accumulate=None if accumulate == 1 else accumulate,
            methods=None if methods is None else several(methods),
            batch_sizes=comparison.DEFAULT_BATCH_SIZES
            if batch_sizes is None
            else numbers(batch_sizes, "--batch-sizes", int),
            seeds=None if seeds is None else count_or_seeds(seeds),
            lrs=None if lrs is None else numbers(lrs, "--lrs", float),
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
            command=typed(),
        )
    from normwise import report as drawing

    show(drawing.table(done.record))
    for note in done.record.settings.notes:
        print(note)
    print(f"\nstudy   {folder / 'study.json'}\nreport  {folder / 'report.html'}")


def _needing_extras():  # type: ignore[no-untyped-def]  # the module's own type would import torch
    try:
        from normwise.study import comparison
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("normwise"):
            raise
        raise MissingDependencyError(f"compare needs {error.name}: pip install 'normwise[compare]'") from error
    return comparison


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
