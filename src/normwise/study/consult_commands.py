"""``normwise advise``. torch is imported when the command runs, not for its help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from normwise.surgery.sources import Batches, example_inputs, model_from

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
    as_json: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> None:
    """Say which normalization a model should use, why, what it costs here, and the line of Python that puts it in.

    For instance: normwise advise nets.py:resnet --input-shape 2,3,224,224 --batch-size 2

    Nothing is trained: rules with sources judge what one run of the model shows. To see whether the advice holds on
    your data use 'normwise compare'.

    Args:
        model: Where the model comes from: module:callable or path.py:callable, called without arguments.
        checkpoint: Its weights: .pt, .pth or .safetensors.
        input_shape: Shape of an input, such as 2,3,224,224; random data are run through the model.
        data: A callable that gives batches, as module:callable or path.py:callable, instead of random data.
        batch_size: Samples per step and device. Default: those of the input.
        task: What the model is for, where that matters: classification, regression, segmentation, detection, language,
            stylization, generation or restoration.
        devices: How many train together.
        accumulate: Batches per optimizer step.
        variable_length: Whether samples differ in length, so that batches are padded.
        as_json: Print JSON.

    Raises:
        InputError: neither an input's shape nor data were given.
    """
    from normwise import report
    from normwise.errors import InputError
    from normwise.study.consult import advise as ask

    if (input_shape is None) == (data is None):
        raise InputError("give --input-shape 2,3,224,224 or --data path.py:callable, so that the model can be run")
    net, _ = model_from(model, checkpoint)
    inputs: Any = example_inputs(net, input_shape, None if data is None else Batches(data))
    advice = ask(
        net,
        inputs,
        batch_size=batch_size,
        task=task,
        devices=devices,
        accumulate=accumulate,
        variable_length=variable_length,
    )
    if as_json:
        print(advice.to_json(), end="")
    else:
        from rich.console import Console

        Console().print(report.advice_table(advice))
