"""``normwise diagnose``. torch is imported when the command runs, not for its help."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from normwise.cli.sources import data_of, model_from
from normwise.cli.words import Precision, give, is_page
from normwise.findings import Diagnosis, fails

app = App(name="probe", help="Say what is wrong with a model's normalization.")


@app.command
def diagnose(
    model: str,
    checkpoint: Path | None = None,
    /,
    *,
    data: str,
    loss: str | None = None,
    optimizer: str | None = None,
    steps: int = 16,
    batch_size: int | None = None,
    device: str = "auto",
    precision: Precision = "32",
    out: Path | None = None,
    fail_on: str | None = None,
    as_json: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> None:
    """Run a model on some batches and say what is wrong with its normalization, what that does, and what mends it.

    For instance: normwise diagnose nets.py:resnet model.pt --data nets.py:loader --loss cross_entropy

    In a check that must fail: normwise diagnose nets.py:resnet model.pt --data nets.py:loader --fail-on warning

    The model is run, not trained. For a look at your own training loop use Python: with normwise.watch(model) as w.

    Args:
        model: Where the model comes from: module:callable or path.py:callable, called without arguments.
        checkpoint: Its weights: .pt, .pth or .safetensors. Without them the weights are what the callable gives.
        data: A callable that gives data in any form (tensors, a Dataset, a DataLoader, a list of batches, …), as
            module:callable or path.py:callable; a data set with a name, such as digits; or text:FILE.
        loss: A name of torch.nn.functional, such as cross_entropy, or path.py:NAME: a function of (output, target), a
            criterion, or loss(model, batch). With it gradients, covariate shift and the loss are measured.
        optimizer: A name of torch.optim, such as AdamW, or path.py:NAME: a class, a function of (params, lr), or of
            (model). Its weight decay is checked, its learning rate used for the shift.
        steps: How many batches to look at, at most.
        batch_size: Samples of a batch, where the data are samples. Default: 32.
        device: Where to run it: auto, cpu, cuda, cuda:1, mps, xpu or whatever torch has. auto takes the accelerator
            that torch reports, else the CPU.
        precision: 32 as the model is written, or bf16 or 16 by torch's autocast.
        out: Write the diagnosis there: a page if it ends in .html, else JSON, which 'normwise report' draws again.
        fail_on: Exit with 1 if there is a finding of this severity or a higher one: info, warning or error.
        as_json: Print JSON.

    Raises:
        InputError: an unknown severity or loss.
        SystemExit: with 1, as asked for by --fail-on.
    """
    from normwise import report
    from normwise.arguments.loss import loss_of
    from normwise.files import check_target
    from normwise.probe.diagnosing import diagnose as examine

    fails([], fail_on or "error")
    check_target(out, "diagnosis", is_page(out))
    criterion = loss_of(loss)  # before the model, which may be slow to build
    net, _ = model_from(model, checkpoint)
    found = examine(
        net,
        data_of(data),
        criterion,
        optimizer=optimizer,
        steps=steps,
        batch_size=batch_size,
        device=device,
        precision=precision,
        progress=_progress if sys.stderr.isatty() else None,
    )
    found = _with_commands(found, model, checkpoint, data)
    give(found, report.diagnosis_table, out, as_json)
    if fail_on is not None and found.fails(fail_on):
        raise SystemExit(1)


def _with_commands(found: Diagnosis, model: str, checkpoint: Path | None, data: str) -> Diagnosis:
    """Write into the findings' commands what this one was given."""
    source = shlex.join([model] if checkpoint is None else [model, str(checkpoint)])
    named = {"MODEL": source, "DATA": shlex.quote(data)}

    def filled(command: str) -> str:
        return " ".join(named.get(word, word) for word in command.split(" "))

    return replace(found, findings=[replace(f, command=filled(f.command)) for f in found.findings])


def _progress(done: int, total: int) -> None:
    print(f"\r{done} of {total} batches", end="\n" if done == total else "", file=sys.stderr, flush=True)
