"""Old and new layers of one model, put in and taken out, and what was seen of them while the model ran."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from dataclasses import replace as with_changes
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from normwise.surgery.description import NormLayer
from normwise.surgery.freeze import is_frozen
from normwise.surgery.layers import Found, replace
from normwise.surgery.running import drift, evaluating, hooked


@dataclass
class Pair:
    """A layer and the one that takes its place; they may hold the same parameters."""

    found: Found
    new: torch.nn.Module
    # The old layer's values at the time of the conversion, whatever becomes of parameters that both hold.
    values: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.values = {n: p.detach().clone() for n, p in self.old.named_parameters(recurse=False)}
        self._place = _place(self.new)

    @property
    def old(self) -> torch.nn.Module:
        """The old layer."""
        return self.found.module

    def follow(self) -> None:
        """Give the old layer the mode that the new one has now, and its device and dtype where these were changed."""
        if not is_frozen(self.old):
            self.old.training = self.new.training
        place = _place(self.new)
        if place is not None and place != self._place:
            self.old.to(*place)

    @property
    def name(self) -> str:
        """The old layer's first name in the model."""
        return self.found.names[0]


class Exchange:
    """The pairs of one model and which side of them is in it now."""

    def __init__(self, model: torch.nn.Module, pairs: Sequence[Pair]) -> None:
        self.model = model
        self.pairs = list(pairs)

    def put_new(self) -> torch.nn.Module:
        """Put the new layers in; gives the model."""
        for pair in self.pairs:
            self.model = replace(self.model, pair.old, pair.new)
        return self.model

    def put_old(self) -> torch.nn.Module:
        """Put the old layers in; gives the model."""
        for pair in self.pairs:
            self.model = replace(self.model, pair.new, pair.old)
        return self.model

    def restore_values(self) -> None:
        """Give the old layers the values that they had at the conversion, where and how the new ones are by now."""
        with torch.no_grad():
            for pair in self.pairs:
                pair.follow()
                for name, value in pair.values.items():
                    pair.old.get_parameter(name).copy_(value)

    @contextmanager
    def comparing(self) -> Iterator[None]:
        """Put both sides into evaluation mode, and give the old layers copies of parameters that both hold."""
        shared = [dict(pair.old._parameters) for pair in self.pairs]
        everything = torch.nn.ModuleList([self.model, *(p.old for p in self.pairs), *(p.new for p in self.pairs)])
        with ExitStack() as stack:
            stack.enter_context(evaluating(everything))
            for pair, parameters in zip(self.pairs, shared, strict=True):
                stack.callback(pair.old._parameters.update, parameters)
                own = {n: Parameter(v.clone(), requires_grad=False) for n, v in pair.values.items()}
                pair.old._parameters.update(own)
            yield

    def own_drifts(self, run: Callable[[torch.nn.Module], Any]) -> dict[str, float | None]:
        """How far each new layer's output is from the old one's on the *same* input, that of the old model."""
        seen: dict[str, tuple[list[Tensor], list[Tensor]]] = {pair.name: ([], []) for pair in self.pairs}

        def look(pair: Pair, module: torch.nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
            # Straight to forward, on a copy: neither the user's hooks nor an inplace activation must notice.
            seen[pair.name][0].append(output.clone())
            seen[pair.name][1].append(pair.new.forward(*copy.deepcopy(args), **kwargs))

        self.put_old()
        try:
            with hooked((pair.old, partial(look, pair)) for pair in self.pairs):
                run(self.model)
        finally:
            self.put_new()
        return {name: drift(before, after) for name, (before, after) in seen.items() if before}

    def outputs(self, side: str, run: Callable[[torch.nn.Module], Any]) -> tuple[dict[str, list[Tensor]], Any]:
        """The outputs of each layer, and the model's, with the ``"old"`` or the ``"new"`` layers in."""
        seen: dict[str, list[Tensor]] = {}

        def keep(name: str, module: torch.nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
            seen.setdefault(name, []).append(output.clone())

        self.put_old() if side == "old" else self.put_new()
        try:
            with hooked((getattr(pair, side), partial(keep, pair.name)) for pair in self.pairs):
                return seen, run(self.model)
        finally:
            self.put_new()


def _place(module: torch.nn.Module) -> tuple[torch.device, torch.dtype] | None:
    """Device and dtype of a layer's tensors; ``None`` where it has none."""
    tensors = (*module.parameters(), *module.buffers())
    return next(((t.device, t.dtype) for t in tensors if t.is_floating_point()), None)


def spatial_axes(found: Sequence[Found], run: Callable[[], Any]) -> dict[int, set[int]]:
    """Which numbers of spatial axes each layer's input has, by the module's id."""
    seen: dict[int, set[int]] = {}

    def count(layer: NormLayer, module: torch.nn.Module, args: tuple[Tensor, ...], kwargs: Any) -> None:
        axes = args[0].ndim
        seen.setdefault(id(module), set()).add(axes - 1 if layer.takes_single(axes) else axes - 2)

    with hooked(((f.module, partial(count, f.layer)) for f in found), before=True):
        run()
    return seen


def with_channels(found: Sequence[Found], run: Callable[[], Any]) -> list[Found]:
    """The layers, those without parameters with the number of channels that they are seen to take."""
    seen: dict[int, int] = {}

    def count(layer: NormLayer, module: torch.nn.Module, args: tuple[Tensor, ...], kwargs: Any) -> None:
        seen[id(module)] = args[0].shape[layer.channel_axis]

    unknown = [f for f in found if not f.layer.channels and f.layer.problem is None]
    if unknown:
        with hooked(((f.module, partial(count, f.layer)) for f in unknown), before=True):
            run()
    return [
        f._replace(layer=with_changes(f.layer, channels=seen[id(f.module)])) if id(f.module) in seen else f
        for f in found
    ]
