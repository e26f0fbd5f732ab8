"""Re-fit the affine of converted layers in closed form, so that each gives per channel what the old one gave.

For a channel let z be the new layer's output without its affine and y the old layer's output, both before a fused
activation. Least squares of weight · z + bias against y are weight = cov(z, y) / var(z), bias = E[y] − weight · E[z].
Layers are taken in the order in which they run, each on what the layers already fitted before it really give.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from normwise.kernels.reference import widened
from normwise.surgery.description import is_ours, scales_channels
from normwise.surgery.exchange import Exchange, Pair
from normwise.surgery.layouts import core
from normwise.surgery.population import Population, cells_of
from normwise.surgery.running import Forward, Left, hooked


class _Reached(BaseException):  # ends a forward pass early; no Exception, so that no model catches it
    """The layer that was wanted has run."""


class Fit:
    """Sums for the least squares of each channel, merged batch by batch about their means in float64."""

    def __init__(self) -> None:
        self._count = 0
        self._mean_z = self._mean_y = self._zz = self._zy = self._yy = torch.zeros((), dtype=torch.float64)

    def add(self, z: Tensor, y: Tensor, axis: int) -> None:
        """Take in a batch of both, the channels along ``axis``."""
        z, y = (widened(t.detach()).movedim(axis, 0).flatten(1) for t in (z, y))
        count = z.shape[1]
        if not count:
            return
        mean_z, mean_y = z.mean(1), y.mean(1)
        z, y = z - mean_z[:, None], y - mean_y[:, None]
        total = self._count + count
        share, gap_z, gap_y = count / total, mean_z - self._mean_z, mean_y - self._mean_y
        self._zz = self._zz + (z * z).sum(1) + gap_z * gap_z * self._count * share
        self._yy = self._yy + (y * y).sum(1) + gap_y * gap_y * self._count * share
        self._zy = self._zy + (z * y).sum(1) + gap_z * gap_y * self._count * share
        self._mean_z, self._mean_y = self._mean_z + gap_z * share, self._mean_y + gap_y * share
        self._count = total

    def weight_and_bias(self, otherwise: Tensor) -> tuple[Tensor, Tensor]:
        """The solution; a channel that never varied keeps the weight ``otherwise``."""
        varies = self._zz > 1e-12 * self._count
        weight = torch.where(varies, self._zy / self._zz.clamp_min(1e-300), widened(otherwise))
        return weight, self._mean_y - weight * self._mean_z

    @property
    def residual(self) -> float:
        """What the solution leaves of the squares of y."""
        explained = torch.where(self._zz > 0, self._zy.square() / self._zz.clamp_min(1e-300), 0.0)
        return float((self._yy - explained).sum())

    @property
    def empty(self) -> bool:
        """Whether nothing was seen."""
        return self._count == 0


def refit(exchange: Exchange, batches: Iterable[Any], forward: Forward) -> list[Left]:
    """Fit the affine of every new layer, and the running statistics of those that had none to carry."""
    first = next(iter(batches))
    calls = _calls(exchange, lambda model: forward(model, first))
    pairs = {pair.name: pair for pair in exchange.pairs}
    broken = []
    for name, count in calls.items():
        new = core(pairs[name].new)
        if not (is_ours(new) or scales_channels(new, pairs[name].found.layer.channels)):
            broken.append(Left(name, "has no weight that only scales each channel: there was nothing to re-fit"))
        elif not _fit_layer(exchange, pairs[name], batches, forward, count):
            what = "gave values that are not finite on calibrate_with: its weight and bias were not re-fitted"
            broken.append(Left(name, what))
    return broken + [Left(name, "did not run on calibrate_with") for name in pairs if name not in calls]


def _calls(exchange: Exchange, run: Callable[[torch.nn.Module], Any]) -> dict[str, int]:
    """How often each layer runs in a forward pass, in the order in which they do."""
    calls: dict[str, int] = {}

    def count(name: str, *_: Any) -> None:
        calls[name] = calls.get(name, 0) + 1

    with hooked(((pair.new, partial(count, pair.name)) for pair in exchange.pairs), before=True):
        run(exchange.model)
    return calls


def _fit_layer(exchange: Exchange, pair: Pair, batches: Iterable[Any], forward: Forward, calls: int) -> bool:
    """Fit one layer; whether there was something to fit it to."""
    if pair.found.layer.running_mean is None and core(pair.new)._buffers.get("running_mean") is not None:
        _measure_statistics(exchange, pair, batches, forward, calls)
    _fit_curve(exchange, pair, batches, forward, calls)
    fit = Fit()
    for batch in batches:
        exchange.put_old()
        wanted = _outputs_of(pair.old, calls, partial(forward, exchange.model, batch))
        exchange.put_new()
        given = _outputs_of(pair.new, calls, partial(forward, exchange.model, batch), unit=True)
        for z, y in zip(given, wanted, strict=False):
            fit.add(z, y, pair.found.layer.channel_axis)
    if fit.empty:
        return True
    new: Any = core(pair.new)
    weight, bias = fit.weight_and_bias(new.weight)
    if not bool(weight.isfinite().all() and bias.isfinite().all()):
        return False
    _set_affine(new, weight, bias)
    return True


# Where the steepness of a curve is looked for, times the input's own size.
_STEEPNESS = torch.logspace(-1.5, 1, 21)


def _fit_curve(exchange: Exchange, pair: Pair, batches: Iterable[Any], forward: Forward, calls: int) -> None:
    """Start the steepness of a curve of each element (DyT, Derf) where it follows the old layer best."""
    alpha = getattr(core(pair.new), "alpha", None)
    if not is_ours(pair.new) or not isinstance(alpha, Parameter):
        return
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []

    def look(module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        inputs.append(args[0].detach().clone())

    for batch in batches:
        exchange.put_old()
        outputs += _outputs_of(pair.old, calls, partial(forward, exchange.model, batch))
        exchange.put_new()
        with hooked([(pair.new, look)], before=True):
            _outputs_of(pair.new, calls, partial(forward, exchange.model, batch))
    size = torch.stack([x.double().square().mean() for x in inputs]).mean().sqrt() if inputs else torch.zeros(())
    if not (size.isfinite() and size > 0):
        return
    residuals = []
    with torch.no_grad(), bare(pair.new, unit=True):
        for steepness in (_STEEPNESS / size.cpu()).tolist():
            alpha.fill_(steepness)
            fit = Fit()
            for x, y in zip(inputs, outputs, strict=False):
                fit.add(pair.new.forward(x), y, pair.found.layer.channel_axis)
            residuals.append((fit.residual, steepness))
        alpha.fill_(min(residuals)[1])


def _measure_statistics(exchange: Exchange, pair: Pair, batches: Iterable[Any], forward: Forward, calls: int) -> None:
    """Running statistics of the new layer's input, of all batches together."""
    seen = Population(pair.found.layer.channels)

    def look(module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        seen.add(cells_of(pair.found.layer, module, args[0], kwargs.get("mask"), kwargs.get("lengths")))

    for batch in batches:
        with hooked([(pair.new, look)], before=True):
            _outputs_of(pair.new, calls, partial(forward, exchange.model, batch))
    if seen.enough:
        new: Any = core(pair.new)
        new.running_mean.copy_(seen.mean)
        new.running_var.copy_(seen.var)
        if new.num_batches_tracked is not None:
            new.num_batches_tracked.fill_(seen.batches)


def _set_affine(layer: Any, weight: Tensor, bias: Tensor) -> None:
    with torch.no_grad():
        layer.weight.copy_(weight)
        if layer.bias is not None:
            layer.bias.copy_(bias)


def _outputs_of(layer: torch.nn.Module, calls: int, run: Callable[[], Any], unit: bool = False) -> list[Tensor]:
    """The layer's outputs before its activation, without its affine if ``unit``; the run ends with its last call."""
    outputs: list[Tensor] = []

    def hook(module: torch.nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
        with bare(module, unit):
            outputs.append(module.forward(*args, **kwargs).clone())
        if len(outputs) == calls:
            raise _Reached

    with suppress(_Reached), hooked([(layer, hook)]):
        run()
    return outputs


@contextmanager
def bare(layer: torch.nn.Module, unit: bool = False) -> Iterator[None]:
    """A layer without what follows the normalization, and with ``unit`` without weight and bias, for a while."""
    with ExitStack() as stack:
        inner = core(layer)
        # The children of a layer of one's own are its own affair.
        if not unit or is_ours(layer):
            children = {name: module for name, module in layer._modules.items() if module is not inner}
            stack.callback(layer._modules.update, children)
            layer._modules.update({name: torch.nn.Identity() for name in children})
        if getattr(layer, "activation", None) is not None:
            stack.callback(setattr, layer, "activation", layer.activation)
            layer.activation = None  # type: ignore[assignment]
        if unit:
            own = {n: p for n in ("weight", "bias") if (p := inner._parameters.get(n)) is not None}
            stack.callback(inner._parameters.update, own)
            neutral = {n: Parameter(torch.full_like(p, float(n == "weight")), p.requires_grad) for n, p in own.items()}
            inner._parameters.update(dict.fromkeys(own) if is_ours(inner) else neutral)
        yield
