"""Internal covariate shift, as its authors mean it and as Santurkar et al. measure it, for one step on one batch."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from normwise.kernels.reference import widened
from normwise.nn._convolutions import CONVOLUTIONS
from normwise.probe.reads import Reads
from normwise.surgery.running import tensors_in

# Layers at which the gradient is taken again: one forward and backward pass each.
_MOST = 12
# Of fewer values a standard deviation says too little to measure by.
_ROWS = 16
# Without an optimizer a step is taken that moves all parameters by this share of their length.
_RELATIVE = 1e-3

Found = dict[str, float | None]


def measure_shifts(
    loss: Callable[[], Tensor], layers: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer | None = None
) -> dict[str, Found]:
    """Take one gradient step, layer by layer, and see what it does to the layers behind; then take it back.

    Santurkar et al. 2018 (arXiv 1805.11604, definition 2.1): for layer i the gradient of its parameters at the current
    point, G, against that after all layers before i have made their step, G′; ``cosine`` is that of the angle between
    them, ``change`` ‖G − G′‖ / ‖G‖. Ioffe & Szegedy 2015 (arXiv 1502.03167): the change of the distribution of a
    layer's output by the step of all layers, on the same batch: ``moved_mean`` and ``moved_std`` in standard deviations
    of each channel before, root mean squares over channels.

    The step is the optimizer's own, with its state as it is, taken by a copy of it; one that cannot be copied or wants
    a closure is as good as none.

    Args:
        loss: runs the model on the batch and gives the scalar loss; called once for every measured layer and twice
            more.
        layers: the weighted layers by name, in the order in which they run.
        optimizer: takes the step, on a copy; without one the step is 0.1 % as long as the parameters.

    Returns:
        For every layer ``cosine``, ``change``, ``moved_mean``, ``moved_std``; the first two for up to 12 layers
        evenly spread over the depth, the first excepted, before which there is nothing.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        >>> x = torch.ones(4, 2) + torch.eye(4)[:, :2]
        >>> found = measure_shifts(lambda: model(x).square().mean(), {"0": model[0], "1": model[1]})
        >>> round(found["1"]["cosine"], 3)
        1.0
    """
    owned = {name: _own(module) for name, module in layers.items()}
    parameters = list({id(p): p for own in owned.values() for p in own}.values())
    if not parameters:
        return {}
    with _outputs(layers) as before:
        gradients = _gradients(loss(), parameters)
    step = _step(parameters, gradients, optimizer)
    found: dict[str, Found] = {name: {} for name in layers}
    measured = _spread([name for name in list(layers)[1:] if owned[name]])
    reads = Reads()
    with _restored(parameters):
        taken: set[int] = set()
        for name in layers:
            if name in measured:
                again = _gradients(loss(), owned[name])
                old = [gradients[id(p)] for p in owned[name]]
                reads.later(partial(_compared, found[name]), *_products(old, [again[id(p)] for p in owned[name]]))
            _take(owned[name], step, taken)
        with _outputs(layers) as after, torch.no_grad():
            loss()
    for name in before.keys() & after.keys():
        if before[name][0].shape == after[name][0].shape:
            reads.later(partial(_moved, found[name]), *before[name], *after[name])
    reads.read()
    return found


def _own(module: nn.Module) -> list[Tensor]:
    return [p for p in module.parameters() if p.requires_grad]


def _gradients(loss: Tensor, parameters: list[Tensor]) -> dict[int, Tensor]:
    got = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {id(p): torch.zeros_like(p) if g is None else g for p, g in zip(parameters, got, strict=True)}


def _step(
    parameters: list[Tensor], gradients: Mapping[int, Tensor], optimizer: torch.optim.Optimizer | None
) -> dict[int, Tensor]:
    own = None if optimizer is None else own_step(parameters, gradients, optimizer)
    if own is not None:
        return own
    length = torch.stack([gradients[id(p)].float().norm() for p in parameters]).norm()
    size = torch.stack([p.detach().float().norm() for p in parameters]).norm()
    lr = float(_RELATIVE * size / length) if length > 0 else 0.0
    return {key: lr * gradient for key, gradient in gradients.items()}


def own_step(
    parameters: list[Tensor], gradients: Mapping[int, Tensor], optimizer: torch.optim.Optimizer
) -> dict[int, Tensor] | None:
    """What an optimizer's next step subtracts from each parameter, found on a copy of the optimizer and its state."""
    try:
        twin = copy.deepcopy(optimizer)
        # Deep copies keep groups and state only, and subclasses may have more.
        twin.__dict__.update({k: v for k, v in vars(optimizer).items() if k not in vars(twin) and k != "step"})
        pairs = [
            (old, new)
            for groups in zip(optimizer.param_groups, twin.param_groups, strict=True)
            for old, new in zip(groups[0]["params"], groups[1]["params"], strict=True)
        ]
        for old, new in pairs:
            gradient = gradients.get(id(old))
            new.grad = None if gradient is None else gradient.detach().clone().to(new.dtype)
        with torch.no_grad():
            before = {id(old): new.detach().clone() for old, new in pairs}
            twin.step()
            steps = {id(old): before[id(old)] - new.detach() for old, new in pairs}
    except Exception:  # whatever a foreign optimizer does not bear: then its step is not known
        return None
    return {id(p): steps.get(id(p), torch.zeros_like(p)) for p in parameters}


def _spread(names: list[str]) -> set[str]:
    if len(names) <= _MOST:
        return set(names)
    return {names[round(i * (len(names) - 1) / (_MOST - 1))] for i in range(_MOST)}


def _take(parameters: list[Tensor], step: Mapping[int, Tensor], taken: set[int]) -> None:
    with torch.no_grad():
        for p in parameters:
            if id(p) not in taken:
                taken.add(id(p))
                p.sub_(step[id(p)])


@contextmanager
def _restored(parameters: list[Tensor]) -> Iterator[None]:
    kept = [p.detach().clone() for p in parameters]
    try:
        yield
    finally:
        with torch.no_grad():
            for p, value in zip(parameters, kept, strict=True):
                p.copy_(value)


@contextmanager
def _outputs(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Mean and standard deviation per channel of each layer's first output."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    handles = []

    def hook(name: str, axis: int) -> Callable[..., None]:
        def note(_: nn.Module, args: tuple, output: object) -> None:
            made = tensors_in(output)
            if made and name not in seen and made[0].ndim > 1:
                rows = widened(made[0].detach()).movedim(axis, -1).flatten(0, -2)
                if len(rows) < _ROWS:
                    return
                std, mean = torch.std_mean(rows, 0, correction=0)
                seen[name] = (mean, std)

        return note

    try:
        for name, module in layers.items():
            axis = 1 if isinstance(module, CONVOLUTIONS) else -1
            handles.append(module.register_forward_hook(hook(name, axis)))
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _products(old: list[Tensor], new: list[Tensor]) -> list[Tensor]:
    a, b = (torch.cat([widened(g.detach()).flatten() for g in gradients]) for gradients in (old, new))
    return [a.norm(), b.norm(), a @ b, (a - b).norm()]


def _compared(found: Found, *products: Tensor) -> None:
    size, other, product, change = map(float, products)
    if size and other and math.isfinite(size) and math.isfinite(other):
        found |= {"cosine": product / (size * other), "change": change / size}


def _moved(found: Found, mean: Tensor, std: Tensor, mean_after: Tensor, std_after: Tensor) -> None:
    alive = std > 1e-12
    for name, moved in (("moved_mean", mean_after - mean), ("moved_std", std_after - std)):
        if alive.any():
            value = float((moved[alive] / std[alive]).square().mean().sqrt())
            found[name] = value if value < float("inf") else None
