"""In which order a model runs its layers, as far as torch.fx can prove it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from normwise.surgery.running import has_hooks

# What only moves, averages or selects values within a channel commutes with an affine map of that channel.
_MODULES: tuple[type[nn.Module], ...] = (
    *(nn.Identity, nn.Flatten, nn.Unflatten, nn.ChannelShuffle, nn.Upsample),
    *(getattr(nn, f"{kind}{d}d") for kind in ("AvgPool", "AdaptiveAvgPool", "ZeroPad") for d in (1, 2, 3)),
    *(getattr(nn, f"{kind}Pad{d}d") for kind in ("Reflection", "Replication", "Circular") for d in (1, 2, 3)),
)
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_MAX_MODULES = tuple(getattr(nn, f"{kind}{d}d") for kind in ("MaxPool", "AdaptiveMaxPool") for d in (1, 2, 3))
_METHODS = {"flatten", "view", "reshape", "permute", "transpose", "squeeze", "unsqueeze", "contiguous", "mean", "clone"}
_SHAPE_METHODS = {"size", "dim", "ndimension", "numel"}


def _functions(*names: str) -> set[Any]:
    """Functions by name, from wherever torch.fx may have recorded them."""
    return {getattr(home, name) for home in (torch, F) for name in names if hasattr(home, name)}


_FUNCTIONS = _functions(
    *("flatten", "reshape", "permute", "transpose", "squeeze", "unsqueeze", "mean", "pad", "interpolate"),
    *(f"{kind}_pool{d}d" for kind in ("avg", "adaptive_avg") for d in (1, 2, 3)),
)
_MAX_FUNCTIONS = _functions(*(f"{kind}_pool{d}d" for kind in ("max", "adaptive_max") for d in (1, 2, 3)))
_DROPOUT_FUNCTIONS = _functions("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout")


class Unprovable(Exception):  # noqa: N818 (carries a reason for the record; it is never raised to the user)
    """Something stands in the way of a proof; the text is the reason for the record."""


class _Tracer(fx.Tracer):
    """Keeps normalization layers and everything without children whole."""

    def __init__(self, norms: set[nn.Module]) -> None:
        super().__init__()
        self._norms = norms

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # A module with hooks stays whole, too: hooks must never be given the tracer's proxies.
        return m in self._norms or not m._modules or has_hooks(m) or super().is_leaf_module(m, module_qualified_name)


@dataclass
class Order:
    """The traced graphs of a model: one of the whole, or of those parts that could be traced.

    ``calls`` lists, for every module, the nodes that call it, ``read`` the full names of tensors that a graph reads
    directly. ``failure`` says why the whole could not be traced, ``assumed`` which arguments were taken as constant.
    """

    calls: dict[nn.Module, list[fx.Node]] = field(default_factory=dict)
    read: set[str] = field(default_factory=set)
    modules: dict[fx.Node, nn.Module] = field(default_factory=dict)
    failure: str | None = None
    assumed: str | None = None

    def add(self, root: nn.Module, graph: fx.Graph, prefix: str) -> None:
        """Take in the graph of a part of the model."""
        named = dict(root.named_modules(remove_duplicate=False))
        for node in graph.nodes:
            if node.op == "call_module":
                module = named[node.target]
                self.calls.setdefault(module, []).append(node)
                self.modules[node] = module
            elif node.op == "get_attr":
                self.read.add(prefix + node.target)


def trace(model: nn.Module, norms: set[nn.Module]) -> Order:
    """Trace a model, or where its control flow does not allow that, the largest parts that can be traced."""
    order = Order()
    try:
        _add(model, norms, "", order)
        return order
    except Exception as error:  # whatever a model's own forward raises on proxies
        order.failure = f"{type(error).__name__}: {error}".partition("\n")[0]
    defaults = {
        name: p.default for name, p in inspect.signature(model.forward).parameters.items() if p.default is not p.empty
    }
    if defaults:
        try:
            _add(model, norms, "", order, concrete_args=defaults)
            order.failure, order.assumed = None, ", ".join(f"{k}={v!r}" for k, v in defaults.items())
            return order
        except Exception:
            order = Order(failure=order.failure)
    _trace_parts(model, norms, "", order)
    return order


def _add(model: nn.Module, norms: set[nn.Module], prefix: str, order: Order, **options: Any) -> None:
    """Trace a model or part; what it calls whole because of hooks is a part of its own."""
    graph = _Tracer(norms).trace(model, **options)
    order.add(model, graph, prefix)
    named = dict(model.named_modules(remove_duplicate=False))
    # Once for each call, so that a part that runs twice is found twice.
    for name in [node.target for node in graph.nodes if node.op == "call_module"]:
        if has_hooks(named[name]):
            _trace_part(named[name], norms, f"{prefix}{name}.", order)


def _trace_parts(model: nn.Module, norms: set[nn.Module], prefix: str, order: Order) -> None:
    for name, child in model.named_children():
        _trace_part(child, norms, f"{prefix}{name}.", order)


def _trace_part(part: nn.Module, norms: set[nn.Module], prefix: str, order: Order) -> None:
    if part in norms or not part._modules:
        return
    try:
        _add(part, norms, prefix, order)
    except Exception:
        _trace_parts(part, norms, prefix, order)


def only_input(node: fx.Node) -> fx.Node:
    """The one node that a layer's call takes."""
    if node.kwargs or len(node.args) != 1 or not isinstance(node.args[0], fx.Node):
        raise Unprovable("is given more than its input (a mask?)")
    return node.args[0]


def only_consumer(node: fx.Node) -> fx.Node:
    """The one node that uses a result; questions for its shape do not count."""
    users = [user for user in node.users if not _asks_shape(user)]
    if not users:
        raise Unprovable("its result is not used")
    if any(user.op == "output" for user in users):
        raise Unprovable("its result leaves the model" if len(users) == 1 else "its result is used twice")
    if len(users) > 1 or sum(argument is node for argument in users[0].all_input_nodes) > 1:
        raise Unprovable(f"its result has other consumers ({', '.join(sorted(map(str, users)))})")
    if users[0].args[:1] != (node,) or sum(a is node for a in (*users[0].args, *users[0].kwargs.values())) > 1:
        raise Unprovable(f"its result goes into {users[0]} beside something else")
    return users[0]


def before(node: fx.Node, order: Order) -> tuple[fx.Node, list[fx.Node]]:
    """Walk from a layer's call to the nearest producer that does something, back through identities."""
    through = []
    source = only_input(node)
    while _is_identity(source, order):
        only_consumer(source)
        through.append(source)
        source = only_input(source)
    only_consumer(source)
    return source, through


def after(node: fx.Node, order: Order, targets: Callable[[nn.Module], bool]) -> tuple[fx.Node, list[fx.Node]]:
    """Walk from a layer's call to the target that uses its result, through what keeps channels apart."""
    through: list[fx.Node] = []
    while True:
        node = only_consumer(node)
        module = order.modules.get(node)
        if module is not None and targets(module):
            only_input(node)
            return node, through
        if not (_is_identity(node, order) or _moves(node, order) or takes_max(node, order)):
            raise Unprovable(f"{title(node, order)} stands between it and the next layer with weights")
        through.append(node)


def takes_max(node: fx.Node, order: Order) -> bool:
    """Whether a node selects the greatest values, which commutes with positive scales alone."""
    if node.op == "call_module":
        pool = order.modules[node]
        return type(pool) in _MAX_MODULES and not getattr(pool, "return_indices", False) and not has_hooks(pool)
    return node.op == "call_function" and node.target in _MAX_FUNCTIONS


def sources(start: fx.Node, through: list[fx.Node], end: fx.Node, order: Order, shape: torch.Size) -> Tensor:
    """From which channel of ``start`` each input channel of ``end`` comes, found by sending marked channels through.

    Every channel carries one random number; whatever mixes channels, or lets zeros in from outside, changes it.
    """
    C = shape[1]
    marks = torch.rand(C, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5
    # Both signs: a maximum hides zeros among positive numbers.
    out = [_send(sign * marks, start, through, order, shape) for sign in (1, -1)]
    axis = -1 if isinstance(order.modules[end], nn.Linear) else 1
    rows = out[0].movedim(axis, 0).flatten(1)
    if not rows.numel():
        raise Unprovable("an empty input shows nothing; give other example_inputs")
    ordered, index = marks.sort()
    near = torch.searchsorted(ordered, rows[:, 0].contiguous()).clamp(0, C - 1)
    near = torch.where((ordered[(near - 1).clamp_min(0)] - rows[:, 0]).abs() < 1e-9, (near - 1).clamp_min(0), near)
    found = index[near]
    if not torch.allclose(rows, marks[found].unsqueeze(1).expand_as(rows), rtol=0, atol=1e-9) or not torch.allclose(
        out[0], -out[1], rtol=0, atol=1e-9
    ):
        raise Unprovable(f"{', '.join(title(n, order) for n in through)} mixes channels, or lets zeros in at borders")
    return found


def _send(marks: Tensor, start: fx.Node, through: list[fx.Node], order: Order, shape: torch.Size) -> Tensor:
    values: dict[fx.Node, Any] = {start: marks.reshape(1, -1, *[1] * (len(shape) - 2)).expand(shape).contiguous()}

    def value(node: fx.Node) -> Any:
        if node not in values:
            if not (_asks_shape(node) or _is_arithmetic(node)):
                raise Unprovable(f"its way depends on {node}, which is not known here")
            values[node] = run(node)
        return values[node]

    def run(node: fx.Node) -> Any:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), value)
        if node.op == "call_module":
            return order.modules[node](*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)

    for node in through:
        values[node] = run(node)
    return values[through[-1] if through else start]


def _asks_shape(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in _SHAPE_METHODS
    return (
        node.op == "call_function" and node.target is getattr and node.args[1] in {"shape", "ndim", "dtype", "device"}
    )


def _is_arithmetic(node: fx.Node) -> bool:
    """Python's own operators, which compute sizes from sizes."""
    return node.op == "call_function" and getattr(node.target, "__module__", None) in {"_operator", "builtins", "math"}


def _is_identity(node: fx.Node, order: Order) -> bool:
    if node.op == "call_module":
        module = order.modules[node]
        nothing = type(module) is nn.Identity or (type(module) in DROPOUTS and not module.training)
        return nothing and not has_hooks(module)
    if node.op == "call_function" and node.target in _DROPOUT_FUNCTIONS:
        return node.kwargs.get("training", node.args[2] if len(node.args) > 2 else True) is False
    return False


def _moves(node: fx.Node, order: Order) -> bool:
    if node.op == "call_module":
        return type(order.modules[node]) in _MODULES and not has_hooks(order.modules[node])
    if node.op == "call_function" and node.target in _functions("pad"):
        value = node.kwargs.get("value", node.args[3] if len(node.args) > 3 else None)
        return isinstance(value, (int, float, type(None))) and not value
    return (node.op == "call_method" and node.target in _METHODS) or (
        node.op == "call_function" and node.target in _FUNCTIONS
    )


def title(node: fx.Node, order: Order) -> str:
    """What a node does, in a few words for the record."""
    if node.op == "call_module":
        return f"{type(order.modules[node]).__name__} ({node.target})"
    return str(node.target) if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
