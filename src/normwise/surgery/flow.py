"""What one pass of a model shows of its data flow: which results go where, by the identity of tensors.

Where ``torch.fx`` cannot trace a model, one run still tells what it did. Functions are seen by a mode, modules that are
watched (norms, layers with weights) by hooks and count as one step each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from normwise.surgery.graph import DROPOUTS
from normwise.surgery.layers import Found, find
from normwise.surgery.running import evaluating, left_alone, tensors_in

# What hands its input on, whole or in parts, or in another shape or type.
SAME = {
    *("view", "reshape", "flatten", "unflatten", "contiguous", "clone", "detach", "to", "type_as", "float", "half"),
    *("transpose", "permute", "movedim", "squeeze", "unsqueeze", "expand", "dropout", "__getitem__", "bfloat16", "t"),
    *("chunk", "split", "unbind", "swapaxes", "moveaxis", "double", "view_as", "reshape_as", "expand_as", "repeat"),
    *("type", "mT", "T", "narrow", "select", "roll", "pad", "index_select", "repeat_interleave"),
}
# What keeps the norm of heads as rotations do, or scales them.
_ROTATES = {
    "sub",
    "__sub__",
    "__rsub__",
    "mul",
    "__mul__",
    "__rmul__",
    "neg",
    "__neg__",
    "cat",
    "stack",
    "div",
    "__truediv__",
    "flip",
}
_ADDS = {"add", "__add__", "__radd__", "__iadd__", "add_"}
_PRODUCTS = {"matmul", "__matmul__", "bmm"}
_ATTENTION = "scaled_dot_product_attention"


@dataclass
class Step:
    """One function or module that ran, and which steps made what it took; ``value`` is its first tensor."""

    name: str
    takes: list[int] = field(default_factory=list)
    module: str | None = None
    value: Tensor | None = None
    given: tuple[Any, ...] = ()
    more: dict[str, Any] = field(default_factory=dict)


class Flow(TorchFunctionMode):
    """Records the steps of one pass while it is entered."""

    def __init__(self, model: nn.Module, found: Iterable[Found] | None = None) -> None:
        super().__init__()
        self.model = model
        self.found = find(model) if found is None else list(found)
        self.steps: list[Step] = []
        # The steps whose results the model gives.
        self.results: set[int] = set()
        self._made_by: dict[int, int] = {}
        self._held: list[Tensor] = []
        self._inside = 0
        self._stack = ExitStack()
        self._names = {id(p): name for name, p in (*model.named_parameters(), *model.named_buffers())}

    def __enter__(self) -> Flow:
        norms = {id(f.module): f.names[0] for f in self.found}
        within = {id(part) for f in self.found for part in f.module.modules()} - set(norms)
        for name, module in self.model.named_modules():
            if id(module) not in within and (id(module) in norms or _weighs(module)):
                self._watch(module, norms.get(id(module), name))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        try:
            super().__exit__(*error)
        finally:
            self._stack.close()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not self._inside and tensors_in(result):
            name = getattr(func, "__name__", "")
            name = getattr(getattr(func, "__self__", None), "__name__", name) if name == "__get__" else name
            self._note(Step(name, given=args, more=kwargs), (args, tuple(kwargs.values())), result)
        return result

    def gave(self, output: Any) -> None:
        """Note what left the model."""
        self.results = {self._made_by[id(t)] for t in tensors_in(output) if id(t) in self._made_by}

    def _watch(self, module: nn.Module, name: str) -> None:
        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._inside += 1

        def after(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            self._inside -= 1
            if not self._inside:
                step = Step(type(module).__name__, module=name, given=args, more=kwargs)
                self._note(step, (args, tuple(kwargs.values())), output)

        if not isinstance(module, torch.jit.ScriptModule):
            self._stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
            self._stack.callback(module.register_forward_hook(after, with_kwargs=True).remove)

    def _note(self, step: Step, given: Any, result: Any) -> None:
        step.takes = [self._source(t) for t in tensors_in(given)]
        made = tensors_in(result)
        step.value = made[0]
        self.steps.append(step)
        for tensor in made:
            self._made_by[id(tensor)] = len(self.steps) - 1
            self._held.append(tensor)

    def _source(self, tensor: Tensor) -> int:
        """The step that made a tensor; one for a parameter or an input that comes from outside."""
        if id(tensor) not in self._made_by:
            name = self._names.get(id(tensor))
            self.steps.append(Step("parameter" if name else "input", module=name, value=tensor))
            self._made_by[id(tensor)] = len(self.steps) - 1
            self._held.append(tensor)
        return self._made_by[id(tensor)]


class Reading:
    """What the steps of a flow say of a model's structure."""

    def __init__(self, flow: Flow) -> None:
        self.flow, self.steps = flow, flow.steps
        self.users: list[list[int]] = [[] for _ in self.steps]
        self._before: list[int] = []
        for index, step in enumerate(self.steps):
            mask = 0
            for source in step.takes:
                self.users[source].append(index)
                mask |= self._before[source] | (1 << source) if source < index else 0
            self._before.append(mask)
        self.norms = {f.names[0]: f for f in flow.found}
        self.adds = dict(self._residual_adds())

    def comes_from(self, index: int, source: int) -> bool:
        """Whether a step's result depends on another's."""
        return bool(self._before[index] >> source & 1)

    def origin(self, index: int) -> int:
        """The step that really made a value: back through what only hands it on."""
        while self.steps[index].name in SAME and self.steps[index].module is None and self.steps[index].takes:
            index = self.steps[index].takes[0]
        return index

    def calls(self, name: str) -> list[int]:
        """The steps that ran a module."""
        return [i for i, step in enumerate(self.steps) if step.module == name and step.name not in ("parameter",)]

    def _residual_adds(self) -> Iterator[tuple[int, tuple[int, int]]]:
        """Additions of a value and of something made from it: by step, the value's origin and the branch's."""
        skips: dict[int, int] = {}
        for index, step in enumerate(self.steps):
            if step.name not in _ADDS or len(step.takes) < 2 or step.value is None or step.value.ndim < 2:
                continue
            if not step.value.is_floating_point():
                continue
            a, b = (self.origin(source) for source in step.takes[:2])
            if any(self.steps[i].value is None or self.steps[i].value.numel() != step.value.numel() for i in (a, b)):  # type: ignore[union-attr]
                continue
            for skip, end in ((a, b), (b, a)):
                # Two branches of one value may be added one after the other.
                if self.comes_from(end, skip) or (skip in skips and self.comes_from(end, skips[skip])):
                    skips[index] = skips.get(skip, skip) if not self.comes_from(end, skip) else skip
                    yield index, (skip, end)
                    break

    def stream(self) -> list[int]:
        """The additions of the longest residual stream, in order."""
        chains: dict[int, list[int]] = {}
        for add, (skip, _) in self.adds.items():
            step = self.steps[skip]
            if step.module in self.norms and step.takes:  # post-norm: the stream goes through it
                skip = self.origin(step.takes[0])
            chains[add] = [*chains.get(skip, []), add]
        return max(chains.values(), key=len, default=[])

    def roles(self) -> dict[str, str]:
        """Where each norm stands: pre, post, branch end, final, query or key, inside a branch, or elsewhere."""
        skips, ends = {skip for skip, _ in self.adds.values()}, {end for _, end in self.adds.values()}
        in_heads = {name for attention in self.attentions() for name in attention.norms}
        found = {}
        for name in self.norms:
            calls = [i for i in self.calls(name) if self.steps[i].takes]
            if not calls:
                continue
            call = calls[0]
            taken = self.origin(self.steps[call].takes[0])
            if name in in_heads:
                found[name] = "query or key"
            elif call in ends:
                found[name] = "branch end"
            elif taken in skips and any(
                skip == taken and self.comes_from(end, call) for skip, end in self.adds.values()
            ):
                found[name] = "pre"
            elif taken in self.adds and (call in skips or not self._skipped_later(taken)):
                found[name] = "post" if call in skips or self._is_post(taken) else "final"
            else:
                found[name] = (
                    "inside"
                    if any(
                        self.comes_from(end, call) and self.comes_from(call, skip) for skip, end in self.adds.values()
                    )
                    else "elsewhere"
                )
        return found

    def _skipped_later(self, add: int) -> bool:
        return any(skip == add for skip, _ in self.adds.values())

    def _is_post(self, add: int) -> bool:
        """Whether the stream came to this addition from a norm behind another: it ends in the last of these."""
        skip = self.steps[self.adds[add][0]]
        return skip.module in self.norms and self.origin(skip.takes[0]) in self.adds

    def placement(self) -> str | None:
        """How the blocks are normalized: pre, post, sandwich, branch end (norms of their results alone), or mixed."""
        roles = {role for name, role in self.roles().items() if self.norms[name].layer.per_token}
        kinds = roles & {"pre", "post", "branch end"}
        if not kinds:
            return None
        if kinds == {"pre", "branch end"}:
            return "sandwich"
        return kinds.pop() if len(kinds) == 1 else "mixed"

    def attentions(self) -> list[Attention]:
        """Products of queries and keys, each with where these come from."""
        found = []
        for step in self.steps:
            if step.name == _ATTENTION and len(step.takes) >= 2:
                found.append(self._attention(step, None, step))
            elif step.name == "softmax" and step.takes:
                product = self._product(step.takes[0])
                if product is not None:
                    found.append(self._attention(self.steps[product], step.takes[0], step))
        return found

    def _product(self, index: int) -> int | None:
        """The product of two computed values behind attention weights."""
        for _ in range(12):
            step = self.steps[index]
            if step.name in _PRODUCTS and len(step.takes) >= 2:
                operands = [self.steps[self.origin(i)] for i in step.takes[:2]]
                return index if all(o.name not in ("parameter", "input") for o in operands) else None
            floats = [i for i in step.takes if _computed(self.steps[i])]
            if step.module is not None or not floats:
                return None
            index = floats[0]
        return None

    def _attention(self, at: Step, logits: int | None, step: Step) -> Attention:
        ways = [self._behind(i) for i in at.takes[:2]]
        norms = tuple(dict.fromkeys(name for names, _ in ways for name in names))
        given = tensors_in((at.given, tuple(at.more.values())))[:2]
        keys = given[1] if logits is None else given[1].transpose(-1, -2)
        weights = None if logits is None else self.steps[logits].value
        return Attention(given[0], keys, weights, step, norms, tuple(maker for _, maker in ways))

    def _behind(self, index: int) -> tuple[list[str], str | None]:
        """The norms between queries or keys and the layer that makes them, and that layer."""
        norms: list[str] = []
        for _ in range(40):
            step = self.steps[index]
            if step.module is not None and step.module in self.norms:
                norms.append(step.module)
            elif step.module is not None or not step.takes:
                return norms, step.module
            elif step.name not in SAME | _ROTATES | _ADDS:
                return norms, None
            # The largest: a cache that is still empty may be joined to it.
            known = [i for i in step.takes if self.steps[i].name not in ("parameter", "input")] or step.takes
            index = max(known, key=lambda i: 0 if (value := self.steps[i].value) is None else value.numel())
        return norms, None


@dataclass(frozen=True)
class Attention:
    """One product of queries and keys, the norms on their way, and the layers that made them.

    ``logits`` is what softmax is given, where that shows; ``step`` is softmax, or all of attention in one.
    """

    q: Tensor
    k: Tensor
    logits: Tensor | None
    step: Step
    norms: tuple[str, ...]
    makers: tuple[str | None, ...]


def record(model: nn.Module, run: Callable[[nn.Module], Any], found: Iterable[Found] | None = None) -> Reading:
    """Run a model once in evaluation, quietly, and read what it did."""
    flow = Flow(model, found)
    with left_alone(model), evaluating(model), flow:
        output = run(model)
    flow.gave(output)
    return Reading(flow)


def _computed(step: Step) -> bool:
    given = step.name in ("parameter", "input")
    return not given and step.value is not None and step.value.is_floating_point()


def _weighs(module: nn.Module) -> bool:
    """Whether a module counts as one step: it has weights of its own and no parts, or is one of torch's small ones."""
    if isinstance(module, DROPOUTS):
        return False
    if isinstance(module, nn.Linear):
        return True  # also with a norm of its heads inside
    return not module._modules and any(p is not None and p.ndim >= 2 for p in module._parameters.values())
