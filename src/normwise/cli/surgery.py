"""``normwise convert | fold | calibrate | inspect | layer-to-rms | qk-norm``: what changes or lists layers.

torch is imported when a command runs, not for its help.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from normwise.arguments.lookup import is_checkpoint
from normwise.cli.sources import Batches, example_inputs, model_from, weights_from
from normwise.errors import InputError

if TYPE_CHECKING:
    import torch

    from normwise.surgery.checkpoint import Checkpoint

app = App(name="surgery", help="Change the normalization of a model that exists.")


@app.command
def convert(
    model: str,
    checkpoint: Path | None = None,
    /,
    *,
    to: str,
    out: Path | None = None,
    where: str | None = None,
    input_shape: str | None = None,
    data: str | None = None,
    keep_going: bool = False,
    harden: bool = False,
    allow_leak: bool = False,
    as_json: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> None:
    """Replace a model's normalization layers by another method's and say what was carried, lost and how far it drifts.

    For instance: normwise convert nets.py:resnet model.pt --to group --out model-gn.pt --input-shape 1,3,224,224

    Load the result in Python with normwise.convert(resnet(), "group").model.load_state_dict(...).

    With options of the method: --to 'group(num_groups=8)'.

    The way back to torch's own classes, with the same weights: --to torch.

    Args:
        model: Where the model comes from: module:callable or path.py:callable, called without arguments.
        checkpoint: Its weights: .pt, .pth or .safetensors. Without them the weights are what the callable gives.
        to: The method, with options if need be (see 'normwise methods'), or one of your own, path.py:NAME; or torch,
            for torch's own classes.
        out: The file to write the converted weights to; never the one that was read.
        where: Which layers, a shell pattern of their names. Default: all.
        input_shape: Shape of an input, such as 1,3,224,224: measures the drift on random data.
        data: A callable that gives data in any form (tensors, a Dataset, a DataLoader, a list of batches, …), as
            module:callable or path.py:callable; a data set with a name, such as digits; or text:FILE.
            Weight and bias are re-fitted on its batches, and the drift is measured on the first.
        keep_going: Leave layers that cannot be converted as they are, instead of refusing.
        harden: With --to torch: let switchable layers become the method that their weights chose.
        allow_leak: Convert a causal model even if it would see what it is to predict.
        as_json: Print the record as JSON.

    Raises:
        InputError: options that do not go together.
    """
    from normwise.surgery.checkpoint import check_target
    from normwise.surgery.convert import convert as convert_layers

    check_target(out, checkpoint)
    net, source = model_from(model, checkpoint)
    batches = None if data is None else Batches(data)
    inputs = example_inputs(net, input_shape, batches)
    if to == "torch":
        _write(out, _to_torch(net, where, harden, inputs, keep_going, as_json), source, checkpoint)
        return
    if harden:
        raise InputError(f"--harden goes with --to torch, not with --to {to}")
    done = convert_layers(
        net,
        to,
        where=where,
        example_inputs=inputs,
        calibrate_with=batches,
        forward=None if batches is None else batches.feed,
        strict=not keep_going,
        allow_leak=allow_leak,
    )
    print(json.dumps(done.to_dict(), indent=2) if as_json else done)
    _write(out, done.model, source, checkpoint)


@app.command
def fold(
    model: str,
    checkpoint: Path | None = None,
    /,
    *,
    out: Path | None = None,
    where: str | None = None,
    input_shape: str | None = None,
    data: str | None = None,
) -> None:
    """Let convolutions and linear layers take over the batch norms beside them, where that is provably the same.

    For instance: normwise fold nets.py:resnet model.pt --out folded.pt --input-shape 1,3,224,224

    Load the result in Python with normwise.fold(resnet().eval()).load_state_dict(...).

    Args:
        model: Where the model comes from: module:callable or path.py:callable, called without arguments.
        checkpoint: Its weights: .pt, .pth or .safetensors.
        out: The file to write the folded weights to; never the one that was read.
        where: Which layers, a shell pattern of their names. Default: all.
        input_shape: Shape of an input, such as 1,3,224,224: the outputs before and after are compared on random data.
        data: A callable that gives data in any form (tensors, a Dataset, a DataLoader, a list of batches, …), as
            module:callable or path.py:callable; a data set with a name, such as digits; or text:FILE.
            The outputs are compared on the first batch.
    """
    from normwise.surgery.fold import fold as fold_layers

    shown = input_shape, data
    _change(model, checkpoint, shown, out, lambda net, inputs: fold_layers(net, inputs, where=where, report=print))


@app.command
def calibrate(
    model: str,
    checkpoint: Path | None = None,
    /,
    *,
    data: str,
    out: Path | None = None,
    where: str | None = None,
    layerwise: bool = False,
    batches: int | None = None,
    batch_size: int | None = None,
) -> None:
    """Replace running averages by the statistics of the whole data, measured with the network as it is.

    For instance: normwise calibrate nets.py:resnet model.pt --data nets.py:train_loader --out calibrated.pt

    Args:
        model: Where the model comes from: module:callable or path.py:callable, called without arguments.
        checkpoint: Its weights: .pt, .pth or .safetensors.
        data: A callable that gives data in any form (tensors, a Dataset, a DataLoader, a list of batches, …), as
            module:callable or path.py:callable; a data set with a name, such as digits; or text:FILE.
        out: The file to write the calibrated weights to; never the one that was read.
        where: Which layers, a shell pattern of their names. Default: all that keep running averages.
        layerwise: Measure layer by layer, each on the calibrated ones before it: slower, right where they shift much.
        batches: How many batches to use at most. Default: all.
        batch_size: Samples of a batch, where the data are samples. Default: 32.
    """
    from normwise.surgery.calibrate import calibrate as measure
    from normwise.surgery.checkpoint import check_target

    check_target(out, checkpoint)
    net, source = model_from(model, checkpoint)
    loader = Batches(data, batch_size)
    how: dict[str, Any] = {"where": where, "layerwise": layerwise, "batches": batches}
    done = measure(net.eval(), loader, forward=loader.feed, report=print, **how)
    _write(out, done, source, checkpoint)


@app.command
def inspect(
    model: str,
    checkpoint: Path | None = None,
    /,
    *,
    input_shape: str | None = None,
    data: str | None = None,
    fail_on: str | None = None,
    as_json: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> None:
    """List every normalization layer of a model or checkpoint, and what is wrong with its statistics and weights.

    For instance: normwise inspect model.safetensors

    In a check that must fail: normwise inspect nets.py:resnet model.pt --fail-on warning

    Args:
        model: module:callable or path.py:callable, or a checkpoint alone (.pt, .pth, .safetensors, …).
        checkpoint: The model's weights.
        input_shape: Shape of an input, such as 2,16: the model is run on random data, or token ids, to tell where its
            blocks have their norms.
        data: A callable that gives data in any form (tensors, a Dataset, a DataLoader, a list of batches, …), as
            module:callable or path.py:callable; a data set with a name, such as digits; or text:FILE:
            the same on its first batch.
        fail_on: Exit with 1 if there is a finding of this severity or a higher one: info, warning or error.
        as_json: Print JSON.

    Raises:
        InputError: two checkpoints, or an unknown severity.
        SystemExit: with 1, as asked for by --fail-on.
    """
    from normwise.surgery.inspect import inspect as look
    from normwise.surgery.inspection import Inspection

    Inspection([]).fails(fail_on or "error")
    if is_checkpoint(model):
        if checkpoint is not None:
            raise InputError(f"{model} is a checkpoint, not a model: give module:callable, or one checkpoint alone")
        found = look(weights_from(model).state)
    else:
        net, _ = model_from(model, checkpoint)
        found = look(net, example_inputs(net, input_shape, None if data is None else Batches(data)))
    print(found.to_json().rstrip() if as_json else found)
    if fail_on is not None and found.fails(fail_on):
        raise SystemExit(1)


@app.command
def layer_to_rms(
    model: str,
    checkpoint: Path | None = None,
    /,
    *,
    input_shape: str | None = None,
    data: str | None = None,
    out: Path | None = None,
    where: str | None = None,
) -> None:
    """Make layer norms over tokens RMS norms that compute the same, their mean taken off the layers before them.

    For instance: normwise layer-to-rms nets.py:gpt model.pt --input-shape 2,64 --out model-rms.pt

    Load the result in Python with normwise.layer_to_rms(gpt(), inputs).load_state_dict(...).

    Args:
        model: Where the model comes from: module:callable or path.py:callable, called without arguments.
        checkpoint: Its weights: .pt, .pth or .safetensors.
        input_shape: Shape of an input, such as 2,64: who writes to the residual stream is read from a run on random
            data, or token ids.
        data: A callable that gives data in any form (tensors, a Dataset, a DataLoader, a list of batches, …), as
            module:callable or path.py:callable; a data set with a name, such as digits; or text:FILE:
            the same from its first batch.
        out: The file to write the weights to; never the one that was read.
        where: Which layers, a shell pattern of their names. Default: all.
    """
    from normwise.surgery.centre import layer_to_rms as turn

    shown = _needed(input_shape, data)
    _change(model, checkpoint, shown, out, lambda net, inputs: turn(net, inputs, where=where, report=print))


@app.command
def qk_norm(
    model: str,
    checkpoint: Path | None = None,
    /,
    *,
    input_shape: str | None = None,
    data: str | None = None,
    out: Path | None = None,
    where: str | None = None,
) -> None:
    """Put RMS norms of queries and keys into attention that has none, so that its logits cannot grow.

    For instance: normwise qk-norm nets.py:gpt model.pt --data text:book.txt --out model-qk.pt

    Load the result in Python with normwise.qk_norm(gpt(), batches).load_state_dict(...).

    Args:
        model: Where the model comes from: module:callable or path.py:callable, called without arguments.
        checkpoint: Its weights: .pt, .pth or .safetensors.
        input_shape: Shape of an input, such as 2,64: the norms start at the sizes that queries and keys have on random
            data, or token ids.
        data: A callable that gives data in any form (tensors, a Dataset, a DataLoader, a list of batches, …), as
            module:callable or path.py:callable; a data set with a name, such as digits; or text:FILE:
            the same on its first batch.
        out: The file to write the weights to; never the one that was read.
        where: Which of the layers that make queries and keys, a shell pattern of their names. Default: all.
    """
    from normwise.surgery.heads import qk_norm as put
    from normwise.surgery.running import run_on

    def change(net: torch.nn.Module, inputs: Any) -> torch.nn.Module:
        return put(net, [inputs], where=where, forward=run_on, report=print)

    _change(model, checkpoint, _needed(input_shape, data), out, change)


def _needed(input_shape: str | None, data: str | None) -> tuple[str | None, str | None]:
    """One of the two that say what a model is run on."""
    if (input_shape is None) == (data is None):
        raise InputError("give --input-shape 2,64 or --data path.py:callable, so that the model can be run")
    return input_shape, data


def _change(
    model: str,
    checkpoint: Path | None,
    shown: tuple[str | None, str | None],
    out: Path | None,
    change: Callable[[torch.nn.Module, Any], torch.nn.Module],
) -> None:
    """Change a model on what it is run on, a shape or data, and write its weights."""
    from normwise.surgery.checkpoint import check_target

    check_target(out, checkpoint)
    net, source = model_from(model, checkpoint)
    input_shape, data = shown
    inputs = example_inputs(net, input_shape, None if data is None else Batches(data))
    _write(out, change(net.eval(), inputs), source, checkpoint)


def _to_torch(
    net: torch.nn.Module, where: str | None, harden: bool, inputs: Any, keep_going: bool, as_json: bool
) -> torch.nn.Module:
    from normwise.surgery.to_torch import Returned, to_torch

    if keep_going:
        raise InputError("--keep-going does not go with --to torch: leave layers out with --where")

    def show(done: Returned) -> None:
        print(json.dumps(done.to_dict(), indent=2) if as_json else done)

    return to_torch(net, where=where, harden=harden, example_inputs=inputs, report=show)


def _write(out: Path | None, model: torch.nn.Module, source: Checkpoint | None, read: Path | None) -> None:
    """Save the weights in the form in which they came."""
    from normwise.surgery.checkpoint import Checkpoint, save

    if out is None:
        return
    state: dict[str, Any] = dict(model.state_dict())
    save(out, Checkpoint(state) if source is None else source.with_state(state), read)
    print(f"\nweights  {out}", file=sys.stderr)
