"""Layer norm turned into RMS norm without changing what a network computes.

LayerNorm(x) = RMSNorm(x − mean x). So where everything that is written to the residual stream has a mean of 0 over the
channels, both are the same; and the mean can be taken off the weights of the layers that write (Ashkboos et al. 2024,
arXiv 2401.15024). Who writes is read from one run, and the result is compared with the network's on the same data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from normwise.errors import InputError, NormwiseError
from normwise.nn import RMSNorm
from normwise.nn._checks import callable_given, number_given
from normwise.results import layers as counted
from normwise.surgery.absorb import is_conv, write
from normwise.surgery.flow import SAME, Reading, Step, record
from normwise.surgery.folding import change
from normwise.surgery.graph import Unprovable
from normwise.surgery.layers import Found, Where, chosen, exchanged
from normwise.surgery.running import Left, evaluating, has_hooks, hooked, run_on, tensors_in, unwrapped, working_copy

# The mean of a centred token, relative to its root mean square, that rounding leaves.
_ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4}
_ADDS = {"add", "__add__", "__radd__", "__iadd__", "add_"}
_SCALES = {"mul", "__mul__", "__rmul__", "div", "__truediv__", "neg", "__neg__"}


@dataclass(frozen=True)
class Centring:
    """What :func:`layer_to_rms` did; ``print`` it.

    ``changed`` are the layer norms that are RMS norms now, ``writers`` what had its mean taken off, ``untied`` the
    embeddings that shared their weights with another layer and have a copy now; ``left`` what stayed and why;
    ``error`` the largest change of the outputs over their largest value.

    Example:
        >>> print(Centring(["norm"], ["embed"], [], [], 1e-7))
        1 layer made RMS norm, output changed by 1e-07 of its largest value
        centred: embed
    """

    changed: list[str]
    writers: list[str]
    untied: list[str]
    left: list[Left]
    error: float
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """Give the account."""
        head = f"{counted(len(self.changed))} made RMS norm, output changed by {self.error:.2g} of its largest value"
        lines = [head, f"centred: {', '.join(self.writers)}"]
        lines += [f"untied: {', '.join(self.untied)}"] if self.untied else []
        lines += ["left alone:", *(f"  {x.layer}  {x.reason}" for x in self.left)] if self.left else []
        return "\n".join([*lines, *self.notes])


def layer_to_rms(
    model: nn.Module,
    example_inputs: Any,
    *,
    where: Where = None,
    tolerance: float | None = None,
    copy: bool = False,
    report: Callable[[Centring], object] | None = None,
) -> nn.Module:
    """Make layer norms over tokens RMS norms, with the same outputs in evaluation.

    Formula: LayerNorm(x) = RMSNorm(x − mean x). Every layer that writes to the residual stream has the mean over its
    outputs taken off: W′ = W − mean over outputs of W, b′ = b − mean b, and each row of an embedding its mean. What
    writes is found by following one run back from each norm through additions; where anything else stands in the way
    (a norm with a weight, a scale per channel), the norm is left, and the report says why. Then the stream's mean is
    measured, and the outputs are compared.

    Args:
        model: changed in place; blocks must be pre-norm (x + f(norm(x))).
        example_inputs: a tensor, a tuple of arguments or a mapping of named ones.
        where: a name pattern or predicate ``(name, layer) -> bool``; default every layer norm over tokens.
        tolerance: the largest accepted change of the output over its largest value; default as for :func:`fold`.
        copy: leave ``model`` alone and change a deep copy.
        report: called with the :class:`Centring`.

    Returns:
        The model, or the copy.

    Raises:
        InputError: no layer norm can be turned, with the first reason.
        NormwiseError: the outputs changed by more than ``tolerance``; the model is as it was.

    Example:
        >>> class Block(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.read, self.norm, self.branch = nn.Linear(3, 8), nn.LayerNorm(8), nn.Linear(8, 8)
        ...         self.last, self.out = nn.LayerNorm(8), nn.Linear(8, 2)
        ...     def forward(self, x):
        ...         x = self.read(x)
        ...         return self.out(self.last(x + self.branch(self.norm(x))))
        >>> print(layer_to_rms(Block(), torch.randn(2, 5, 3)).last)
        RMSNorm((8,), eps=1e-05, elementwise_affine=True)
    """
    if tolerance is not None:
        number_given(tolerance, "tolerance", least=0)
    callable_given(report, "layer_to_rms", "report")
    run = partial(run_on, example_inputs=example_inputs)
    model = working_copy(model, copy, "layer_to_rms", run)
    surgeon = _Surgeon(unwrapped(model), run)
    done = surgeon.turn(list(chosen(surgeon.model, where)), tolerance)
    if report is not None:
        report(done)
    return surgeon.model if model is not surgeon.model and surgeon.root_changed else model


class _Surgeon:
    """One change on its way, and how to take it back."""

    def __init__(self, model: nn.Module, run: Callable[[nn.Module], Any]) -> None:
        self.model, self.run = model, run
        self.root_changed = False
        self.modules = dict(model.named_modules())
        self._undo: list[Callable[[], object]] = []
        self.untied: list[str] = []

    def turn(self, found: list[Found], tolerance: float | None) -> Centring:
        reading = record(self.model, self.run, found=None)
        wanted = [f for f in found if f.layer.per_token and f.layer.traits.centred]
        writers: dict[str, None] = {}
        ready, left = [], []
        for f in wanted:
            try:
                writers |= dict.fromkeys(self._writers(reading, f))
                ready.append(f)
            except Unprovable as obstacle:
                left.append(Left(f.names[0], str(obstacle)))
        if not ready:
            reason = f"; {left[0].layer}: {left[0].reason}" if left else ": it has none over tokens"
            raise InputError(f"no layer norm of {type(self.model).__name__} can be made RMS norm{reason}")
        before = self._outputs()
        try:
            for name in writers:
                self._centre(name)
            self._require_centred(ready)
            for f in ready:
                self._exchange(f)
            error, limit = change(before, self._outputs(), tolerance)
            if not error <= limit:
                raise NormwiseError(
                    f"RMS norms changed the output by {error:.3g} of its largest value, more than tolerance={limit:g}: "
                    f"something beside the norms reads the mean of {', '.join(writers)}. Nothing was changed"
                )
        except BaseException:
            for step in reversed(self._undo):
                step()
            raise
        notes = ["exact in evaluation: dropout on the stream brings a mean back in training"] if self._drops() else []
        return Centring([f.names[0] for f in ready], list(writers), self.untied, left, error, notes)

    def _outputs(self) -> list[Tensor]:
        with evaluating(self.model):
            return [t.clone() for t in tensors_in(self.run(self.model)) if t.is_floating_point()]

    def _drops(self) -> bool:
        return any(isinstance(m, nn.Dropout) and m.p > 0 for m in self.model.modules())

    def _writers(self, reading: Reading, found: Found) -> list[str]:
        """Everything that is added up to a norm's input."""
        layer, module, name = found.layer, found.module, found.names[0]
        if layer.problem is not None:
            raise Unprovable(layer.problem)
        if layer.channel_axis != -1 or layer.tail or has_hooks(module):
            raise Unprovable("it is no plain layer norm over the last axis")
        calls = reading.calls(name)
        if len(calls) != 1:
            raise Unprovable(f"it ran {len(calls)} times in the pass" if calls else "it did not run in the pass")
        waiting, seen, writers = [reading.steps[calls[0]].takes[0]], set(), []
        while waiting:
            index = waiting.pop()
            if index in seen:
                continue
            seen.add(index)
            step = reading.steps[index]
            if step.module is not None:
                if step.module in reading.norms and _gives_centred(reading.norms[step.module]):
                    continue
                writers.append(self._writer(step.module, step.name, layer.channels, reading))
            elif _adds_up(step):
                waiting += step.takes
            elif step.name == "input":
                raise Unprovable("what the model is given goes into the stream as it is")
            elif step.name in _SCALES:
                raise Unprovable("a product with more than a number stands on the stream (a scale per channel?)")
            else:
                raise Unprovable(f"{step.name} stands on the stream")
        return writers

    def _writer(self, name: str, kind: str, channels: int, reading: Reading) -> str:
        if kind == "parameter":
            return name
        module = self.modules[name]
        if name in reading.norms:
            raise Unprovable(f"{name}, a norm with a weight, writes to the stream (post-norm, or a branch's end)")
        if _outputs_of(module) != channels:
            raise Unprovable(f"{name} ({kind}) writes to the stream, and is no layer whose mean can be taken off")
        if has_hooks(module) or hasattr(module, "parametrizations"):
            raise Unprovable(f"{name} has hooks or parametrizations")
        if len(reading.calls(name)) != 1 and not isinstance(module, nn.Embedding):
            raise Unprovable(f"{name} runs {len(reading.calls(name))} times in a pass: it is shared")
        return name

    def _centre(self, name: str) -> None:
        """Take the mean over the outputs off a layer's weights, or off a parameter."""
        module = self.modules.get(name)
        if module is None:
            parent, _, leaf = name.rpartition(".")
            self._set(self.modules[parent], leaf, lambda p: p - p.mean(-1, keepdim=True))
            return
        axis = _output_axis(module)
        self._set(module, "weight", lambda w: w - w.mean(axis, keepdim=True), name)
        if isinstance(getattr(module, "bias", None), Tensor):
            self._set(module, "bias", lambda b: b - b.mean(), name)

    def _set(self, module: nn.Module, leaf: str, change: Callable[[Tensor], Tensor], name: str = "") -> None:
        old = module._parameters[leaf] if leaf in module._parameters else module._buffers[leaf]
        assert old is not None
        held = sum(any(p is old for p in m._parameters.values()) for m in self.model.modules())
        value = change(old.detach().double()).to(old.dtype)
        if held > 1:
            if isinstance(module, nn.Embedding):
                self.untied.append(name)
            tie = getattr(getattr(self.model, "config", None), "tie_word_embeddings", None)
            if tie:
                self._undo.append(partial(setattr, self.model.config, "tie_word_embeddings", tie))
                self.model.config.tie_word_embeddings = False  # type: ignore[union-attr]  # or it is tied again
            parameter: Any = old
            self._undo.append(partial(module._parameters.__setitem__, leaf, parameter))
            module._parameters[leaf] = nn.Parameter(value, requires_grad=old.requires_grad)
            return
        self._undo.append(partial(write, old, old.detach().clone()))
        write(old, value)

    def _require_centred(self, found: list[Found]) -> None:
        """Measure that what comes to each norm has no mean."""
        off: dict[str, float] = {}

        def look(name: str, module: nn.Module, args: tuple[Tensor, ...], kwargs: Any) -> None:
            x = args[0].detach()
            mean, size = x.double().mean(-1).abs().amax(), x.double().square().mean().sqrt()
            if not mean <= _ROUNDING.get(x.dtype, 0.02) * size:
                off[name] = float(mean / size)

        with hooked(((f.module, partial(look, f.names[0])) for f in found), before=True):
            self._outputs()
        if off:
            name = next(iter(off))
            raise NormwiseError(
                f"the input of {name} still has a mean of {off[name]:.2g} of its size after centring. "
                "Nothing was changed"
            )

    def _exchange(self, found: Found) -> None:
        layer: Any = found.layer
        old = found.module
        options = {"eps": layer.eps, "elementwise_affine": layer.weight is not None}
        new: nn.Module = nn.RMSNorm(layer.channels, **options)
        if layer.bias is not None and bool((layer.bias != 0).any()):
            new = RMSNorm(layer.channels, bias=True, **options)
            new._parameters["bias"] = layer.bias
        if layer.weight is not None:
            scale: Any = layer.scale
            plain: Any = layer.weight if not layer.offset else nn.Parameter(scale.to(layer.weight.dtype))
            new._parameters["weight"] = plain
        new.train(old.training)
        self._undo.append(exchanged(self.model, old, new))


def _gives_centred(found: Found) -> bool:
    layer = found.layer
    return layer.per_token and bool(layer.traits.centred) and layer.weight is None and layer.bias is None


def _adds_up(step: Step) -> bool:
    """Whether a result has no mean over the channels where what it is made from has none."""
    if step.name in _SCALES:
        return len(step.takes) == 1
    return step.name in _ADDS or step.name in SAME or (step.name == "cat" and _keeps_channels(step.given, step.more))


def _keeps_channels(given: tuple[Any, ...], more: dict[str, Any]) -> bool:
    """Whether a concatenation is along another axis than the last."""
    tensors = tensors_in(given[0] if given else more.get("tensors"))
    axis = more.get("dim", more.get("axis", given[1] if len(given) > 1 else 0))
    return bool(tensors) and axis % tensors[0].ndim != tensors[0].ndim - 1


def _output_axis(module: nn.Module) -> int | tuple[int, ...]:
    """Along which axis of a layer's weight its outputs lie."""
    return 1 if isinstance(module, nn.Embedding) or _is_transposed(module) else 0


def _outputs_of(module: nn.Module) -> int | None:
    """How many channels a layer writes, of those whose mean can be taken off."""
    weight = module._parameters.get("weight")
    if isinstance(module, nn.Embedding):
        return module.embedding_dim
    # In groups of channels the mean over all would need inputs of other groups.
    plain = is_conv(module) and not getattr(module, "transposed", False) and getattr(module, "groups", 1) == 1
    if isinstance(module, nn.Linear) or plain:
        return None if weight is None else weight.shape[0]
    return weight.shape[1] if weight is not None and _is_transposed(module) else None


def _is_transposed(module: nn.Module) -> bool:
    """Whether a module computes x W + b, as the linear layers of GPT-2 do; found by running it."""
    weight, bias = module._parameters.get("weight"), module._parameters.get("bias")
    more = set(module._parameters) - {"weight", "bias"}
    if isinstance(module, nn.Linear) or weight is None or weight.ndim != 2 or more:
        return False
    x = torch.randn(3, weight.shape[0], dtype=weight.dtype, device=weight.device)
    try:
        with torch.no_grad():
            wanted = x @ weight + (0 if bias is None else bias)
            return bool(torch.allclose(module.forward(x), wanted, rtol=1e-3, atol=1e-4))
    except Exception:  # whatever a foreign layer raises
        return False
