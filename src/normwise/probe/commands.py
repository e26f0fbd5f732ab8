"""``normwise diagnose``. torch is imported when the command runs, not for its help."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from normwise.findings import Diagnosis, fails
from normwise.surgery.sources import called, model_from, resolved

app = App(name="probe", help="Say what is wrong with a model's normalization.")


@app.command
def diagnose(
    model: str,
    checkpoint: Path | None = None,
    /,
    *,
    data: str,
    loss: str | None = None,
    steps: int = 16,
    device: str = "auto",
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
        data: A callable that gives batches (tensors, (input, target) pairs or mappings), named like the model.
        loss: A function of torch.nn.functional, such as cross_entropy, or one of yours, named like the model, taking
            (output, target). With it gradients, covariate shift and the loss in evaluation are measured.
        steps: How many batches to look at, at most.
        device: Where to run it: auto, cpu, cuda, cuda:1, mps, xpu or whatever torch has. auto takes the accelerator
            that torch reports, else the CPU.
        out: Write the diagnosis there: a page if it ends in .html, else JSON, which 'normwise report' draws again.
        fail_on: Exit with 1 if there is a finding of this severity or a higher one: info, warning or error.
        as_json: Print JSON.

    Raises:
        InputError: an unknown severity or loss.
        SystemExit: with 1, as asked for by --fail-on.
    """
    from normwise import report
    from normwise.arguments.loss import loss_of
    from normwise.files import check_target, write_own
    from normwise.probe.diagnosing import diagnose as examine

    fails([], fail_on or "error")
    page = out is not None and out.suffix in (".html", ".htm")
    check_target(out, "diagnosis", page)
    criterion = resolved(loss) if loss is not None and ":" in loss else loss_of(loss)
    net, _ = model_from(model, checkpoint)
    told = _progress if sys.stderr.isatty() else None
    found = examine(net, called(data), criterion, steps=steps, device=device, progress=told)
    found = _with_commands(found, model, checkpoint, data)
    if as_json:
        print(found.to_json(), end="")
    else:
        from rich.console import Console

        Console().print(report.diagnosis_table(found))
    if out is not None:
        write_own(out, report.diagnosis_html(found) if page else found.to_json(), "diagnosis", page)
        print(f"\ndiagnosis  {out}", file=sys.stderr)
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
