"""What a module computes, read from its outputs alone: which values share a statistic, what scales them, and eps.

A copy runs on random tokens of different sizes. A normalizer's output is, per channel, one scale and one shift of the
normalized input: so least squares over the tokens, with each way to normalize in turn, tell which one it is. Runs with
other parameters tell which of them is the scale (as it is, or as an offset from 1) and which the shift; small inputs
tell eps. Names of classes, attributes and arguments play no part.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from itertools import permutations
from typing import NamedTuple

import torch
from torch import Tensor

from normwise.methods import L2, METHODS, RMS, Group
from normwise.parametrize._copies import deep_copy
from normwise.surgery.description import NormLayer, unhooked
from normwise.surgery.roles import explained, is_length
from normwise.surgery.ways import Fit, Way, broadcast, explain, gatings, named, per_channel

# Of the largest output. Norms compute in float32 at least, whatever comes; a real difference is far larger.
_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4}
# Sizes of inputs by which eps shows.
_SMALL = (1e-1, 1e-2, 1e-3, 1e-4, 1e-6)
# Channels of a module that does not say how many it takes.
_ANY = 12
# The most that is tried as numbers per head and channel, and as channels that an attribute tells of.
_GRID, _MOST = 1 << 16, 1 << 13


def read(module: torch.nn.Module) -> NormLayer | None:
    """Describe a module by what it does to random input; ``None`` where it does not normalize."""
    try:
        own = _tensors(module)
        if own is None or not _may_run(module):
            return None
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            for device, dtype in _places(own):
                found, ran = _read_at(module, own, device, dtype)
                if found is not None or ran:
                    return found
    except Exception:  # whatever a foreign module raises, it is not understood
        return None
    return None


def passes_through(module: torch.nn.Module) -> bool:
    """Whether a module hands on what it is given, as an identity does."""
    x = torch.randn(2, 3, 4)
    with contextlib.suppress(Exception), torch.no_grad(), torch.random.fork_rng(devices=[]):
        twin = unhooked(deep_copy(module)).to("cpu", torch.float32)
        twin.training = False
        return bool(torch.equal(twin.forward(x.clone()), x))
    return False


def _tensors(module: torch.nn.Module) -> dict[str, Tensor] | None:
    """The vectors and numbers of a module by name; ``None`` where it holds more than a norm does."""
    if any(True for child in module.children() for _ in (*child.parameters(), *child.buffers())):
        return None
    own = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
    floats = {name: tensor for name, tensor in own.items() if tensor.is_floating_point()}
    if any(t.is_meta or torch.nn.parameter.is_lazy(t) or t.ndim > 4 or not t.numel() for t in floats.values()):
        return None
    # One number per channel, or per head and channel: beyond that a module mixes.
    if any(sum(size > 1 for size in t.shape) > 1 + (t.numel() <= _GRID) for t in floats.values()):
        return None
    return floats


def _may_run(module: torch.nn.Module) -> bool:
    scripted = isinstance(module, torch.jit.ScriptModule)
    return scripted or (type(module).forward is not torch.nn.Module.forward and bool(_arities(module)))


def _arities(module: torch.nn.Module) -> list[int]:
    """With how many tensors it may be called: alone, or where it has parameters with a gate or residual beside."""
    if isinstance(module, torch.jit.ScriptModule):
        return [1]
    try:
        known = list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError):
        return [1]
    places = [p for p in known if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = sum(p.default is p.empty for p in places)
    open_ended = any(p.kind is p.VAR_POSITIONAL for p in known)
    most = 2 if any(True for _ in module.parameters()) else 1
    return [n for n in range(1, most + 1) if needed <= n and (n <= len(places) or open_ended)]


def _places(own: dict[str, Tensor]) -> list[tuple[torch.device, torch.dtype]]:
    """Where and in what type to run a copy: a fused kernel takes only the types and devices that it was written for."""
    cpu = torch.device("cpu")
    places = [(cpu, torch.float64), (cpu, torch.float32)]
    home = next(((t.device, t.dtype) for t in own.values()), None)
    return places if home is None or home in places else [*places, home]


def _read_at(
    module: torch.nn.Module, own: dict[str, Tensor], device: torch.device, dtype: torch.dtype
) -> tuple[NormLayer | None, bool]:
    """What is read of copies in one place, and whether they ran at all."""
    trial = _Trial(module, own, device, dtype)
    found: NormLayer | None = None
    for arity in _arities(module):
        for shape, axes in trial.shapes():
            y = trial.run(shape, arity)
            if y is None:
                continue
            trial.ran = True
            layer = trial.elementwise(shape) if arity == 1 else None
            if layer is None and trial.forgets_size(shape, arity):
                layer = trial.normalizer(shape, axes, arity)
            if layer is not None:
                # What may be given beside the input, too, is part of what the layer computes.
                found = layer
                break
    return found, trial.ran


class _Trial:
    """Copies of one module with random parameters, run on random input."""

    def __init__(
        self, module: torch.nn.Module, own: dict[str, Tensor], device: torch.device, dtype: torch.dtype
    ) -> None:
        self.module, self.own, self.device, self.dtype = module, own, device, dtype
        self.ran = self._grid = False
        self._tolerance = _TOLERANCE.get(dtype, 0.03)
        self._random = torch.Generator().manual_seed(0)
        self._twin = unhooked(deep_copy(module)).to(device, dtype)
        self._known = [v for v in vars(module).values() if isinstance(v, int | tuple | torch.Size)]
        self._changeable = [n for n, t in own.items() if n in dict(module.named_parameters()) or t.numel() > 1]
        self._randomize()

    def shapes(self) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
        """Input shapes that may suit, each with the axes that may hold the channels."""
        grids = [tuple(s for s in t.shape if s > 1) for t in self.own.values()]
        if any(len(grid) == 2 for grid in grids):
            self._grid = True
            yield (2, 4, *next(grid for grid in grids if len(grid) == 2)), (-1,)
            return
        sizes = {grid[0] for grid in grids if grid}
        if len(sizes) > 1:
            return
        numbers = {n for v in self._known for n in (v if isinstance(v, tuple) else (v,)) if isinstance(n, int)}
        told = sorted((n for n in numbers if not isinstance(n, bool) and 2 <= n <= _MOST), reverse=True)
        for size in [*sizes] or [*told[:3], _ANY]:
            both = (-1, 1) if not sizes else (-1,)
            yield (3, 8, size), both
            yield (3, size, 4, 2), (1,)
            yield (3, size, 8), (1,)
            yield (24, size), (-1,)
            yield (3, 4, 2, size), (-1,)

    def run(self, shape: tuple[int, ...], arity: int) -> Tensor | None:
        """One output; ``None`` where the module does not take such input, or gives something else."""
        with contextlib.suppress(Exception):
            y = self._output(self._input(shape), arity)
            return y if isinstance(y, Tensor) and y.shape == shape and bool(y.isfinite().all()) else None
        return None

    def forgets_size(self, shape: tuple[int, ...], arity: int) -> bool:
        """Whether an input of twice the size gives the same, as it does wherever a statistic is divided by."""
        x = self._input(shape)
        beside = [self._gate(shape)] * (arity - 1)
        y = self._twin.forward(x.clone(), *beside)
        limit = max(10 * self._tolerance, 1e-3) * float(y.abs().max())
        doubled = [beside] + [[2 * gate for gate in beside]] * (arity - 1)
        return any(float((self._twin.forward(2 * x, *more) - y).abs().max()) <= limit for more in doubled)

    def elementwise(self, shape: tuple[int, ...]) -> NormLayer | None:
        """Read it as a squashing function of each element by itself: DyT or Derf."""
        x = self._input(shape, size=1.0)
        y = self._output(x, 1)
        numbers = [getattr(self._twin, name) for name, t in self.own.items() if t.numel() == 1]
        way = Way("token", -1, 1, False)
        curves = [(method, method.curve) for method in METHODS.values() if method.curve is not None]
        for method, curve in curves:
            for given in permutations([*numbers, x.new_zeros(())], len(method.learned)):
                inner = curve(x, **dict(zip(method.learned, given, strict=True)))
                fit = Fit(way, *per_channel(inner.double(), y.double(), way))
                if fit.error < self._tolerance and bool((fit.scale.abs() > 1e-6).any()):
                    learned = {n: t for n, t in self.own.items() if t.numel() > 1}
                    names = self._roles([fit], learned)
                    return self._layer(method.name, shape, -1, 0.0, names, learned, per_token=True)
        return None

    def normalizer(self, shape: tuple[int, ...], axes: tuple[int, ...], arity: int) -> NormLayer | None:
        """Read it as a division by a statistic of several values."""
        x, gate = self._input(shape), self._gate(shape) if arity == 2 else None
        y = self._output(x, arity).double()
        for gating, inner, outer in gatings(x.double(), gate):
            for way in self._ways(shape, axes):
                fit = explain(way, inner, y, outer)
                if fit.error < self._tolerance:
                    return self._proven(way, gating, shape, arity)
        return None

    def _ways(self, shape: tuple[int, ...], axes: tuple[int, ...]) -> Iterator[Way]:
        if self._grid:
            yield from (Way("token", -1, 1, centred, grid=True) for centred in (True, False))
            return
        for axis in axes:
            channels = shape[axis]
            numbers = {n for n in self._known if isinstance(n, int) and not isinstance(n, bool) and 1 < n < channels}
            groups = sorted({n for k in numbers if channels % k == 0 for n in (k, channels // k)})
            for centred in (True, False):
                yield Way("token", axis, 1, centred)
                if len(shape) > 2:
                    yield from (Way("sample", axis, n, centred) for n in (1, channels))
                    yield from (Way("sample", axis, n, centred) for n in groups)
                yield from (Way("token", axis, n, centred) for n in groups)
                yield Way("batch", axis, channels, centred)

    def _proven(self, way: Way, gating: str, shape: tuple[int, ...], arity: int) -> NormLayer | None:
        """Look at more runs: with other parameters, with small inputs, in training."""
        learned = {name: t for name, t in self.own.items() if name in self._changeable}
        fits, values = [], []
        for _ in range(3):
            values.append(self._randomize())
            fits.append(self._fit_again(way, gating, shape, arity))
        # A scale that changes with the input's size is no parameter: what looks like a batch norm may only scale.
        fits.append(self._fit_again(way, gating, shape, arity, 37.0))
        values.append(values[-1])
        apart = (fits[-1].scale - fits[-2].scale).abs().max() / fits[-1].scale.abs().max()
        if max(fit.error for fit in fits) > self._tolerance or apart > 10 * self._tolerance:
            return None
        names = self._roles(fits, learned, values)
        eps, how = self._eps(way, gating, shape, arity, fits[-1])
        self._twin.training = True
        in_training = self._fit_again(way, gating, shape, arity)
        differs = "it computes something else in training" if in_training.error > self._tolerance else None
        method, pool_problem = named(way, shape)
        gated = None if gating == "" else f"it takes a second input ({gating})"
        return self._layer(
            *(method, shape, way.axis, eps, names, learned),
            per_token=way.pool == "token",
            groups=None if method != Group.name and not (way.pool == "token" and way.groups > 1) else way.groups,
            gate=gating or None,
            problem=gated or pool_problem or names.problem or how or differs,
        )

    def _fit_again(self, way: Way, gating: str, shape: tuple[int, ...], arity: int, size: float = 100.0) -> Fit:
        x, gate = self._input(shape, size), self._gate(shape) if arity == 2 else None
        y = self._output(x, arity).double()
        inner, outer = next((inner, outer) for name, inner, outer in gatings(x.double(), gate) if name == gating)
        return explain(way, inner, y, outer)

    def _eps(self, way: Way, gating: str, shape: tuple[int, ...], arity: int, fit: Fit) -> tuple[float, str | None]:
        """What is added under the root, and a word on it where it enters elsewhere."""
        stated = small_number(self.module)
        if self.dtype not in _TOLERANCE or gating:
            return stated, None
        seen = [self._divisor(way, shape, arity, fit, size) for size in _SMALL]
        for power, told in ((2, None), (1, "its eps is added to the deviation, not to the variance")):
            # What is divided by, to this power, is that of the input plus eps.
            plain = [deviation**power for deviation, _ in seen]
            whole = [divisor**power for _, divisor in seen]
            eps = max(float((whole[-1] - plain[-1]).median()), 0.0)
            eps = stated if stated and abs(eps - stated) < 0.02 * stated else float(f"{eps:.3g}")
            if all(bool(((a + eps - b).abs() <= 2e-3 * b).all()) for a, b in zip(plain, whole, strict=True)):
                return (0.0 if eps < 1e-20 else eps), told
        return stated, "its eps enters in a way of its own"

    def _divisor(self, way: Way, shape: tuple[int, ...], arity: int, fit: Fit, size: float) -> tuple[Tensor, Tensor]:
        """The deviation of small values that share a statistic, and what they are divided by."""
        x = self._input(shape, size)
        scale, shift = (broadcast(t, x, way) for t in (fit.scale, fit.shift))
        # Of zeros nothing is left but the shift, without the rounding of a fit.
        nothing = self._twin.forward(torch.zeros_like(x)).double()
        shift = torch.where(nothing.isfinite(), nothing, shift)
        z = (self._output(x, arity).double() - shift) / scale
        parts, outputs = way.split(x.double()), way._replace(centred=False).split(z)
        dims = way.dims(parts)
        squares = parts.square()
        gain = (outputs * parts).sum(dims) / squares.sum(dims)
        return squares.mean(dims).sqrt(), 1 / gain

    def _roles(
        self, fits: list[Fit], learned: dict[str, Tensor], values: list[dict[str, Tensor]] | None = None
    ) -> _Roles:
        """Which parameter is the scale, as it is or as an offset, and which the shift."""
        values = values or [self._values()]
        scale = explained([fit.scale for fit in fits], learned, values, self._tolerance)
        shift = explained([fit.shift for fit in fits], learned, values, self._tolerance)
        problem = None
        if scale is None or shift is None:
            problem = f"its scale or shift is computed from {', '.join(learned)} in a way of its own"
        elif shift.offset or (shift.name and abs(shift.factor - 1) > 1e-3):
            problem = "its shift is no parameter of its own"
        elif scale.name and abs(scale.factor - 1) > 1e-3:
            problem = f"its scale is {scale.factor:.3g} times {scale.name}"
        elif not scale.name and abs(scale.offset - 1) > 1e-3:
            problem = f"its output is {scale.offset:.3g} times the normalized input"
        return _Roles(
            scale.name if scale else None,
            shift.name if shift else None,
            float(scale.offset) if scale and scale.name else 0.0,
            problem,
            bool(scale) and is_length(scale, fits[0].scale.shape[-1]),  # type: ignore[arg-type]
        )

    def _layer(
        self,
        method: str,
        shape: tuple[int, ...],
        axis: int,
        eps: float,
        names: _Roles,
        learned: dict[str, Tensor],
        *,
        per_token: bool,
        groups: int | None = None,
        gate: str | None = None,
        problem: str | None = None,
    ) -> NormLayer:
        vectors = [t for t in learned.values() if t.numel() > 1]
        # A shape among its attributes says so; else it shows in whether it takes another size, too.
        other = tuple(n + (i == axis % len(shape)) for i, n in enumerate(shape))
        known = bool(vectors) or (shape[axis],) in self._known or self.run(other, 1 if gate is None else 2) is None
        several = [t for t in vectors if sum(size > 1 for size in t.shape) > 1]
        if several:
            problem = problem or f"its weight has one entry per element of {tuple(several[0].shape)}"
        if isinstance(self.module, torch.jit.ScriptModule):
            problem = problem or "it is scripted: take the module that it was scripted from"
        return NormLayer(
            L2.name if names.unit_length and method == RMS.name else method,
            shape[axis] if known else 0,
            eps,
            num_groups=groups,
            channel_axis=axis,
            per_token=per_token,
            dim=None,
            weight=getattr(self.module, names.scale) if names.scale else None,
            bias=getattr(self.module, names.shift) if names.shift else None,
            problem=problem or names.problem,
            offset=round(names.offset, 6),
            names=(names.scale or "weight", names.shift or "bias"),
            gate=gate,
        )

    def _randomize(self) -> dict[str, Tensor]:
        """Other parameters, far from 0 and from each other; gives them by name."""
        for name in self._changeable:
            tensor = getattr(self._twin, name)
            tensor.copy_(torch.rand(tensor.shape, generator=self._random, dtype=torch.float64) + 0.5)
        return self._values()

    def _values(self) -> dict[str, Tensor]:
        return {name: getattr(self._twin, name).detach().double().cpu().clone() for name in self._changeable}

    def _input(self, shape: tuple[int, ...], size: float = 100.0) -> Tensor:
        """Tokens of different sizes, whose means are not 0; large, so that eps plays no part."""
        kinds = torch.randn(shape, generator=self._random, dtype=torch.float64)
        kinds = kinds + 0.3 * torch.randn((*shape[:2], *(1,) * (len(shape) - 2)), generator=self._random)
        factors = 0.5 + torch.rand(shape[0], *(1,) * (len(shape) - 1), generator=self._random, dtype=torch.float64)
        if len(shape) > 2:
            factors = factors * (0.5 + torch.rand(1, *shape[1:-1], 1, generator=self._random, dtype=torch.float64))
        return (size * factors * (kinds + 0.2)).to(self.device, self.dtype)

    def _gate(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(
            self.device, self.dtype
        )

    def _output(self, x: Tensor, arity: int) -> Tensor:
        return self._twin.forward(x.clone(), *((self._gate(tuple(x.shape)),) if arity == 2 else ()))


class _Roles(NamedTuple):
    """The names of scale and shift, what is added to the scale, why they are not plain, and whether lengths are 1."""

    scale: str | None
    shift: str | None
    offset: float
    problem: str | None
    unit_length: bool


def small_number(module: torch.nn.Module) -> float:
    """The one small number among a module's attributes."""
    small = [v for v in vars(module).values() if isinstance(v, float) and 0 < v < 0.05]
    return small[0] if small else 0.0
