"""A normalization layer described, and the proof: a copy of the module is run and compared with the description."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from normwise.functional import normalize
from normwise.methods import METHODS, Method, traits_of
from normwise.parametrize._copies import deep_copy

# Hand-written layers often compute in float32 inside; a real difference in the formula is far larger.
_TOLERANCE = 1e-4


@dataclass(frozen=True, eq=False)
class NormLayer:
    """One normalization layer as surgery sees it; the tensors are the layer's own, not copies.

    ``method`` is a key of ``METHODS``, or ``"conditional"``. ``channel_axis`` is 1 or -1. ``per_token``
    layers take their statistics over the channels of each position alone (``torch.nn.LayerNorm(C)``). ``dim`` counts
    the spatial axes, ``None`` where the layer takes any. ``frozen`` layers normalize by stored statistics even in
    training, ``synced`` ones share batch statistics with other processes. ``tail`` holds the children that the layer
    applies to its result (timm's ``drop`` and ``act``), by name, in order; ``activation`` is our own fused one.
    ``problem`` says why surgery must not touch a layer that it cannot prove. The result is scaled by ``offset`` +
    ``weight`` (1 + w of Gemma, else 0 + w); ``names`` are those of weight and bias in the module. ``gate`` says what a
    second input does. ``channels`` is 0 where a layer without parameters takes any number.

    Example:
        >>> from normwise.surgery import describe
        >>> describe(torch.nn.GroupNorm(4, 8)).num_groups
        4
    """

    method: str
    channels: int
    eps: float
    momentum: float | None = 0.1
    num_groups: int | None = None
    channel_axis: int = 1
    per_token: bool = False
    dim: int | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None
    running_mean: Tensor | None = None
    running_var: Tensor | None = None
    num_batches_tracked: Tensor | None = None
    frozen: bool = False
    synced: bool = False
    tail: tuple[tuple[str, torch.nn.Module], ...] = ()
    activation: str | None = None
    problem: str | None = None
    offset: float = 0.0
    names: tuple[str, str] = ("weight", "bias")
    gate: str | None = None

    @property
    def traits(self) -> Method:
        """The method that it is of."""
        return traits_of(self.method)

    @property
    def over_tokens(self) -> bool:
        """Whether it divides each position by the deviation or root mean square of its channels."""
        return self.traits.centred is not None and not self.traits.unit_length and self.per_token

    def takes_single(self, ndim: int) -> bool:
        """Whether an input of so many axes is a sample without a batch, which torch's instance norms also take."""
        return self.dim is not None and self.traits.needs_space and ndim == self.dim + 1

    @property
    def scale(self) -> Tensor | None:
        """By what each channel is scaled, in float32 at least; ``None`` without a weight."""
        if self.weight is None or self.weight.is_meta or torch.nn.parameter.is_lazy(self.weight):
            return None
        weight = self.weight.detach()
        return weight.to(torch.promote_types(weight.dtype, torch.float32)) + self.offset

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The layer's floating-point tensors by name, those it has."""
        named = {n: getattr(self, n) for n in ("weight", "bias", "running_mean", "running_var")}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    @property
    def device(self) -> torch.device | None:
        """Where its tensors are; ``None`` where it has none."""
        return next((t.device for t in self.tensors.values()), None)

    @property
    def dtype(self) -> torch.dtype | None:
        """Of its tensors; ``None`` where it has none."""
        return next((t.dtype for t in self.tensors.values()), None)


def is_ours(module: torch.nn.Module) -> bool:
    """Whether a module's class is one of this package's."""
    return any(cls.__module__.startswith("normwise.") for cls in type(module).__mro__)


def agrees(module: torch.nn.Module, layer: NormLayer) -> bool:
    """Whether a module's output, in training and in evaluation, is what the description's formula gives.

    A copy is run in float64 on the CPU, with random parameters (a weight of 0 would agree with anything) and without
    hooks; the module itself is not touched.
    """
    try:
        twin = _twin(module)
        # Synchronized layers train on accelerators only; so only their evaluation is compared.
        modes = (False,) if layer.synced else (False, True)
        return all(_difference(twin, layer, training) < _TOLERANCE for training in modes)
    except Exception:  # whatever a foreign forward raises, it did not agree
        return False


def scales_channels(module: torch.nn.Module, channels: int) -> bool:
    """Whether a module's weight, and bias if it has one, do nothing but scale and shift each channel of its output.

    A copy is run in training on random input, with as many spatial axes as the module turns out to take.
    """
    names = [name for name in ("weight", "bias") if name in module._parameters]
    if "weight" not in names or any(getattr(module._parameters[n], "shape", None) != (channels,) for n in names):
        return False
    return any(_scales(module, names, channels, axes) for axes in (2, 1, 3, 0))


def _scales(module: torch.nn.Module, names: Sequence[str], channels: int, axes: int) -> bool:
    with contextlib.suppress(Exception), torch.no_grad(), torch.random.fork_rng(devices=[]):
        outputs = []
        twin = deep_copy(module).to("cpu").train()
        x = torch.randn(4, channels, *(5,) * axes, dtype=twin.weight.dtype)  # type: ignore[arg-type]
        values = {name: torch.rand(channels) + 0.5 for name in names}
        for plain in (True, False):
            for name in names:
                getattr(twin, name).copy_(float(name == "weight") if plain else values[name])
            torch.manual_seed(0)  # for a dropout inside
            outputs.append(twin(x.clone()))
        shape = (1, channels, *(1,) * axes)
        wanted = outputs[0] * values["weight"].reshape(shape) + values.get("bias", torch.zeros(channels)).reshape(shape)
        return bool((outputs[1] - wanted).abs().max() < _TOLERANCE * wanted.abs().max())
    return False


def unhooked(module: torch.nn.Module) -> torch.nn.Module:
    """A copy that nobody's hooks follow; gives it back."""
    for part in module.modules():
        if not isinstance(part, torch.jit.ScriptModule):
            for hooks in (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks):
                hooks.clear()
    return module


def _twin(module: torch.nn.Module) -> torch.nn.Module:
    twin = unhooked(deep_copy(module)).to("cpu", torch.float64)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name in ("weight", "bias", "running_mean", "running_var"):
            tensor = getattr(twin, name, None)
            if tensor is not None:
                values = torch.randn(tensor.shape, generator=random, dtype=tensor.dtype)
                tensor.copy_(values.square() + 0.5 if name == "running_var" else values)
    return twin


def _difference(twin: torch.nn.Module, layer: NormLayer, training: bool) -> float:
    """Greatest difference between the copy and the formula, relative to the greatest value."""
    x = _sample(layer)
    twin.eval()
    twin.training = training  # of the layer alone: a fused dropout stays off
    with torch.no_grad():
        wanted = _formula(x, twin, layer, training)
        for name, _ in layer.tail:
            wanted = twin.get_submodule(name)(wanted)
        before = None if layer.running_mean is None else twin.running_mean.clone()  # type: ignore[operator]
        got = twin.forward(x.clone())
        if layer.frozen and not torch.equal(before, twin.running_mean):  # type: ignore[arg-type]
            return float("inf")
    if got.shape != wanted.shape:
        return float("inf")
    return float((got - wanted).abs().max() / wanted.abs().max())


def _sample(layer: NormLayer) -> Tensor:
    """Random input of the layer's kind; small enough that eps shows in the result."""
    spatial = (5, 7, 3)[: 2 if layer.dim is None else layer.dim]
    shape = (3, layer.channels, *spatial) if layer.channel_axis == 1 else (3, 5, layer.channels)
    return 0.03 * torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.01


def _formula(x: Tensor, twin: torch.nn.Module, layer: NormLayer, training: bool) -> Tensor:
    weight, bias = (getattr(twin, name, None) for name in ("weight", "bias"))
    stored = layer.running_mean is not None and (layer.frozen or not training)
    options = {n: getattr(twin, n) for n in ("over", "variance") if hasattr(twin, n)}
    options |= {"num_groups": layer.num_groups or 1, "per_token": layer.per_token, "offset": layer.offset}
    method, _ = METHODS[layer.method].taking(options)
    learned = {n: getattr(twin, n) for n in method.learned}
    return normalize(
        x,
        method,
        axis=layer.channel_axis,
        weight=weight,
        bias=bias,
        eps=layer.eps,
        running_mean=twin.running_mean if stored else None,  # type: ignore[arg-type]
        running_var=twin.running_var if stored else None,  # type: ignore[arg-type]
        use_running=stored,
        activation=layer.activation,
        **learned,
    )
