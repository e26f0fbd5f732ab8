"""Meters: what is kept of each layer while a model runs. Small tensors on the CPU, one set a sampled pass."""

from __future__ import annotations

import functools
import math
import statistics
from collections import deque
from typing import Any

import torch
from torch import Tensor, nn

from normwise import kernels
from normwise.core.moments import Moments, pool
from normwise.core.route import without_autocast
from normwise.findings import NormFacts, NormTrace, WeightFacts, WeightTrace
from normwise.functional import real_elements
from normwise.methods import POOLS, Context
from normwise.probe.places import elements_of_layer, sizes_of
from normwise.probe.reads import Reads
from normwise.probe.spread import Calls, drowned, initial
from normwise.surgery.freeze import is_frozen
from normwise.surgery.layers import Found

# Gaps are judged over the last samples: what counts is how far off the averages are now.
_KEPT = 16
# What must not change in a layer that is meant to stay.
_FROZEN = ("running_mean", "running_var", "weight", "bias")
_AT_THE_END = (*_FROZEN, "num_batches_tracked", "num_batches_skipped")


class NormMeter:
    """Gathers what is known of one normalization layer."""

    def __init__(self, found: Found, reads: Reads) -> None:
        self.found, self._reads = found, reads
        self.calls = self.calls_now = self.samples = self.nonfinite = 0
        self.elements: int | None = None
        self.trained = False
        self._channels_near: Tensor | None = None
        self._channels_constant: Tensor | None = None
        self._var_min = self._near_min = math.inf
        self._between_calls = Calls()
        # Sampled passes with a gradient at the output, and those that a non-finite one came into or out of.
        self.heard = self.broken_before = self.broken_here = self.recomputed = 0
        self._came_broken: bool | None = None
        self._means: deque[Tensor] = deque(maxlen=_KEPT)
        self._gaps: deque[tuple[int, Tensor, Tensor]] = deque(maxlen=_KEPT)
        self._first_mean: Tensor | None = None
        self._deviation: Tensor | None = None
        self._held_before = self._held()
        self._start: dict[str, Tensor | None] = {}
        self._start_weight: tuple[float, float] | None = None
        self._start_batches: int | None = None
        self._end: tuple[Tensor | None, Tensor | None, dict[str, Tensor | None]] = None, None, {}
        tensors = [_known(found.module, name) for name in (*_FROZEN, "num_batches_tracked")]
        reads.later(self._take_start, found.layer.scale, *tensors)

    @property
    def pools_batch(self) -> bool:
        """Whether its statistics are over the batch."""
        return self.found.layer.traits.running

    def _take_start(self, scale: Tensor | None, *tensors: Tensor | None) -> None:
        *frozen, batches = tensors
        self._start = {name: None if t is None else t.flatten() for name, t in zip(_FROZEN, frozen, strict=True)}
        self._start_weight = _largest(scale)
        self._start_batches = None if batches is None else int(batches)

    def look(self, x: Tensor, kwargs: dict[str, Any], ranks: int = 1, at: int = 0) -> None:
        """Take the statistics of one input, in pass number ``at``; ``ranks`` processes share them."""
        layer, module = self.found.layer, self.found.module
        self.calls_now += 1
        if x.ndim < 2 or not x.numel() or (self.calls_now > 1 and not self.pools_batch):
            return
        cells = _cells(layer.channel_axis, layer.per_token, x, kwargs)
        statistic = self._pooled(cells)
        mean, var, elements = statistic.mean, statistic.var, torch.as_tensor(statistic.elements)
        if self.pools_batch:
            self._reads.later(self._take_call, mean, var, elements)
        if self.calls_now > 1:
            return
        self.samples += 1
        self.trained |= module.training
        N, _, spatial = sizes_of(layer, list(x.shape))
        self.elements = _least(self.elements, elements_of_layer(layer, module, N * ranks, spatial))
        counted = isinstance(cells.elements, Tensor) and self.pools_batch
        stored = [_known(module, name) if self.pools_batch else None for name in ("running_mean", "running_var")]
        take = functools.partial(self._take, at, counted)
        scale = layer.scale
        self._reads.later(take, mean, var, elements, None if scale is None else scale.flatten(), *stored)

    def _take(
        self,
        at: int,
        counted: bool,
        mean: Tensor,
        var: Tensor,
        elements: Tensor,
        weight: Tensor | None,
        *stored: Tensor | None,
    ) -> None:
        if counted:
            self.elements = _least(self.elements, int(elements.min()))
        if not (mean.isfinite().all() and var.isfinite().all()):
            self.nonfinite += 1
            return
        self._note_spread(mean, var, weight)
        if self.pools_batch:
            self._compare(mean[0], var[0], elements, at, *stored)

    def end_pass(self) -> None:
        """Close one forward pass of the model."""
        self.calls = max(self.calls, self.calls_now)
        self.calls_now = 0
        self._between_calls.end_pass()

    def hear_output(self, gradient: Tensor) -> None:
        """Note whether the gradient that comes to the layer's output is finite."""
        self.heard += 1
        self._reads.later(self._take_output, gradient.isfinite().all())

    def _take_output(self, finite: Tensor) -> None:
        self._came_broken = not finite
        self.broken_before += self._came_broken

    def hear_input(self, gradient: Tensor) -> None:
        """Note whether a finite gradient leaves the layer as one that is not."""
        self._reads.later(self._take_input, gradient.isfinite().all())

    def _take_input(self, finite: Tensor) -> None:
        self.broken_here += self._came_broken is False and not finite
        self._came_broken = None

    def take_counts(self, before: Tensor, now: Tensor) -> None:
        """Note whether the layer counted another batch since: its backward pass ran it anew."""
        self.recomputed += bool(now > before)

    def _take_call(self, mean: Tensor, var: Tensor, elements: Tensor) -> None:
        if mean.isfinite().all() and var.isfinite().all():
            self._between_calls.take(mean[0], var[0], float(elements.min()))

    def _pooled(self, cells: Moments) -> Moments:
        layer = self.found.layer
        if self.pools_batch:
            return pool(cells, 0)
        if layer.per_token:
            return cells
        rests_on = layer.traits.rests_on or "instance"
        return POOLS[rests_on](cells, Context(), layer.num_groups or 1)

    def _note_spread(self, mean: Tensor, var: Tensor, weight: Tensor | None) -> None:
        # A variance of rounding errors alone is that of a constant.
        constant = (var <= (mean.abs() * 1e-6).square()).double().mean(0)
        sunk = drowned(var, weight, self.found.layer.eps)
        near = sunk.double().mean(0)
        varying = var[sunk & (var > (mean.abs() * 1e-6).square())]
        self._near_min = min(self._near_min, float(varying.min())) if varying.numel() else self._near_min
        self._channels_constant = _minimum(self._channels_constant, constant)
        self._channels_near = _minimum(self._channels_near, near)
        self._var_min = min(self._var_min, float(var.min()))

    def _compare(self, mean: Tensor, var: Tensor, elements: Tensor, at: int, *stored: Tensor | None) -> None:
        """Batch statistics against the running ones, before these take the batch in."""
        self._means.append(mean)
        self._deviation = var.clamp_min(1e-30).sqrt()
        self._first_mean = mean if self._first_mean is None else self._first_mean
        running_mean, running_var = stored
        if running_mean is None or running_var is None:
            return
        unbiased = var * (elements / (elements - 1).clamp_min(1)).flatten()
        eps = self.found.layer.eps
        scale = running_var.flatten().clamp_min(0) + eps
        self._gaps.append((at, (mean - running_mean.flatten()) / scale.sqrt(), (unbiased + eps) / scale))

    def close(self) -> None:
        """Ask for what the layer holds now, which :meth:`trace` sums up."""
        module, layer = self.found.module, self.found.layer
        self._reads.later(self._take_end, layer.scale, layer.bias, *(_known(module, name) for name in _AT_THE_END))

    def _take_end(self, scale: Tensor | None, bias: Tensor | None, *known: Tensor | None) -> None:
        self._end = scale, bias, dict(zip(_AT_THE_END, known, strict=True))

    def trace(self, facts: NormFacts, since: int = 0, **more: Any) -> NormTrace:
        """Sum up."""
        module, (scale, bias, now) = self.found.module, self._end
        weight = _largest(scale)
        return NormTrace(
            layer=facts,
            training=module.training,
            samples=self.samples,
            calls=self.calls,
            elements=self.elements,
            near_eps=_channels(self._channels_near, facts.channels),
            constant=_channels(self._channels_constant, facts.channels),
            nonfinite=self.nonfinite,
            skipped=0 if now["num_batches_skipped"] is None else int(now["num_batches_skipped"]),
            var_min=_finite(self._var_min),
            near_min=_finite(self._near_min),
            initial=initial(scale, bias),
            broken_gradients=self.broken_here,
            heard=self.heard,
            broken_outputs=self.broken_before,
            recomputed=self.recomputed,
            **self._between_calls.apart(),
            scatter=self._scatter(),
            **self._gap(since),
            shift=self._shift(),
            weight_max=None if weight is None else _finite(weight[0]),
            weight_median=None if weight is None else _finite(weight[1]),
            weight_growth=self._growth(weight),
            **self._stillness(now),
            **self._updates(now),
            **more,
        )

    def _scatter(self) -> float | None:
        """How far batch means scatter, in standard deviations; the elements' own spread over √n where independent."""
        if len(self._means) < 2 or self._deviation is None:
            return None
        # From each to the next, so that a drift of the mean is not taken for noise.
        means = torch.stack(list(self._means))
        steps = (means[1:] - means[:-1]) / self._deviation.clamp_min(1e-12)
        return float((steps.square().mean(0) / 2).median().sqrt())

    def _gap(self, since: int) -> dict[str, Any]:
        """How far running statistics are off; what the average of k noisy batches has by chance is taken off."""
        late = [gap for gap in self._gaps if gap[0] >= since]
        if not late or is_frozen(self.found.module):
            return {}
        gaps, ratios = torch.stack([gap for _, gap, _ in late]), torch.stack([ratio for _, _, ratio in late])
        constant = self._channels_constant
        if constant is not None and constant.shape == gaps.shape[1:] and (constant < 1).any():
            # A channel without variance is a finding of its own.
            gaps, ratios = gaps[:, constant < 1], ratios[:, constant < 1]
        ratio = ratios.mean(0).clamp_min(1e-30)
        noise = gap_noise = torch.zeros_like(ratio)
        if len(late) > 1:
            gap_noise = gaps.var(0) / len(late)
            noise = ratios.var(0) / len(late) / ratio.square()
        mean_gap = float((gaps.mean(0).square() - gap_noise).mean().clamp_min(0).sqrt())
        factor = float((ratio.log().square() - noise).mean().clamp_min(0).sqrt().exp())
        return {"mean_gap": _finite(mean_gap), "var_factor": _finite(factor)}

    def _shift(self) -> float | None:
        if self._first_mean is None or self._deviation is None or len(self._means) < 2:
            return None
        moved = (self._means[-1] - self._first_mean) / self._deviation.clamp_min(1e-12)
        return _finite(float(moved.square().median().sqrt()))

    def _growth(self, weight: tuple[float, float] | None) -> float | None:
        if weight is None or self._start_weight is None or not self._start_weight[0]:
            return None
        return _finite(weight[0] / self._start_weight[0])

    def _held(self) -> bool:
        """Whether somebody means this layer to stay: a frozen one, or all its parameters without gradients."""
        own = list(self.found.module.parameters(recurse=False))
        return is_frozen(self.found.module) or (bool(own) and not any(p.requires_grad for p in own))

    def _stillness(self, tensors: dict[str, Any]) -> dict[str, Any]:
        """Whether the layer was held all the while, and what of it moved how far."""
        if not (self._held_before and self._held()):
            return {}
        # What scales and shifts a normalized value is measured by 1, means by the deviation of what they are means of.
        var = self._start["running_var"]
        highest = 1.0 if var is None or not var.numel() else float(var.max().clamp_min(0))
        scales = {"running_mean": highest**0.5, "running_var": highest}
        changes = {}
        for name, before in self._start.items():
            now = tensors[name]
            now = None if now is None else now.double().flatten()
            if before is not None and now is not None and before.shape == now.shape and before.numel():
                changes[name] = float((now - before).abs().max()) / (scales.get(name, 1.0) + 1e-12)
        what = max(changes, key=lambda name: changes[name], default=None)
        moved = None if what is None else _finite(changes[what])
        return {"held": True, "moved": moved, "moved_what": what if moved else None}

    def _updates(self, tensors: dict[str, Any]) -> dict[str, Any]:
        layer, counted = self.found.layer, tensors["num_batches_tracked"]
        if counted is None or self._start_batches is None:
            return {}
        now = int(counted)
        known: dict[str, Any] = {"updates": now - self._start_batches}
        if self._start_batches == 0 and now > 0 and layer.momentum is not None and 0 <= layer.momentum <= 1:
            known["leftover"] = (1 - layer.momentum) ** now
        return known


class WeightMeter:
    """Gathers what is known of one weighted layer."""

    def __init__(self, module: nn.Module, reads: Reads) -> None:
        self._reads = reads
        self.gradients: list[float] = []
        self._start: float | None = None
        self._size: float | None = None
        self._module = module
        reads.later(self._take_start, *_matrices(module))
        self._alive: Tensor | None = None
        self._seen = 0

    def _take_start(self, *largest: Tensor) -> None:
        self._start = max(map(float, largest), default=None)

    def close(self) -> None:
        """Ask for what the layer holds now, which :meth:`trace` sums up."""
        self._reads.later(self._take_end, *_matrices(self._module))

    def _take_end(self, *largest: Tensor) -> None:
        self._size = max(map(float, largest), default=None)

    def look(self, x: Tensor, channel_axis: int) -> None:
        """Note which channels carry anything; raw inputs of the model, which have no gradient, are not judged."""
        if not x.requires_grad or x.ndim < 2 or not x.is_floating_point():
            return
        others = tuple(i for i in range(x.ndim) if i != channel_axis % x.ndim)
        alive = (x.detach() != 0).amax(others)
        self._reads.later(functools.partial(self._take_alive, x.numel() // max(len(alive), 1)), alive)

    def _take_alive(self, seen: int, alive: Tensor) -> None:
        alive = alive != 0
        if self._alive is None or self._alive.shape == alive.shape:
            self._alive = alive if self._alive is None else self._alive | alive
            self._seen += seen

    def hear(self, gradient: Tensor) -> None:
        """Note the size of the loss's gradient at the output."""
        self._reads.later(self._take_gradient, torch.linalg.vector_norm(gradient.detach().float()))

    def _take_gradient(self, size: Tensor) -> None:
        self.gradients.append(float(size))

    def trace(self, facts: WeightFacts, **more: Any) -> WeightTrace:
        """Sum up."""
        finite = [g for g in self.gradients if math.isfinite(g)]
        growth = None if self._size is None or not self._start else self._size / self._start
        return WeightTrace(
            layer=facts,
            gradient=statistics.median(finite) if finite else None,
            inputs=0 if self._alive is None else len(self._alive),
            dead=0 if self._alive is None else int((~self._alive).sum()),
            seen=self._seen,
            weight_max=_finite(self._size),
            weight_growth=_finite(growth),
            **more,
        )


def _cells(channel_axis: int, per_token: bool, x: Tensor, kwargs: dict[str, Any]) -> Moments:
    """Moments of a layer's input: per cell (N, C), of a per-token layer per position (positions, 1)."""
    with torch.no_grad(), without_autocast(x):
        x = x.detach()
        if per_token:
            rows = x.movedim(channel_axis, -1).flatten(0, -2).float()
            var, mean = torch.var_mean(rows, -1, correction=0, keepdim=True)
            return Moments(mean, var, rows.shape[-1])
        if channel_axis == -1:
            x = x.movedim(-1, 1)
        keep = real_elements(x, kwargs.get("mask"), kwargs.get("lengths"))
        if keep is not None:
            return Moments(*kernels.reference.moments(x, keep), keep.expand_as(x).flatten(2).sum(2))
        mean, var = kernels.backend(x).moments(x)
        return Moments(mean, var, x[0, 0].numel())


def _known(module: nn.Module, name: str) -> Tensor | None:
    tensor = getattr(module, name, None)
    return tensor if isinstance(tensor, Tensor) and not torch.nn.parameter.is_lazy(tensor) else None


def _largest(scale: Tensor | None) -> tuple[float, float] | None:
    """The greatest and the median of what scales a channel."""
    if scale is None or not scale.numel():
        return None
    return float(scale.abs().max()), float(scale.abs().float().median())


def _matrices(module: nn.Module) -> list[Tensor]:
    """The greatest |weight| of each of a layer's matrices and kernels."""
    own = [p for p in module.parameters() if p.ndim >= 2 and not torch.nn.parameter.is_lazy(p) and p.numel()]
    return [p.detach().abs().max() for p in own]


def _channels(shares: Tensor | None, channels: int) -> int:
    """How many channels; a statistic that is shared by several stands for all of them."""
    return 0 if shares is None else round(float(shares.mean()) * channels)


def _minimum(old: Tensor | None, new: Tensor) -> Tensor:
    return new if old is None or old.shape != new.shape else torch.minimum(old, new)


def _least(old: int | None, new: int | None) -> int | None:
    return min((n for n in (old, new) if n is not None), default=None)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
