"""``normalize``: any method of the family as a function, in the manner of ``torch.nn.functional.batch_norm``."""

from __future__ import annotations

import torch
from torch import Tensor

from normwise import ops
from normwise.engine import elements_per_cell, run
from normwise.errors import InputError
from normwise.methods import Inputs, Method, elements_behind, method_named
from normwise.moments import Moments, update_running

__all__ = ["normalize"]


@torch.fx.wrap
def normalize(
    x: Tensor,
    method: str = "batch",
    *,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    num_groups: int = 1,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    use_running: bool = False,
    momentum: float | Tensor | None = None,
    over: tuple[str, ...] = ("instance", "layer", "batch"),
    mean_weight: Tensor | None = None,
    var_weight: Tensor | None = None,
    variance: str = "paper",
    activation: str | None = None,
    slope: float = 0.01,
) -> Tensor:
    """Normalize ``x`` by one method of the family: ``y = act((x − center) · scale + shift)``.

    ``center``, ``scale`` and ``shift`` are what the method makes of the means and variances of the cells ``x[n, c]``;
    the formula and source of each method stand with its function in :mod:`normwise.methods`. Statistics are held in
    float32 at least, whatever the dtype of ``x``.

    Args:
        x: (N, C, ...) with any number of spatial axes, none included; float16, bfloat16, float32 or float64.
        method: a key of ``METHODS``.
        weight: (C,), default 1.
        bias: (C,), default 0.
        eps: added to the variance.
        num_groups: of group normalization and of a switchable mix's group member; divides C.
        running_mean: (C,), the running averages; with ``running_var``.
        running_var: (C,).
        use_running: normalize by the running averages instead of the batch (evaluation).
        momentum: weight of this batch in the running averages, which are then changed in place; ``None`` leaves them.
        over: the members of a switchable mix.
        mean_weight: (K,), logits of the mix of means; default equal.
        var_weight: (K,), logits of the mix of variances; default equal.
        variance: ``"paper"`` or ``"official"``, of a switchable mix.
        activation: ``None``, ``"relu"``, ``"leaky_relu"`` or ``"silu"``, applied to the result.
        slope: of ``"leaky_relu"``.

    Returns:
        A tensor of the shape, dtype and memory format of ``x``.

    Raises:
        InputError: there is no such method, or it has no meaning for this shape.
        RuntimeError: ``x`` has fewer than two axes.

    Example:
        >>> x = torch.arange(8.0).reshape(1, 2, 4)
        >>> y = normalize(x, "instance")
        >>> y.mean(-1).abs().max() < 1e-6
        tensor(True)
    """
    row = method_named(method)
    population = None
    if use_running and running_mean is not None and running_var is not None:
        dtype = ops.accumulation_dtype(x.dtype)
        # Copies: the next training step may change the buffers before this step's backward pass runs.
        population = Moments(running_mean.to(dtype, copy=True)[None], running_var.to(dtype, copy=True)[None])
    inputs = Inputs(weight, bias, eps, num_groups, population, over, mean_weight, var_weight, variance)
    _check_defined(x, row, inputs)
    y, cells = run(x, row, inputs, activation, slope)
    if momentum is not None and not use_running and running_mean is not None and running_var is not None and x.numel():
        assert row.track is not None, f"{method} keeps no running averages"
        update_running(running_mean, running_var, row.track(cells), momentum)
    return y


# For a single element: what the method needs more of, in torch's words, and what to do.
_UNDEFINED = {
    "batch": ("value per channel", "Use batches of 2 or more (drop_last=True), or group or layer normalization"),
    "instance": ("spatial element", "Use group or layer normalization where the map is 1×1"),
    "group": ("value per group", "Use fewer groups"),
    "layer": ("value per sample", "Normalize before the features shrink to one"),
}


def _check_defined(x: Tensor, row: Method, inputs: Inputs) -> None:
    """Refuse what has no variance: with one element behind a statistic every input would come out as ``bias``."""
    if x.ndim < 2:
        raise RuntimeError(f"Expected at least 2 dimensions for input tensor but received {x.ndim}")
    if not x.numel() or not row.reads_cells(inputs):
        return
    if elements_behind(inputs, x.shape[0], x.shape[1], elements_per_cell(x)).get(row.name) == 1:
        scope, remedy = _UNDEFINED[row.name]
        raise InputError(
            f"Expected more than 1 {scope} when training, got input size {tuple(x.shape)}: the variance of a single "
            f"value is 0, and {row.name} normalization would erase the data. {remedy}"
        )
