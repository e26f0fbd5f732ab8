"""A table of every normalization layer of a model or a checkpoint, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from dataclasses import replace as with_changes
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from normwise.core.reading import on_host
from normwise.errors import InputError
from normwise.findings import Finding
from normwise.kernels.reference import widened
from normwise.methods import Batch, Switchable, WeightNorm, traits_of
from normwise.nn._checks import came
from normwise.parametrize._splits import splits
from normwise.results import layers
from normwise.surgery.flow import record
from normwise.surgery.inspection import Inspection, Row
from normwise.surgery.layers import Found, find, not_understood
from normwise.surgery.running import run_on

# Up to this share of the layer's median |weight|, or up to this size, a channel contributes nothing.
_DEAD, GONE = 1e-3, 1e-5
# A scale |weight| / √(running_var + eps) beyond this turns what was constant into something large.
_SCALE = 100.0
# How the keys of a weight's length and direction end: as a parametrization, and by torch's older hook.
_WEIGHT_NORM_KEYS = (("original0", "original1"), ("_g", "_v"))


def inspect(source: torch.nn.Module | Mapping[str, Tensor], example_inputs: Any = None) -> Inspection:
    """Look at every normalization layer of a model, weight norms included, or at what a state_dict tells of them.

    Looks for running statistics that are not finite, negative, hardly above eps, never updated or that cannot move;
    for parameters that are not finite; for channels whose weight is dead, which contribute nothing but their bias; and
    for layers that surgery cannot prove to be what their class says, and for modules that are called a norm while what
    they compute is not understood. Whether weights are offsets from 1 (1 + w, as in Gemma) is read from what a module
    computes, and in a state_dict from the weights' values. The model is not run, but on ``example_inputs``; copies of
    its layers are. Such a run tells where each norm stands, and the placement of the blocks: pre (x + f(norm(x))), post
    (norm(x + f(x))), sandwich (x + norm(f(norm(x)))) or branch end (x + norm(f(x))).

    Args:
        source: a model, or a state_dict. In a state_dict layers are told by their tensors; their class and eps are not
            in it, and 1e-5 is taken.
        example_inputs: a tensor, a tuple of arguments or a mapping of named ones, to read the placement from.

    Returns:
        Rows and findings.

    Raises:
        InputError: it is neither.

    Example:
        >>> norm = torch.nn.BatchNorm1d(3)
        >>> norm.running_var[0] = float("nan")
        >>> print(inspect(norm).findings[0].message)
        1 of 3 channels of running_var are not finite: evaluation gives NaN
    """
    if not isinstance(source, torch.nn.Module | Mapping):
        raise InputError(
            f"inspect expected a torch.nn.Module or a state_dict, got {came(source)}: "
            + ("load the file first (torch.load), or `normwise inspect FILE`" if isinstance(source, str) else "")
            + ("give an instance" if isinstance(source, type) else "" if isinstance(source, str) else "give the model")
        )
    if isinstance(source, Mapping) and not all(isinstance(k, str) for k in source):
        raise InputError("inspect expected a state_dict, whose keys are names")
    facts = list(_of_model(source) if isinstance(source, torch.nn.Module) else _of_state(source))
    findings = [finding for f in facts for finding in _findings(f)]
    rows, placement = [f.row for f in facts], None
    if example_inputs is not None and isinstance(source, torch.nn.Module):
        reading = record(source, lambda model: run_on(model, example_inputs))
        roles, placement = reading.roles(), reading.placement()
        rows = [with_changes(row, role=roles.get(row.names[0])) for row in rows]
    return Inspection(rows, [*findings, *_convention(facts)], placement=placement)


@dataclass(frozen=True)
class _Facts:
    """A row, its tensors by name, and what the model says beyond them."""

    row: Row
    tensors: dict[str, Tensor]
    problem: str | None = None
    scale: Tensor | None = None


def _of_model(model: torch.nn.Module) -> Iterator[_Facts]:
    layers_found = find(model)
    held = [_held(found) for found in layers_found]
    values = iter(on_host([t for tensors, scale in held for t in (*tensors.values(), scale)]))
    for found, (names, _) in zip(layers_found, held, strict=True):
        tensors = {name: next(values) for name in names}
        scale = next(values)
        yield _Facts(_row(found, tensors, scale), tensors, found.layer.problem, scale)
    for name, module in not_understood(model, layers_found):
        yield _Facts(Row([name], type(module).__name__, "?", 0), {})
    for name, module in model.named_modules():
        for split in splits(module):
            title = f"{name}.{split.name}".strip(".").removesuffix(".weight")
            kind = parametrize.type_before_parametrizations(module).__name__
            yield _of_weight_norm(title, kind, split.g.detach(), split.v.detach())


def _held(found: Found) -> tuple[dict[str, Tensor], Tensor | None]:
    """A layer's tensors by name, and what scales its channels."""
    own = {**dict(found.module.named_parameters(recurse=False)), **dict(found.module.named_buffers(recurse=False))}
    return {name: tensor for name, tensor in own.items() if not _unreadable(tensor)}, found.layer.scale


def _of_weight_norm(name: str, kind: str | None, g: Tensor, v: Tensor) -> _Facts:
    readable = {n: t for n, t in (("g", g), ("v", v)) if not _unreadable(t)}
    return _Facts(Row([name], kind, WeightNorm.name, g.numel(), dead=_dead(g) if "g" in readable else 0), readable)


def _unreadable(tensor: Tensor) -> bool:
    return tensor.is_meta or torch.nn.parameter.is_lazy(tensor)


def _row(found: Found, tensors: Mapping[str, Tensor], scale: Tensor | None) -> Row:
    layer = found.layer
    momentum = layer.momentum if layer.running_mean is not None and not layer.frozen else None
    return Row(
        list(found.names),
        type(found.module).__name__,
        layer.method,
        layer.channels,
        layer.eps or None,
        momentum,
        layer.num_groups,
        **_measured(tensors, scale),
        frozen=layer.frozen,
        weight=f"{layer.offset:g} + w" if layer.offset else None,
        gate=layer.gate,
    )


def _of_state(state: Mapping[str, Tensor]) -> Iterator[_Facts]:
    groups: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        name, _, leaf = key.rpartition(".")
        groups.setdefault(name, {})[leaf] = tensor
    for name, tensors in groups.items():
        for g, v in _WEIGHT_NORM_KEYS:
            for weight in [leaf.removesuffix(g) for leaf in tensors if leaf.endswith(g)]:
                if weight + v in tensors:
                    title = f"{name.replace('parametrizations.', '')}.{weight}".strip(".").removesuffix(".weight")
                    yield _of_weight_norm(title, None, tensors[weight + g], tensors[weight + v])
        method = _method_of(tensors)
        if method is not None:
            channels = tensors["running_mean" if "running_mean" in tensors else "weight"].numel()
            told, scale = _as_stored(tensors.get("weight") if "running_mean" not in tensors else None)
            scale = tensors.get("weight") if scale is None else scale
            yield _Facts(
                Row([name], None, method, channels, **_measured(tensors, scale), weight=told), tensors, None, scale
            )


# Plain scales start at 1 and hardly ever cross 0; offsets from 1 start at 0, and go both ways.
_BELOW, _ABOVE_ZERO = 0.15, 0.02


def _as_stored(weight: Tensor | None) -> tuple[str | None, Tensor | None]:
    """Whether stored weights are scales or offsets from 1, with the evidence, and the scales that they mean."""
    if weight is None or not weight.numel() or not weight.is_floating_point() or not bool(weight.isfinite().all()):
        return None, None
    values = widened(weight.detach())
    median, below = float(values.median()), float(widened(values < 0).mean())
    evidence = f"median {median:.2g}, {below:.0%} below 0"
    if bool((values == 0).all()) or (abs(median) < 0.5 and below >= _BELOW and float(values.min()) > -1.5):
        return f"1 + w ({evidence})", values + 1
    if below <= _ABOVE_ZERO and median > 0.3:
        return f"w ({evidence})", values
    return f"w or 1 + w ({evidence})", values


def _convention(facts: Iterable[_Facts]) -> Iterator[Finding]:
    """Say once of a checkpoint that its weights are offsets from 1."""
    offsets = [f for f in facts if f.row.type is None and (f.row.weight or "").startswith("1 + w")]
    if offsets:
        medians = [float(widened(f.tensors["weight"].detach()).median()) for f in offsets]
        below = [float(widened(f.tensors["weight"] < 0).mean()) for f in offsets]
        names = ", ".join(f.row.names[0] for f in offsets[:3]) + (", …" if len(offsets) > 3 else "")
        message = (
            f"the weights of {layers(len(offsets))} ({names}) are about 0 (medians {min(medians):.2g} to "
            f"{max(medians):.2g}, {sum(below) / len(below):.0%} below 0): offsets from 1, to be read as 1 + w"
        )
        yield Finding("", "info", "weight-convention", message)


def _method_of(tensors: Mapping[str, Tensor]) -> str | None:
    """What the names and shapes of a module's tensors say that it is."""
    if "mean_weight" in tensors and "var_weight" in tensors:
        return Switchable.name
    if "running_mean" in tensors and "running_var" in tensors:
        return Batch.name
    vectors = all(t.ndim == 1 and t.numel() > 1 for t in tensors.values())
    if vectors and set(tensors) in ({"weight"}, {"weight", "bias"}):
        return "layer, group or rms"
    return None


def _measured(tensors: Mapping[str, Tensor], scale: Tensor | None) -> dict:
    var, batches = (tensors.get(n) for n in ("running_var", "num_batches_tracked"))
    known: dict = {"batches": None if batches is None else int(batches)}
    if var is not None and var.numel():
        known |= {"variance_min": float(var.min()), "variance_max": float(var.max())}
    return known | {"dead": 0 if scale is None else _dead(scale)}


def _dead(weight: Tensor) -> int:
    size = widened(weight.detach().abs()).flatten()
    return int((size <= dead_below(size)).sum()) if size.numel() else 0


def dead_below(weight: Tensor) -> float:
    """Up to which |weight| a channel contributes nothing."""
    return max(_DEAD * float(widened(weight.detach().abs()).median()), GONE)


def _findings(facts: _Facts) -> Iterator[Finding]:
    name, row = facts.row.names[0], facts.row
    for severity, code, message in _problems(facts, row):
        yield Finding(name, severity, code, message)


def _problems(facts: _Facts, row: Row) -> Iterator[tuple[str, str, str]]:
    """Severity, code and message of all that is wrong with a layer."""
    if row.method == "?":
        yield (
            "warning",
            "not-understood",
            f"it is called a norm ({row.type}), and what it computes is not understood: nothing is known of its health",
        )
    for leaf, tensor in facts.tensors.items():
        broken = int((~tensor.isfinite()).sum()) if tensor.is_floating_point() else 0
        if broken:
            result = "evaluation gives NaN" if leaf.startswith("running") else "the layer gives NaN"
            yield "error", "non-finite", f"{_of(broken, tensor)} of {leaf} are not finite: {result}"
    yield from _statistics_problems(facts.tensors, row)
    yield from _dead_weights(facts, row)
    if row.num_groups is not None and traits_of(row.method).needs_space:
        yield "info", "group-of-one", f"{row.num_groups} groups of one channel: instance norm, which erases (N, C) data"
    if facts.problem is not None:
        yield "info", "unproven", f"convert and fold leave it alone: {facts.problem}"


def _dead_weights(facts: _Facts, row: Row) -> Iterator[tuple[str, str, str]]:
    of_weights = traits_of(row.method).on_weights
    weight = facts.tensors.get("g") if of_weights else facts.scale
    if weight is None or not row.dead:
        return
    size = widened(weight.abs()).flatten()
    if row.dead == row.channels > 0:
        largest = float(size.max())
        rest = "the layer gives hardly more than its bias, whatever comes in"
        yield "warning", "dead-weight", f"the largest of its {row.channels} |weight|s is {largest:.2g}: {rest}"
        return
    # A norm's weights of exactly 0 beside others were put there: channels that somebody pruned.
    near = size[(size <= dead_below(size)) & ((size > 0) | of_weights)]
    if near.numel():
        yield (
            "info",
            "dead-weight",
            f"{near.numel()} of {row.channels} |weight|s are at most {float(near.max()):.2g}, where the median is "
            f"{float(size.median()):.2g}",
        )


def _statistics_problems(tensors: Mapping[str, Tensor], row: Row) -> Iterator[tuple[str, str, str]]:
    mean, var = tensors.get("running_mean"), tensors.get("running_var")
    if mean is None or var is None:
        return
    eps = 1e-5 if row.eps is None else row.eps
    negative = int((var < 0).sum())
    if negative:
        yield "error", "negative-variance", f"{_of(negative, var)} of running_var are negative"
    weight = tensors.get("weight")
    size = weight.abs().to(var) if weight is not None and weight.shape == var.shape else torch.ones_like(var)
    low = (var >= 0) & (var <= eps)
    scales = size / (var.clamp_min(0) + eps).sqrt()
    near = low & (scales > _SCALE)
    if near.any():
        yield (
            "warning",
            "near-eps",
            f"{_of(int(near.sum()), var)} have a running variance of at most eps ({eps:g}) and scale what comes by up "
            f"to {float(scales[near].max()):.3g}",
        )
    untouched = bool((mean == 0).all() and ((var == 1).all() or (var == 0).all()))
    if untouched:
        yield (
            "warning",
            "never-updated",
            "its running statistics never saw data: train, or calibrate, before evaluating",
        )
    if row.momentum == 0 and not untouched:
        yield "info", "momentum-0", "momentum 0: training does not move its running statistics"


def _of(count: int, tensor: Tensor) -> str:
    return f"{count} of {tensor.numel()} {'channels' if tensor.numel() == max(tensor.shape, default=1) else 'values'}"
