"""``normwise advise``. torch is imported when the command runs, not for its help."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from normwise.arguments.methods import several
from normwise.cli.sources import Batches, data_of, example_inputs, model_from
from normwise.cli.words import Precision, give, is_page

app = App(name="consult", help="Say which normalization a model should use.")


@app.command
def advise(
    model: str,
    checkpoint: Path | None = None,
    /,
    *,
    input_shape: str | None = None,
    data: str | None = None,
    batch_size: int | None = None,
    task: str | None = None,
    devices: int = 1,
    accumulate: int = 1,
    variable_length: bool = False,
    verify: float | None = None,
    loss: str | None = None,
    metric: str | None = None,
    optimizer: str | None = None,
    methods: list[str] | None = None,
    device: str = "auto",
    precision: Precision = "32",
    out: Path | None = None,
    as_json: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> None:
    """Say which normalization a model should use, why, what it costs here, and the line of Python that puts it in.

    For instance: normwise advise nets.py:resnet --input-shape 2,3,224,224 --batch-size 2

    What networks trained under every method taught judges what one run of the model shows; where it does not reach, the
    advice abstains. Nothing is trained, unless you ask to see whether the advice holds on your data:
    normwise advise nets.py:resnet --data nets.py:loader --verify 120

    Args:
        model: Where the model comes from: module:callable or path.py:callable, called without arguments.
        checkpoint: Its weights: .pt, .pth or .safetensors.
        input_shape: Shape of an input, such as 2,3,224,224; random data are run through the model.
        data: A callable that gives data in any form (tensors, a Dataset, a DataLoader, a list of batches, …), as
            module:callable or path.py:callable; a data set with a name, such as digits; or text:FILE;
            instead of random data.
        batch_size: Samples per step and device. Default: those of the input, of data that are samples 32.
        task: What the model is for, where that matters: classification, regression, segmentation, detection, language,
            stylization, reconstruction, generation or restoration.
        devices: How many train together.
        accumulate: Batches per optimizer step.
        variable_length: Whether samples differ in length, so that batches are padded.
        verify: Train copies of the model on the data, under the best-ranked methods and the one it has, and say whether
            the advice held; all of it takes about so many seconds. Needs --data with targets.
        loss: To verify with: a name of torch.nn.functional, such as cross_entropy, or path.py:NAME: a function of
            (output, target), a criterion, or loss(model, batch). Default: by the targets.
        metric: To verify with: a name, such as accuracy, or path.py:NAME: an object of torchmetrics, a function of
            (output, target), or metric(model, loader); higher is better. Default: by the targets.
        optimizer: To verify with: a name of torch.optim, such as AdamW, or path.py:NAME: a class, a function of
            (params, lr), or of (model, lr, steps). Default: SGD, for models of tokens AdamW.
        methods: Of your own, separated by commas or given again: path.py:NAME, with options if need be. Their costs are
            measured and --verify trains them; nothing was learned about them.
        device: Where to measure and train: auto, cpu, cuda, cuda:1, mps, xpu or whatever torch has. auto takes the
            accelerator that torch reports, else the CPU.
        precision: 32 as the model is written, or bf16 or 16 by torch's autocast: of what is measured and trained.
        out: Write the advice there: a page if it ends in .html, else JSON, which 'normwise report' draws again.
        as_json: Print JSON.

    Raises:
        InputError: neither an input's shape nor data were given, or nothing to verify on.
    """
    from normwise import report
    from normwise.errors import InputError
    from normwise.files import check_target
    from normwise.study.consult import advise as ask

    if (input_shape is None) == (data is None):
        raise InputError("give --input-shape 2,3,224,224 or --data path.py:callable, so that the model can be run")
    if verify is not None and (data is None or not 0 < verify < math.inf):
        raise InputError(f"--verify {verify:g}: give a number of seconds above 0, and --data to train on")
    check_target(out, "advice", is_page(out))
    net, _ = model_from(model, checkpoint)
    batches = None if data is None else Batches(data, batch_size)
    inputs: Any = example_inputs(net, input_shape, batches)
    advice = ask(
        net,
        inputs,
        batch_size=batch_size,
        task=task,
        devices=devices,
        accumulate=accumulate,
        variable_length=variable_length,
        verify=verify,
        loss=loss,
        metric=metric,
        optimizer=optimizer,
        methods=several(methods or []),
        device=device,
        precision=precision,
        data=None if verify is None or data is None else data_of(data),
    )
    give(advice, report.advice_table, out, as_json)
