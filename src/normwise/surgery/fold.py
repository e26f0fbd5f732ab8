"""Fold batch norms into the convolutions and linear layers beside them, where that is provably the same."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace as with_changes
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from normwise import kernels
from normwise.errors import NormwiseError, NormwiseWarning
from normwise.nn._checks import callable_given, number_given
from normwise.surgery import graph
from normwise.surgery.absorb import (
    ABSORBERS,
    absorb_after,
    absorb_before,
    border_problem,
    is_conv,
    out_features,
    remembered,
    why_not,
)
from normwise.surgery.carry import evaluated
from normwise.surgery.description import NormLayer
from normwise.surgery.flow import record
from normwise.surgery.folding import Folded, Folding, change
from normwise.surgery.graph import Unprovable
from normwise.surgery.layers import Found, Where, chosen, exchanged
from normwise.surgery.readers import give_to_readers, readers_of
from normwise.surgery.running import Left, evaluating, has_hooks, hooked, run_on, tensors_in, unwrapped, working_copy


def fold(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    where: Where = None,
    tolerance: float | None = None,
    copy: bool = False,
    report: Callable[[Folding], object] | None = None,
) -> nn.Module:
    """Let convolutions and linear layers take over the batch norms beside them, for inference at no cost.

    Formula: in evaluation y = s·x + t with s = weight / √(running_var + eps), t = bias − s·running_mean. A layer before
    it takes W′ = s·W, b′ = s·b + t; a layer after it W′ = W·s, b′ = b + Σ W·t. Computed in float64.

    Foldable are batch norms (torch's, ours, frozen ones), tracked instance norms and what is left of removed ones, and
    switchable norms whose only member is batch, all in evaluation mode; their activation stays. The order of the layers
    is read from a torch.fx trace. A layer is left alone, with the reason in the report, unless the trace proves the
    result equal: other consumers, shared modules, anything in between that mixes channels, zero padding after a shift,
    hooks and parametrizations all stand in the way. A model that cannot be traced as a whole is folded inside those
    parts that can be; that needs ``example_inputs``, and the report says so.

    Norms over tokens (layer and RMS norm) give weight and bias to the linear layers that alone read them, and keep the
    division; who reads them is seen in a run on ``example_inputs``, so that models that cannot be traced fold as well.

    The names of the layers stay (an identity stands there), state_dict loses the norms' keys.

    Args:
        model: changed in place; call ``.eval()`` first.
        example_inputs: a tensor, a tuple of arguments or a mapping of named ones. With them the output is compared, and
            the way through reshapes and into linear layers can be followed.
        where: a name pattern or predicate ``(name, layer) -> bool``; default every layer that can be folded.
        tolerance: the largest accepted change of the output over its largest value; default by the output's dtype:
            1e-10 for float64, 1e-4 for float32, 0.02 for half types.
        copy: leave ``model`` alone and fold a deep copy.
        report: called with the :class:`Folding`: ``print``, or a list's ``append``.

    Returns:
        The model, or the copy.

    Warns a :class:`NormwiseWarning` where no layer at all could be folded.

    Raises:
        NormwiseError: the output changed by more than ``tolerance``; the model is as it was.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
        >>> fold(model, torch.randn(2, 3, 8, 8), report=lambda r: print(r.folded[0].into, r.error < 1e-6))
        0 True
        Sequential(
          (0): Conv2d(3, 4, kernel_size=(3, 3), stride=(1, 1))
          (1): Identity()
          (2): ReLU()
        )
    """
    if tolerance is not None:
        number_given(tolerance, "tolerance", least=0)
    callable_given(report, "fold", "report")
    run = None if example_inputs is None else partial(run_on, example_inputs=example_inputs)
    model = working_copy(model, copy, "fold", run)
    surgeon = _Surgeon(unwrapped(model), where)
    before = surgeon.observe(example_inputs) if example_inputs is not None else None
    folded, left = surgeon.fold_all()
    if example_inputs is not None:
        given, kept = surgeon.fold_tokens(example_inputs)
        folded, left = folded + given, left + kept
    error = None
    if before:
        with evaluating(surgeon.model):
            after = [t for t in tensors_in(run_on(surgeon.model, example_inputs)) if t.is_floating_point()]
        error, limit = change(before, after, tolerance)
        if not error <= limit:
            surgeon.undo()
            raise NormwiseError(
                f"folding changed the output by {error:.3g} of its largest value, more than tolerance={limit:g}, and "
                "was undone. Folded were "
                + ", ".join(f"{f.layer} into {f.into}" for f in folded)
                + "; choose with where="
            )
    if left and not folded:
        first = f"{left[0].layer}: {left[0].reason}"
        warnings.warn(f"nothing was folded ({len(left)} left alone); {first}", NormwiseWarning, stacklevel=2)
    if report is not None:
        unchecked = "no example_inputs" if before is None else "the output holds no floating-point tensors"
        report(Folding(folded, left, error, surgeon.notes(), unchecked))
    return model


class _Surgeon:
    """Holds what is known of a model while its layers are folded one by one, and how to undo that."""

    def __init__(self, model: nn.Module, where: Where) -> None:
        self.model = model
        self.found = list(chosen(model, where))
        self.order = graph.trace(model, {f.module for f in chosen(model)})
        self.names = {m: name for name, m in model.named_modules()}
        self.shapes: dict[nn.Module, torch.Size] = {}
        self._undo: list[Callable[[], object]] = []
        owners: dict[int, set[nn.Module]] = {}
        for module in model.modules():
            for parameter in module._parameters.values():
                owners.setdefault(id(parameter), set()).add(module)
        self._tied = {p for p, modules in owners.items() if len(modules) > 1}

    def observe(self, example_inputs: Any) -> list[Tensor]:
        """Run the model: its outputs, and the shape that each norm sees."""

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Any) -> None:
            if args and isinstance(args[0], Tensor):
                self.shapes.setdefault(module, args[0].shape)

        with hooked(((found.module, hook) for found in self.found), before=True), evaluating(self.model):
            return [t.clone() for t in tensors_in(run_on(self.model, example_inputs)) if t.is_floating_point()]

    def fold_all(self) -> tuple[list[Folded], list[Left]]:
        """Fold whatever can be proven."""
        folded, left = [], []
        for found in self.found:
            method = found.layer.traits
            if not (method.folds or method.mixes):
                continue
            if found.layer.running_mean is None and (method.mixes or not method.running) and method.pools:
                continue  # never a fixed map
            try:
                folded.append(self._fold(found))
            except Unprovable as obstacle:
                left.append(Left(found.names[0], str(obstacle)))
        return folded, left

    def fold_tokens(self, example_inputs: Any) -> tuple[list[Folded], list[Left]]:
        """Give weight and bias of norms over tokens to the linear layers that read them; the division stays."""
        wanted = [f for f in self.found if f.layer.over_tokens]
        wanted = [f for f in wanted if f.layer.weight is not None or f.layer.bias is not None or f.layer.problem]
        if not wanted:
            return [], []
        reading = record(self.model, lambda model: run_on(model, example_inputs), wanted)
        folded, left = [], []
        for found in wanted:
            try:
                readers = readers_of(reading, found)
            except Unprovable as obstacle:
                left.append(Left(found.names[0], str(obstacle)))
                continue
            self._undo.append(give_to_readers(self.model, found, readers))
            folded.append(Folded(found.names[0], ", ".join(name for name, _ in readers), "after"))
        return folded, left

    def undo(self) -> None:
        """Give everything back, last change first."""
        while self._undo:
            self._undo.pop()()

    def notes(self) -> list[str]:
        """What the proof rests on beside the trace."""
        if self.order.assumed:
            return [f"proven for calls with {self.order.assumed}"]
        if self.order.failure:
            return [f"traced in parts only, and compared on the example inputs ({self.order.failure})"]
        return []

    def _fold(self, found: Found) -> Folded:
        layer, module = found.layer, found.module
        scale, shift = _evaluated_affine(layer, module)
        node = self._only_call(module, "it")
        if self.order.failure and module not in self.shapes:
            raise Unprovable(
                f"the model cannot be traced as a whole ({self.order.failure}); give example_inputs that run this "
                "layer, so that the result can be compared"
            )
        try:
            target, through = self._target_before(found, node)
            absorb, side = absorb_after, "before"
        except Unprovable as not_before:
            try:
                target, through, source = self._target_after(found, node, scale, shift)
            except Unprovable as not_after:
                raise Unprovable(f"before it: {not_before}; after it: {not_after}") from None
            scale, shift = scale[source], shift[source]
            absorb, side = absorb_before, "after"
        self._undo.append(remembered(target))
        absorb(target, scale, shift)
        self.order.modules[node] = remainder = _remainder(layer)
        self._undo.append(exchanged(self.model, module, remainder))
        return Folded(found.names[0], self.names[target], side, [graph.title(n, self.order) for n in through])

    def _target_before(self, found: Found, node: fx.Node) -> tuple[nn.Module, list[fx.Node]]:
        source, through = graph.before(node, self.order)
        target = self._absorber(source)
        if out_features(target) != found.layer.channels:
            raise Unprovable(f"{self.names[target]} gives {out_features(target)} channels")
        if isinstance(target, nn.Linear):
            self._require_linear_axis(found)
        elif found.layer.channel_axis != 1:
            raise Unprovable(f"{self.names[target]} has its channels along another axis")
        return target, through

    def _target_after(
        self, found: Found, node: fx.Node, scale: Tensor, shift: Tensor
    ) -> tuple[nn.Module, list[fx.Node], Tensor]:
        if found.layer.activation or found.layer.tail:
            raise Unprovable("its own activation comes first")
        end, through = graph.after(node, self.order, lambda m: isinstance(m, ABSORBERS))
        target = self._absorber(end)
        if any(graph.takes_max(n, self.order) for n in through) and not bool((scale > 0).all()):
            raise Unprovable("a maximum is taken after it, and not all of its scales are positive")
        source = self._channel_sources(found, node, through, end)
        problem = border_problem(target, shift[source])
        if problem is not None:
            raise Unprovable(f"{self.names[target]} {problem}")
        return target, through, source

    def _channel_sources(self, found: Found, node: fx.Node, through: list[fx.Node], end: fx.Node) -> Tensor:
        target = self.order.modules[end]
        if found.module in self.shapes and found.layer.channel_axis == 1:
            return graph.sources(node, through, end, self.order, self.shapes[found.module])
        plain = not through or all(isinstance(self.order.modules.get(n), nn.Identity) for n in through)
        if isinstance(target, nn.Linear):
            self._require_linear_axis(found)
        if not plain or (is_conv(target) and found.layer.channel_axis != 1):
            raise Unprovable("the way of its channels can be followed on example_inputs only")
        return torch.arange(found.layer.channels)

    def _absorber(self, node: fx.Node) -> nn.Module:
        """The layer with weights that a node calls, if its weights may change."""
        target = self.order.modules.get(node)
        if not isinstance(target, ABSORBERS):
            raise Unprovable(f"{graph.title(node, self.order)} is no convolution or linear layer")
        name = self.names[target]
        self._only_call(target, name)
        reason = why_not(target)
        if reason is None and any(id(p) in self._tied for p in target._parameters.values() if p is not None):
            reason = "shares its weights with another layer"
        if reason is None and any(read.rpartition(".")[0] == name for read in self.order.read):
            reason = "has weights that the model also uses directly"
        if reason is not None:
            raise Unprovable(f"{name} {reason}")
        return target

    def _only_call(self, module: nn.Module, name: str) -> fx.Node:
        calls = self.order.calls.get(module, [])
        if len(calls) == 1:
            return calls[0]
        if calls:
            raise Unprovable(f"{name} runs {len(calls)} times in a pass: it is shared")
        why = f": {self.order.failure}" if self.order.failure else ""
        raise Unprovable(f"no traced graph calls {name}{why}")

    def _require_linear_axis(self, found: Found) -> None:
        """A linear layer's features are the last axis; a norm's channels are that axis only without spatial ones."""
        if found.layer.channel_axis == -1:
            return
        shape = self.shapes.get(found.module)
        if shape is None:
            raise Unprovable("beside a linear layer the number of axes decides: give example_inputs")
        if len(shape) != 2:
            raise Unprovable(f"its channels are axis 1 of {len(shape)}, the linear layer's features the last")


def _evaluated_affine(layer: NormLayer, module: Any) -> tuple[Tensor, Tensor]:
    """Scale and shift per channel of a layer that is an affine map in evaluation, in float64."""
    if layer.problem is not None:
        raise Unprovable(layer.problem)
    if has_hooks(module):
        raise Unprovable("has hooks, which would be lost")
    if layer.traits.mixes:
        if len(module.over) > 1:
            raise Unprovable(f"mixes {', '.join(module.over)}: harden it first")
        layer = with_changes(layer, method=module.over[0])
    if not layer.traits.only_affine:
        if module.training and not layer.frozen:
            raise Unprovable("is in training mode: call .eval() first")
        if layer.running_mean is None or layer.running_var is None:
            raise Unprovable("keeps no running statistics: in evaluation it normalizes by the batch")
    tensors = {name: t.detach().cpu() for name, t in layer.tensors.items()}
    center, scale, shift = evaluated(tensors, layer, tensors)
    shift = shift - center * scale
    if not bool(scale.isfinite().all() and shift.isfinite().all()):
        raise Unprovable("its statistics or parameters are not finite")
    return scale, shift


class _Activation(nn.Module):
    """The fused activation of a layer that was folded away."""

    def __init__(self, activation: str) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, input: Tensor) -> Tensor:
        return kernels.activate(input, self.activation)

    def extra_repr(self) -> str:
        return repr(self.activation)


def _remainder(layer: NormLayer) -> nn.Module:
    """What stays in a folded layer's place: its activation and what it applied after, under the names it had."""
    if not layer.tail:
        return _Activation(layer.activation) if layer.activation else nn.Identity()
    rest = nn.Sequential()
    if layer.activation:
        rest.append(_Activation(layer.activation))
    for name, module in layer.tail:
        rest.add_module(name, module)
    return rest
