"""Data-dependent initialization of weight-normalized layers."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from normwise.errors import InputError, NormwiseWarning
from normwise.nn._checks import model_given
from normwise.nn._convolutions import CONVOLUTIONS
from normwise.parametrize._models import matrices, weight_norms
from normwise.parametrize._splits import splits


def weight_norm_init(model: torch.nn.Module, *args: Any, **kwargs: Any) -> list[str]:
    """Set g and bias of every weight-normalized layer from one batch (Salimans & Kingma 2016, section 3).

    Formula: with t = v · x / ‖v‖, g = 1 / σ[t] and bias = −μ[t] / σ[t], so that on the batch each output unit has mean
    0 and standard deviation 1. One forward pass sets the layers in the order in which they run, each on what the ones
    before give after they were set; a layer without bias keeps its mean. Modes and buffers are left as they were;
    recurrent layers, which have no single output before the activation, are left alone.

    Args:
        model: changed in place.
        *args: the batch, as the model takes it.
        **kwargs: the same.

    Returns:
        The names of the layers that were set, in that order.

    Raises:
        InputError: no layer can be set, one has its magnitudes along another axis, or its output is not finite; the
            model is left as it was.

    Example:
        >>> from normwise.parametrize import weight_norm
        >>> layer = weight_norm(torch.nn.Linear(4, 3))
        >>> batch = torch.randn(100, 4)
        >>> weight_norm_init(torch.nn.Sequential(layer, torch.nn.ReLU()), batch)
        ['0']
        >>> torch.allclose(layer(batch).std(0, correction=0), torch.ones(3), atol=1e-3)
        True
    """
    model_given(model, "weight_norm_init")
    layers = {
        module: name or type(module).__name__
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, *CONVOLUTIONS)) and "weight" in weight_norms(module)
    }
    if not layers:
        raise InputError(
            f"{type(model).__name__} has no linear or convolutional layer with weight norm: apply it first"
        )
    for module, name in layers.items():
        _check_units(module, name)
    done: dict[torch.nn.Module, str] = {}
    handles = []
    kept = [(t, t.detach().clone()) for t in model.buffers()]
    own = [(t, t.detach().clone()) for module in layers for t in module.parameters()]
    try:
        for module, name in layers.items():
            handles.append(module.register_forward_hook(partial(_set_from_output, done, name), prepend=True))
        with torch.no_grad():
            model(*args, **kwargs)
    except BaseException:
        kept += own
        raise
    finally:
        for handle in handles:
            handle.remove()
        with torch.no_grad():
            for tensor, value in kept:
                tensor.copy_(value)
    missed = [name for module, name in layers.items() if module not in done]
    if missed:
        warnings.warn(
            f"the batch did not pass through {', '.join(missed)}, left as before", NormwiseWarning, stacklevel=2
        )
    return list(done.values())


def _check_units(module: torch.nn.Module, name: str) -> None:
    wanted = next(dim for _, dim in matrices(module))
    step, weight = weight_norms(module)["weight"], module.weight
    dim = None if step.dim is None else step.dim % weight.ndim  # type: ignore[operator]
    if dim != wanted or (wanted == 1 and module.groups > 1):  # type: ignore[operator]
        raise InputError(
            f"layer {name!r} has its magnitudes along dim={step.dim} of its weight, and not one for each output unit: "
            f"data-dependent initialization needs dim={wanted}" + (" and groups=1" if wanted else "")
        )


@torch.no_grad()
def _set_from_output(
    done: dict[torch.nn.Module, str], name: str, module: torch.nn.Module, inputs: Any, output: Tensor
) -> Tensor | None:
    """A forward hook: on a layer's first run, set g and bias and give what the layer now gives."""
    if module in done:
        return None
    done[module] = name
    g = next(split for split in splits(module) if split.name == "weight").g
    bias: Tensor | None = module.bias  # type: ignore[assignment]
    axis = -1 if isinstance(module, nn.Linear) else output.ndim - len(module.kernel_size) - 1  # type: ignore[arg-type]
    units = output.movedim(axis, 0).flatten(1)
    units = units if units.dtype == torch.float64 else units.float()
    std, mean = torch.std_mean(units, 1, correction=0)
    if not (std.isfinite() & mean.isfinite()).all():
        raise InputError(f"the output of layer {name!r} is not finite (or empty): use another batch")
    varies = std > 0
    if not varies.all():
        warnings.warn(
            f"{int((~varies).sum())} unit(s) of layer {name!r} do not vary on this batch and keep their magnitude",
            NormwiseWarning,
            stacklevel=2,
        )
    # The output is g t + b, and so is scaled: dividing g by its deviation is the same as 1 / σ[t], but needs no new t.
    factor = torch.where(varies, 1 / torch.where(varies, std, 1), 1)
    g.mul_(factor.reshape(g.shape).to(g.dtype))
    if bias is not None:
        bias.sub_(mean.to(bias.dtype)).mul_(factor.to(bias.dtype))
    shape = [-1 if a == axis % output.ndim else 1 for a in range(output.ndim)]
    shift = mean if bias is not None else torch.zeros_like(mean)
    return ((output - shift.reshape(shape)) * factor.reshape(shape)).to(output.dtype)
