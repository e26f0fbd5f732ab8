"""What a model is, from one dry run: its layers in the order in which they run, and what is behind each statistic."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from normwise.findings import ModelFacts, NormFacts, WeightFacts
from normwise.nn._checks import callable_given, model_given, number_given
from normwise.parametrize import weight_norms
from normwise.probe.lineage import Lineage
from normwise.probe.padding import padded_share
from normwise.probe.places import elements_of_layer, input_of, sizes_of
from normwise.surgery._lazy import keeping_random_state as keeping_random_state
from normwise.surgery._lazy import left_alone, settled
from normwise.surgery.layers import Found, find
from normwise.surgery.running import Forward, evaluating, feed, run_on, tensors_in, unwrapped

ARCHITECTURES = ("generative", "recurrent", "attention", "conv", "mlp")

_RECURRENT = (nn.RNNBase, nn.RNNCellBase)
_CONVOLUTIONS = (nn.modules.conv._ConvNd,)
_TRANSPOSED = (nn.modules.conv._ConvTransposeNd,)
_ACTIVATIONS = {
    *("relu", "relu6", "leaky_relu", "prelu", "elu", "selu", "celu", "gelu", "silu", "mish", "sigmoid", "tanh"),
    *("hardswish", "hardsigmoid", "hardtanh", "softplus", "softsign"),
}
_ADDITIONS = {"add", "add_", "__add__", "__radd__", "__iadd__"}
_CONCATENATIONS = {"cat", "concat", "concatenate"}
_ATTENTIONS = {"scaled_dot_product_attention", "multi_head_attention_forward"}
_UPSAMPLINGS = {"interpolate", "upsample", "pixel_shuffle"}
_DROPOUTS = {"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"}
_PRODUCTS = {"matmul", "bmm", "__matmul__", "baddbmm"}
# A matrix that rows pass this often in one run is taken for a cell's, in a loop over time that somebody wrote out.
_STEPS = 4


def survey(
    model: nn.Module, example_inputs: Any, *, batch_size: int | None = None, forward: Forward | None = None
) -> ModelFacts:
    """Run a model once, quietly, and say what it is.

    The run is in evaluation mode without gradients: no buffer moves. Modes and the random state are as before. Lazy
    layers learn their sizes in a copy.

    Args:
        model: any module; wrappers (data-parallel, compiled) are looked through.
        example_inputs: a tensor, a tuple of arguments or a mapping of named ones; axis 0 counts samples.
        batch_size: samples per step and device that are meant; default those of the example.
        forward: ``(model, batch) -> output`` runs the model on ``example_inputs`` as on a loader's batch.

    Returns:
        The facts; ``norms`` and ``weights`` in the order in which they ran, those that did not run last.

    Raises:
        InputError: an argument is of the wrong kind, or lazy layers cannot be settled on the example.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        >>> facts = survey(model, torch.zeros(2, 3, 6, 6), batch_size=4)
        >>> facts.architecture, facts.norms[0].elements, facts.norms[0].after
        ('conv', 64, '0')
    """
    model_given(model, "survey")
    if batch_size is not None:
        number_given(batch_size, "batch_size", least=1, whole=True)
    callable_given(forward, "survey", "forward")
    body = unwrapped(model)

    def run(body: nn.Module) -> Any:
        return run_on(body, example_inputs) if forward is None else forward(body, example_inputs)

    body = settled(body, run)
    inputs = tensors_in(example_inputs)
    example = next((t.shape[0] for t in inputs if t.ndim), 1)
    log = Log(body)
    with left_alone(body), evaluating(body), keeping_random_state(), log:
        output = run(body)
    return facts_of(body, log, inputs, tensors_in(output), example, batch_size or example, padded_share(example_inputs))


def survey_batch(model: nn.Module, batch: Any, forward: Forward | None = None) -> ModelFacts:
    """Survey a model on a batch as its loader gives it, targets and all."""
    return survey(model, batch, forward=forward or feed)


@dataclass
class _Run:
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
        self.runs: dict[int, _Run] = {}
        self.activations: Counter[str] = Counter()
        self.residual_adds = self.concatenations = self.attentions = self.upsamplings = 0
        self._softmaxes: list[weakref.ref[Tensor]] = []
        self.lineage = Lineage()
        self._dropped: str | None = None
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
            elif dropout_rate(module):
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
        result = func(*args, **(kwargs or {}))
        if makers and tensors_in(result):
            self.lineage.uses.update(makers)
        if outside and name in _DROPOUTS and _rate_of(args, kwargs):
            # One without a module; a module's own hook says its name afterwards.
            self._dropped = ""
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
            run = self.runs.setdefault(key, _Run(len(self.runs)))
            run.calls += 1
            x = input_of(args, kwargs)
            if not self._inside:
                self.lineage.uses.update(self.lineage.makers(args))
            self._inside += 1
            if x is not None:
                if run.calls == 1:
                    run.input, run.after, run.dropout = list(x.shape), self.lineage.maker(x), self._dropped
                    self._tell_channels(module, run.after)
                run.axis = self.lineage.axis(x)
            if key in self.norms and x is not None and x.ndim == 2 and x.is_floating_point() and len(x) > 1:
                run.steps.append(torch.var_mean(x.detach().float(), 0))
            run.masked |= kwargs.get("mask") is not None or kwargs.get("lengths") is not None

        return hook

    def _after(self, key: int, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            self._inside -= 1
            if key in self.norms:
                self._dropped = None
            made = tensors_in(output)
            if made:
                run = self.runs[key]
                run.output = run.output or list(made[0].shape)
                self.lineage.mark(made[0], name, _channels_of(module, run.axis, made[0]))

        return hook

    def _drops(self, name: str) -> Callable[..., None]:
        """Dropout, also of a kind that hands its input on in evaluation mode: what comes out is another tensor."""

        def hook(_: nn.Module, args: tuple, output: Any) -> None:
            self._dropped = name
            for tensor in tensors_in(output):
                self.lineage.mark(tensor, None, self.lineage.axis(tensor))

        return hook

    def _tell_channels(self, module: nn.Module, after: str | None) -> None:
        """A convolution says where the channels of what it takes are: of a norm's output, too."""
        if after is None or not isinstance(module, _CONVOLUTIONS):
            return
        for key, found in self.norms.items():
            run = self.runs.get(key)
            if after in found.names and run is not None and run.axis is None and len(run.input) > 2:
                run.axis = 1


def _rate_of(args: tuple, kwargs: Any) -> float:
    rate = args[1] if len(args) > 1 else (kwargs or {}).get("p", 0.5)
    return float(rate) if isinstance(rate, float | int) else 0.0


def dropout_rate(module: nn.Module) -> float:
    """The share of values that a module of the dropout kind (torch's, stochastic depth) drops in training."""
    if "drop" not in type(module).__name__.lower() or next(module.children(), None) is not None:
        return 0.0
    rates = (getattr(module, name, None) for name in ("p", "drop_prob", "drop_rate"))
    return next((float(rate) for rate in rates if isinstance(rate, float | int)), 0.0)


def _channels_of(module: nn.Module, axis: int | None, made: Tensor) -> int | None:
    """On which axis of what a layer made its channels are; ``axis`` is that of its input."""
    if made.ndim < 3:
        return None
    if isinstance(module, _CONVOLUTIONS):
        return 1
    if isinstance(module, (*_RECURRENT, nn.MultiheadAttention)):
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
    if isinstance(module, (*_RECURRENT, nn.MultiheadAttention)) or weight_norms(module):
        return True
    own = getattr(module, "parametrizations", None)
    if own is not None:
        return any(p.ndim >= 2 for p in own.parameters())
    return not module._modules and any(p.ndim >= 2 for p in module.parameters(recurse=False) if not _is_lazy(p))


def _is_lazy(tensor: Tensor) -> bool:
    return torch.nn.parameter.is_lazy(tensor)


def facts_of(
    model: nn.Module,
    log: Log,
    inputs: list[Tensor],
    outputs: list[Tensor],
    example: int,
    batch_size: int,
    padded: float | None,
) -> ModelFacts:
    """Make facts of what a :class:`Log` noted."""
    norms = [_norm_facts(found, log.runs.get(key), batch_size / max(example, 1)) for key, found in log.norms.items()]
    modules = {id(module): module for module in model.modules()}
    calls = {name: log.runs[key].calls for key, name in log.named() if key in log.runs}
    alone = {name for name, taken in log.lineage.uses.items() if taken <= calls.get(name, 0)}
    norms = [replace(norm, alone=norm.after in alone) for norm in norms]
    behind = {norm.after: norm.name for norm in norms if norm.after is not None and norm.alone}
    weights = [_weight_facts(modules[k], names, log.runs.get(k), behind) for k, names in log.weighted.items()]
    for found in log.norms.values():
        if found.layer.activation is not None and id(found.module) in log.runs:
            log.activations[found.layer.activation] += 1
    upsamplings = log.upsamplings + sum(isinstance(modules[k], _TRANSPOSED) for k in log.weighted if k in log.runs)
    ran = [modules[k] for k in log.weighted if k in log.runs]
    looped = any(_is_step(modules[k], log.runs[k]) for k in log.weighted if k in log.runs)
    kinds = _kinds(ran, looped, log.attentions, upsamplings, inputs, outputs)
    return ModelFacts(
        model=type(model).__name__,
        architecture=next(kind for kind in ARCHITECTURES if kind in kinds),
        kinds=kinds,
        batch_size=batch_size,
        example_size=example,
        parameters=sum(p.numel() for p in model.parameters() if not _is_lazy(p)),
        depth=sum(1 for k in log.weighted if k in log.runs),
        inputs=[list(t.shape) for t in inputs],
        outputs=[list(t.shape) for t in outputs],
        norms=_in_order(norms),
        weights=_in_order(weights),
        activations=dict(log.activations),
        residual_adds=log.residual_adds,
        concatenations=log.concatenations,
        attentions=log.attentions,
        upsamplings=upsamplings,
        dropout=max((m.p for m in model.modules() if isinstance(m, nn.modules.dropout._DropoutNd)), default=0.0),
        padded=padded,
        tokens=any(t.ndim > 1 and not t.is_floating_point() and t.dtype != torch.bool for t in inputs),
    )


def joined(facts: ModelFacts, more: ModelFacts) -> ModelFacts:
    """Add what a further pass showed of layers that had not run before."""
    orders = [*(norm.order for norm in facts.norms), *(weight.order for weight in facts.weights)]
    after = max((order for order in orders if order is not None), default=-1) + 1

    def merged(old: list[Any], new: list[Any]) -> list[Any]:
        known = {layer.name: layer for layer in new if layer.order is not None}
        late = {name: replace(layer, order=layer.order + after) for name, layer in known.items()}
        return _in_order([late.get(layer.name, layer) if layer.order is None else layer for layer in old])

    weights = merged(facts.weights, more.weights)
    return replace(
        facts,
        norms=merged(facts.norms, more.norms),
        weights=weights,
        depth=sum(weight.order is not None for weight in weights),
        kinds=list(dict.fromkeys([*facts.kinds, *more.kinds])),
        activations={name: facts.activations.get(name, 0) + more.activations.get(name, 0) for name in facts.activations}
        | {name: n for name, n in more.activations.items() if name not in facts.activations},
    )


def _in_order(facts: list[Any]) -> list[Any]:
    ran = sorted((f for f in facts if f.order is not None), key=lambda f: f.order)
    return ran + [f for f in facts if f.order is None]


def _norm_facts(found: Found, run: _Run | None, scale: float) -> NormFacts:
    layer, module = found.layer, found.module
    facts = NormFacts(
        names=list(found.names),
        type=type(module).__name__,
        method=layer.method,
        order=None,
        calls=0,
        channels=layer.channels,
        eps=layer.eps,
        momentum=layer.momentum if layer.running_mean is not None else None,
        num_groups=layer.num_groups,
        per_token=layer.per_token,
        tracked=layer.running_mean is not None,
        frozen=layer.frozen,
        synced=layer.synced,
        affine=layer.weight is not None or layer.bias is not None,
    )
    if run is None or not run.input:
        return facts
    samples, channels, spatial = sizes_of(layer, run.input)
    # Rows of axis 0 grow with the batch, also where a model folds time or patches into it.
    samples = max(1, round(samples * scale))
    return replace(
        facts,
        order=run.order,
        calls=run.calls,
        channels=layer.channels or channels,
        shape=run.input,
        spatial=spatial,
        samples=samples,
        elements=elements_of_layer(layer, module, samples, spatial),
        masked=run.masked,
        after=run.after,
        dropout=run.dropout,
        channels_at=_passed_by(module, run),
        drift=_drift(run.steps, run.input[0]),
    )


def _passed_by(module: nn.Module, run: _Run) -> int | None:
    """The channels' axis, where a plain layer norm over one axis normalizes over another."""
    plain = isinstance(module, nn.LayerNorm) and type(module).forward is nn.LayerNorm.forward
    if (
        not plain
        or len(getattr(module, "normalized_shape", ())) != 1
        or run.axis is None
        or run.axis == len(run.input) - 1
    ):
        return None
    return run.axis


def _drift(steps: list[tuple[Tensor, Tensor]], samples: int) -> float | None:
    """See :class:`normwise.findings.NormFacts`."""
    if len(steps) < _STEPS:
        return None
    inside, means = (torch.stack(each) for each in zip(*steps, strict=True))
    between, within = means.var(0).mean().item(), inside.mean().item()
    # Means of few samples differ by chance, by this much on average.
    chance = within / samples
    return max(0.0, between - chance) / (between + within) if between + within > 0 else 0.0


def _weight_facts(module: nn.Module, names: list[str], run: _Run | None, behind: Mapping[str, str]) -> WeightFacts:
    return WeightFacts(
        names=names,
        type=type(module).__name__,
        order=None if run is None else run.order,
        calls=0 if run is None else run.calls,
        shape=[] if run is None else run.output,
        bias=isinstance(getattr(module, "bias", None), Tensor),
        weight_norm=bool(weight_norms(module)),
        normalized_by=next((behind[name] for name in names if name in behind), None),
        fan_in=_fan_in(module),
    )


def _fan_in(module: nn.Module) -> int | None:
    """How many numbers an output is made from: of the first matrix or kernel, whose axis 0 counts outputs."""
    matrix = next((p for p in module.parameters() if p.ndim >= 2), None)
    if matrix is None or isinstance(module, _TRANSPOSED):
        return None
    return matrix[0].numel()


def _is_step(module: nn.Module, run: _Run) -> bool:
    return isinstance(module, nn.Linear) and run.calls >= _STEPS and len(run.input) == 2


def _kinds(
    ran: list[nn.Module],
    looped: bool,
    attentions: int,
    upsamplings: int,
    inputs: list[Tensor],
    outputs: list[Tensor],
) -> list[str]:
    known = {
        "generative": _gives_images(upsamplings, inputs, outputs),
        "recurrent": looped or any(isinstance(m, _RECURRENT) for m in ran),
        "attention": attentions > 0 or any(isinstance(m, nn.MultiheadAttention) for m in ran),
        "conv": any(isinstance(m, _CONVOLUTIONS) for m in ran),
    }
    kinds = [kind for kind, applies in known.items() if applies]
    return kinds or ["mlp"]


def _gives_images(upsamplings: int, inputs: list[Tensor], outputs: list[Tensor]) -> bool:
    """Images come out: upsampled from a code, or with the channels and at least the size of the images that came in."""
    if not inputs or not outputs or outputs[0].ndim < 4:
        return False
    came, went = inputs[0], outputs[0]
    if came.ndim != went.ndim:
        return upsamplings > 0
    if came.shape[2:].numel() == 1:
        return went.shape[2:].numel() > 1
    return came.shape[1] == went.shape[1] and went.shape[2:].numel() >= came.shape[2:].numel()
