"""What one pass of a model shows while it runs: which layers and functions run, in which order, on what."""

from __future__ import annotations

import copy
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from normwise.kernels.reference import widened
from normwise.nn._convolutions import CONVOLUTIONS
from normwise.parametrize import weight_norms
from normwise.probe.lineage import Lineage
from normwise.probe.places import input_of
from normwise.surgery.graph import DROPOUTS
from normwise.surgery.layers import Found, find
from normwise.surgery.running import keeping_random_state, left_alone, tensors_in

RECURRENT = (nn.RNNBase, nn.RNNCellBase)
_ACTIVATIONS = {
    *("relu", "relu6", "leaky_relu", "prelu", "elu", "selu", "celu", "gelu", "silu", "mish", "sigmoid", "tanh"),
    *("hardswish", "hardsigmoid", "hardtanh", "softplus", "softsign"),
}
_ADDITIONS = {"add", "add_", "__add__", "__radd__", "__iadd__"}
_CONCATENATIONS = {"cat", "concat", "concatenate"}
_ATTENTIONS = {"scaled_dot_product_attention", "multi_head_attention_forward"}
_UPSAMPLINGS = {"interpolate", "upsample", "pixel_shuffle"}
_DROPOUTS = {"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"}
# Samples, of which stochastic depth drops whole ones, channels and values.
_TRIED = torch.Size((64, 4, 4))
_PRODUCTS = {"matmul", "bmm", "__matmul__", "baddbmm"}


@dataclass
class Run:
    """What one module did."""

    order: int
    calls: int = 0
    input: list[int] = field(default_factory=list)
    output: list[int] = field(default_factory=list)
    masked: bool = False
    after: str | None = None
    dropout: str | None = None
    axis: int | None = None
    # Of each call's input, over its samples: variance and mean (C,).
    steps: list[tuple[Tensor, Tensor]] = field(default_factory=list)


class Log(TorchFunctionMode):
    """Notes which modules and functions run, in order, while it is entered."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.norms = {id(found.module): found for found in find(model)}
        self.weighted = {id(module): names for names, module in _weighted(model, self.norms)}
        self.runs: dict[int, Run] = {}
        self.activations: Counter[str] = Counter()
        self.residual_adds = self.concatenations = self.attentions = self.upsamplings = 0
        self.dropout = 0.0
        self._softmaxes: list[weakref.ref[Tensor]] = []
        self.lineage = Lineage()
        # How many of the watched layers are running: what they do inside is theirs.
        self._inside = 0
        self._model = model
        self._stack = ExitStack()

    def __enter__(self) -> Log:
        names = {id(module): name for name, module in self._model.named_modules()}
        for module in self._model.modules():
            if id(module) in self.norms or id(module) in self.weighted:
                name = names[id(module)]
                before = module.register_forward_pre_hook(self.before(id(module)), with_kwargs=True)
                after = module.register_forward_hook(self._after(id(module), name), with_kwargs=True)
                self._stack.callback(before.remove)
                self._stack.callback(after.remove)
            elif (rate := dropout_rate(module)) > 0:
                self.dropout = max(self.dropout, rate)
                handle = module.register_forward_hook(self._drops(names[id(module)]))
                self._stack.callback(handle.remove)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        try:
            super().__exit__(*error)
        finally:
            self._stack.close()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        outside = not self._inside and name != "__get__"
        axes, makers = (self.lineage.axes_of(args), self.lineage.makers(args)) if outside else ([], [])
        dropout = self.lineage.dropout_of(args) if outside else None
        result = func(*args, **(kwargs or {}))
        if makers and tensors_in(result):
            self.lineage.uses.update(makers)
        if outside and name in _DROPOUTS and (rate := _rate_of(args, kwargs)) > 0:
            # One without a module; a module's own hook says its name afterwards.
            result, dropout, self.dropout = _another(result, args), "", max(self.dropout, rate)
        if dropout is not None:
            self.lineage.drop(result, dropout)
        if axes:
            self.lineage.follow(name, args, kwargs, axes, result)
        plain = name.rstrip("_")
        if plain in _ACTIVATIONS:
            self.activations[plain] += 1
        elif name in _ADDITIONS:
            self.residual_adds += _adds_activations(args)
        elif name in _CONCATENATIONS:
            self.concatenations += _joins_activations(args, kwargs)
        elif name in _ATTENTIONS:
            self.attentions += 1
        elif name in _UPSAMPLINGS:
            self.upsamplings += 1
        elif plain == "softmax" and isinstance(result, Tensor) and result.ndim >= 3:
            self._softmaxes.append(weakref.ref(result))
        elif name in _PRODUCTS:
            # Attention written out: a softmax that weighs values.
            self.attentions += any(args and ref() is args[0] for ref in self._softmaxes)
        return result

    def named(self) -> Iterator[tuple[int, str]]:
        """The watched layers' names, by which their outputs are known."""
        yield from ((key, found.names[0]) for key, found in self.norms.items())
        yield from ((key, names[0]) for key, names in self.weighted.items())

    def before(self, key: int) -> Callable[..., None]:
        """The hook in front of a watched layer."""

        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            run = self.runs.setdefault(key, Run(len(self.runs)))
            run.calls += 1
            x = input_of(args, kwargs)
            if not self._inside:
                self.lineage.uses.update(self.lineage.makers(args))
            self._inside += 1
            if x is not None:
                if run.calls == 1:
                    run.input, run.after = list(x.shape), self.lineage.maker(x)
                    run.dropout = self.lineage.dropout_of(x)
                    self._tell_channels(module, run.after)
                run.axis = self.lineage.axis(x)
            if key in self.norms and x is not None and x.ndim == 2 and x.is_floating_point() and len(x) > 1:
                run.steps.append(torch.var_mean(x.detach().float(), 0))
            run.masked |= kwargs.get("mask") is not None or kwargs.get("lengths") is not None

        return hook

    def _after(self, key: int, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            self._inside -= 1
            dropout = self.lineage.dropout_of((args, tuple(kwargs.values()))) if key in self.weighted else None
            if dropout is not None:
                self.lineage.drop(output, dropout)
            made = tensors_in(output)
            if made:
                run = self.runs[key]
                run.output = run.output or list(made[0].shape)
                self.lineage.mark(made[0], name, _channels_of(module, run.axis, made[0]))

        return hook

    def _drops(self, name: str) -> Callable[..., Any]:
        def hook(_: nn.Module, args: tuple, output: Any) -> Any:
            output = _another(output, args)
            self.lineage.drop(output, name)
            for tensor in tensors_in(output):
                self.lineage.mark(tensor, None, self.lineage.axis(tensor))
            return output

        return hook

    def _tell_channels(self, module: nn.Module, after: str | None) -> None:
        """A convolution says where the channels of what it takes are: of a norm's output, too."""
        if after is None or not isinstance(module, CONVOLUTIONS):
            return
        for key, found in self.norms.items():
            run = self.runs.get(key)
            if after in found.names and run is not None and run.axis is None and len(run.input) > 2:
                run.axis = 1


def _rate_of(args: tuple, kwargs: Any) -> float:
    rate = args[1] if len(args) > 1 else (kwargs or {}).get("p", 0.5)
    return float(rate) if isinstance(rate, float | int) else 0.0


def _another(output: Any, args: tuple) -> Any:
    """Dropout in evaluation mode may hand its input on, which others take as well: what comes out is another tensor."""
    handed_on = isinstance(output, Tensor) and any(output is arg for arg in args)
    return output.view_as(output) if handed_on else output


def dropout_rate(module: nn.Module) -> float:
    """The share of values that a module drops in training: torch's kinds, and what is found to do so when tried."""
    if isinstance(module, DROPOUTS):
        return float(module.p)
    parts = (module.children(), module.parameters(), module.buffers())
    known = type(module).__module__.startswith("torch.nn") or isinstance(module, torch.jit.ScriptModule)
    if known or any(next(iter(part), None) is not None for part in parts):
        return 0.0
    # A shallow copy shares the lists and the like in which a module may note down its calls: they are put back.
    twin = copy.copy(module)
    values = {}
    with torch.no_grad(), keeping_random_state(), left_alone(module), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for twin.training in (False, True):
            try:
                values[twin.training] = type(twin).forward(twin, torch.ones(_TRIED))
            except Exception:
                return 0.0
    return _share_dropped(values[False], values[True])


def _share_dropped(evaluation: Any, training: Any) -> float:
    """The zeros among the ones that a module was given, if evaluation keeps all of them."""
    kept = isinstance(evaluation, Tensor) and evaluation.shape == _TRIED and bool((evaluation == 1).all())
    if not kept or not isinstance(training, Tensor) or training.shape != _TRIED:
        return 0.0
    dropped = training == 0
    # What is not dropped is all kept, or all scaled alike.
    return float(widened(dropped).mean()) if training[~dropped].unique().numel() <= 1 else 0.0


def _channels_of(module: nn.Module, axis: int | None, made: Tensor) -> int | None:
    """On which axis of what a layer made its channels are; ``axis`` is that of its input."""
    if made.ndim < 3:
        return None
    if isinstance(module, CONVOLUTIONS):
        return 1
    if isinstance(module, (*RECURRENT, nn.MultiheadAttention)):
        return made.ndim - 1
    # A linear layer over another axis than the channels' leaves these where they are.
    return axis if axis is not None else made.ndim - 1 if isinstance(module, nn.Linear) else None


def _adds_activations(args: tuple) -> bool:
    if len(args) < 2 or not all(isinstance(a, Tensor) and not isinstance(a, nn.Parameter) for a in args[:2]):
        return False
    return args[0].ndim >= 2 and args[0].shape == args[1].shape


def _joins_activations(args: tuple, kwargs: Any) -> bool:
    """Whether two activations or more are put side by side on another axis than the samples'."""
    joined = args[0] if args else (kwargs or {}).get("tensors", ())
    axis = args[1] if len(args) > 1 else (kwargs or {}).get("dim", (kwargs or {}).get("axis", 0))
    activations = [t for t in joined if t.ndim >= 2 and t.is_floating_point() and not isinstance(t, nn.Parameter)]
    return axis != 0 and len(activations) >= 2


def _weighted(model: nn.Module, norms: Mapping[int, Found]) -> Iterator[tuple[list[str], nn.Module]]:
    """Layers with a matrix or kernel of their own, by all their names; embeddings look up and do not mix."""
    inside = {id(part) for found in norms.values() for part in found.module.modules()}
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(name)
    for module in model.modules():
        if id(module) not in inside and not isinstance(module, nn.Embedding | nn.EmbeddingBag) and _mixes(module):
            yield names[id(module)], module


def _mixes(module: nn.Module) -> bool:
    if isinstance(module, torch.jit.ScriptModule):
        return False  # takes no hooks, so nothing can be seen of it
    if isinstance(module, (*RECURRENT, nn.MultiheadAttention)) or weight_norms(module):
        return True
    own = getattr(module, "parametrizations", None)
    if own is not None:
        return any(p.ndim >= 2 for p in own.parameters())
    return not module._modules and any(p.ndim >= 2 for p in module.parameters(recurse=False) if not is_lazy(p))


def is_lazy(tensor: Tensor) -> bool:
    """Whether a parameter waits for its first data."""
    return torch.nn.parameter.is_lazy(tensor)
