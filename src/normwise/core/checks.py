"""What a call of ``normalize`` must not ask for: refused before it is computed, where need be in torch's words."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from normwise.core.autograd import elements_per_cell
from normwise.core.formula import Context
from normwise.core.method import Method
from normwise.errors import InputError
from normwise.pools import elements_behind


def check_axis(x: Tensor, axis: int) -> None:
    """Refuse what is no place for channels."""
    refuse_nested(x)
    if axis not in (1, -1):
        raise InputError(f"axis says where the channels stand, expected 1 or -1, got {axis!r}")
    if x.ndim < 2:
        raise RuntimeError(f"Expected at least 2 dimensions for input tensor but received {x.ndim}")


def refuse_nested(x: Tensor) -> None:
    """Refuse a nested tensor, whose sizes these functions cannot read."""
    if x.is_nested:
        raise InputError(
            "a nested tensor cannot be normalized over samples, channels or space: pad it "
            "(torch.nested.to_padded_tensor) to (N, C, L) and give lengths=. LayerNorm takes nested tensors, RMSNorm "
            "jagged ones"
        )


def check_running(
    row: Method,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    use_running: bool,
    momentum: float | Tensor | None,
) -> None:
    """Refuse half of the running averages, and moving those of a method that keeps none."""
    if (running_mean is None) != (running_var is None):
        given, absent = ("mean", "var") if running_var is None else ("var", "mean")
        raise InputError(
            "running_mean and running_var must either both be None or neither be None: "
            f"got running_{given} without running_{absent}"
        )
    if running_mean is None:
        if use_running:
            raise InputError(
                "use_running=True needs running_mean and running_var: give both, or normalize by the batch"
            )
    elif not row.tracks and momentum is not None:
        raise InputError(f"{row.name} normalization keeps no running averages to move: leave momentum out")


def check_learned(x: Tensor, row: Method, learned: Mapping[str, Tensor]) -> None:
    """Refuse tensors that the method does not learn, and those of another shape."""
    for name, t in learned.items():
        if name not in row.learned:
            raise InputError(
                f"{row.name} has no learned tensor {name!r}: it takes {', '.join(row.learned) or 'none'}. Options are "
                f"the method's own: normalize(x, {type(row).__name__}({name}=...))"
            )
        shape = row.learned[name].shape(x.shape[1])
        if t.shape != shape:
            what = f"one value for each of {', '.join(row.pools)}" if row.learned[name].size else "one value a channel"
            raise InputError(f"{name} must have {what}, the shape {shape}, got the shape {tuple(t.shape)}")


def check_fits(x: Tensor, row: Method, tensors: Mapping[str, Tensor | None]) -> None:
    """Refuse what torch's layers refuse, before broadcasting or promotion makes something of it."""
    if x.ndim < 2:
        raise RuntimeError(f"Expected at least 2 dimensions for input tensor but received {x.ndim}")
    if not x.is_floating_point():
        raise NotImplementedError(f"normalization needs a floating-point input, got {x.dtype}: convert it, x.float()")
    C, dtype = x.shape[1], x.dtype
    groups = row.groups(C) if C else 1
    if groups < 1:
        raise RuntimeError(f"Expected num groups to be greater than 0, got {groups}")
    if C % groups:
        raise RuntimeError(
            f"Expected number of channels in input to be divisible by num_groups, but got input of shape "
            f"{list(x.shape)} and num_groups={groups}"
        )
    per_channel = torch.Size((C,))
    for name, t in tensors.items():
        if t is None:
            continue
        if t.shape != per_channel:
            _check_per_channel(name, t, tuple(x.shape))
        if t.dtype != dtype and (t.dtype != torch.float32 or dtype.itemsize > 2):
            raise RuntimeError(
                f"{name} is {t.dtype}, which does not go with an input of {dtype}: expected {dtype}, or float32 for "
                f"float16 and bfloat16; convert the layer, layer.to({dtype}), or the input"
            )


def _check_per_channel(name: str, t: Tensor, shape: tuple[int, ...]) -> None:
    N, C = shape[:2]
    if t.ndim == 0 or t.shape[-1] != C:
        count = t.shape[-1] if t.ndim else 1
        raise RuntimeError(f"{name} should contain {C} elements not {count}, to go with an input of {shape}")
    if t.shape[:-1] not in ((N,), (1,)):
        raise RuntimeError(f"{name} should have the shape ({C},) or ({N}, {C}), got {tuple(t.shape)}")


# For a single element: what there is too little of and the input's size, both in torch's words; whose value, and a way.
_Words = tuple[str, Callable[[torch.Size], object], str, str]
_UNDEFINED: dict[str, _Words] = {
    "batch": (
        "value per channel",
        lambda size: size,
        "channel",
        "Use batches of 2 or more (drop_last=True), or group or layer normalization",
    ),
    "instance": (
        "spatial element",
        lambda size: size,
        "channel of a sample",
        "Use group or layer normalization where the map is 1×1",
    ),
    "group": ("value per channel", list, "group", "Use fewer groups: num_groups={fewer} would do"),
    "layer": ("value per sample", list, "sample", "Normalize before the features shrink to one"),
}


def check_defined(x: Tensor, row: Method, given: Context) -> None:
    """Refuse what has no variance: with one element behind a statistic every input would come out as ``bias``."""
    # With two elements a cell every statistic has as many.
    if x.numel() != x.shape[0] * x.shape[1] or not x.numel():
        return
    stored, pool = given.population is not None, row.rests_on
    if pool is None or not row.reads_cells(stored):
        return
    groups, elsewhere = row.groups(x.shape[1]), stored or given.exchange is not None
    if elements_behind(x.shape[0], x.shape[1], elements_per_cell(x), groups, elsewhere)[pool] != 1:
        return
    if pool == "group" and x.shape[0] > 1:
        return  # torch computes that: it erases the data, of which diagnose and advise tell
    expected, sized, whose, remedy = _UNDEFINED[pool]
    if pool == "group" and x.shape[1] == 1:
        remedy = _UNDEFINED["layer"][-1]  # a single channel has no fewer groups
    fewer = max((g for g in range(1, groups) if x.shape[1] % g == 0), default=1)
    raise InputError(
        f"Expected more than 1 {expected} when training, got input size {sized(x.shape)}: the variance of the single "
        f"value of a {whose} is 0, and {row.name} normalization would erase the data. {remedy.format(fewer=fewer)}"
    )
