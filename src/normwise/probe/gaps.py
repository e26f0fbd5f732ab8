"""Training against evaluation: the same batches by batch statistics and by running ones, dropout off in both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from normwise.findings import Gap, NormTrace
from normwise.kernels.reference import widened
from normwise.probe.places import input_of
from normwise.surgery.layers import Found, find
from normwise.surgery.running import Forward, drift, evaluating, targets_of, tensors_in

Loss = Callable[[Any, Any], Tensor]
# Layers whose own part in the gap is measured: one pass over the batches each.
_MOST = 12


@contextmanager
def keeping_buffers(model: nn.Module) -> Iterator[None]:
    """Give every buffer back as it was."""
    kept = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in kept:
                buffer.copy_(value)


def measure_gap(
    model: nn.Module,
    batches: Sequence[Any],
    layers: Sequence[Found],
    forward: Forward,
    loss: Loss | None,
) -> Gap:
    """Score a model by running and by batch statistics.

    Accuracy where targets are classes, else the loss, negative; without targets only how far the outputs differ.
    """
    running, outputs = _score(model, batches, (), forward, loss)
    batch, others = _score(model, batches, layers, forward, loss)
    first = drift(others[0], outputs[0]) if outputs and tensors_in(others[0]) else None
    samples = sum(next((t.shape[0] for t in tensors_in(b) if t.ndim), 1) for b in batches)
    name = _score_name(outputs[0], targets_of(model, batches[0]), loss) if outputs else None
    finite = first is not None and first < float("inf")
    chance = _most_frequent([targets_of(model, b) for b in batches]) if name == "accuracy" else None
    return Gap(name, running, batch, first if finite else None, samples, chance)


def _most_frequent(targets: Sequence[Tensor]) -> float:
    """The share of the most frequent class."""
    _, counts = torch.cat([t.cpu() for t in targets]).unique(return_counts=True)
    return float(counts.max() / counts.sum())


def dropout_factors(
    model: nn.Module, batches: Sequence[Any], layers: Sequence[Found], forward: Forward
) -> dict[str, tuple[float, float]]:
    """By what factor dropout changes the variance of norms' inputs when it goes off; all else as in training."""
    # Dropout may be a function that asks the module around it.
    norms = {id(part) for found in find(model) for part in found.module.modules()}
    dropping = [module for module in model.modules() if module.training and id(module) not in norms]
    # Before the passes below move them.
    running = {f.names[0]: torch.as_tensor(f.module.running_var).detach().cpu().double() for f in layers}
    on = _variances(model, batches, layers, forward)
    try:
        for module in dropping:
            module.training = False
        off = _variances(model, batches, layers, forward)
    finally:
        for module in dropping:
            module.training = True
    return {
        name: (_typical_factor(off[name], on[name]), _typical_factor(off[name], running[name]))
        for name in on.keys() & off.keys()
    }


def _typical_factor(a: Tensor, b: Tensor) -> float:
    varying = (a > 1e-12) & (b > 1e-12)
    return float((a[varying] / b[varying]).log().mean().exp()) if varying.any() else 1.0


def _variances(
    model: nn.Module, batches: Sequence[Any], layers: Sequence[Found], forward: Forward
) -> dict[str, Tensor]:
    """The mean over batches of each channel's variance in front of norms."""
    seen: dict[str, list[Tensor]] = {}

    def hook(name: str, axis: int) -> Callable[..., None]:
        def note(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            x = input_of(args, kwargs)
            if x is not None and x.ndim > 1 and x.is_floating_point():
                seen.setdefault(name, []).append(widened(x.detach()).movedim(axis, -1).flatten(0, -2).var(0).cpu())

        return note

    handles = [
        found.module.register_forward_pre_hook(hook(found.names[0], found.layer.channel_axis), with_kwargs=True)
        for found in layers
    ]
    try:
        with torch.no_grad():
            for batch in batches:
                forward(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return {name: torch.stack(values).mean(0) for name, values in seen.items() if _alike(values)}


def _alike(values: list[Tensor]) -> bool:
    return len({value.shape for value in values}) == 1 and bool(torch.stack(values).isfinite().all())


def gains(
    model: nn.Module,
    batches: Sequence[Any],
    suspects: Sequence[tuple[Found, NormTrace]],
    forward: Forward,
    loss: Loss | None,
    running: float | None,
) -> dict[str, float]:
    """What evaluation gains where one layer alone takes batch statistics, for the layers that are furthest off."""
    if running is None:
        return {}
    worst = sorted(suspects, key=lambda s: -max(s[1].mean_gap or 0.0, (s[1].var_factor or 1.0) - 1))[:_MOST]
    scores = {found.names[0]: _score(model, batches, [found], forward, loss)[0] for found, _ in worst}
    return {name: score - running for name, score in scores.items() if score is not None}


def _score(
    model: nn.Module, batches: Sequence[Any], by_batch: Sequence[Found], forward: Forward, loss: Loss | None
) -> tuple[float | None, list[Any]]:
    """The mean score, and the first batch's outputs."""
    total, weight = 0.0, 0
    outputs: list[Any] = []
    with keeping_buffers(model), evaluating(model):
        for found in by_batch:
            found.module.training = True
        for batch in batches:
            output = forward(model, batch)
            outputs = outputs or [output]
            scored = _score_of(output, targets_of(model, batch), loss)
            if scored is None:
                return None, outputs
            total, weight = total + scored[0], weight + scored[1]
    return (total / weight if weight else None), outputs


def _score_name(output: Any, target: Any, loss: Loss | None) -> str | None:
    if _classes(output, target):
        return "accuracy"
    return None if loss is None else "-loss"


def _classes(output: Any, target: Any) -> bool:
    outputs = tensors_in(output)
    return (
        bool(outputs)
        and isinstance(target, Tensor)
        and target.ndim == 1
        and not target.is_floating_point()
        and outputs[0].ndim == 2
        and outputs[0].shape[1] > 1
        and outputs[0].shape[0] == target.shape[0]
    )


def _score_of(output: Any, target: Any, loss: Loss | None) -> tuple[float, int] | None:
    if _classes(output, target):
        right = tensors_in(output)[0].argmax(1).cpu() == target.cpu()
        return float(right.sum()), len(right)
    if loss is None:
        return None
    return -float(loss(output, target)), 1
