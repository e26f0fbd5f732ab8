"""Convert the normalization of a model that exists to another method of the family."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from normwise.arguments.methods import method_from
from normwise.errors import InputError, blaming
from normwise.methods import METHODS, Method
from normwise.nn import parse_spec
from normwise.nn._checks import batches_given, callable_given, came, model_given, number_given, optimizer_given
from normwise.nn.own import Given, named
from normwise.parametrize._splits import splits
from normwise.surgery import weights
from normwise.surgery.build import Built, build, refusal, unneeded
from normwise.surgery.carry import folds
from normwise.surgery.causality import guessed, leaks, sights, told
from normwise.surgery.conversion import Conversion, Drift, Record, Replacement
from normwise.surgery.exchange import Exchange, Pair, spatial_axes, with_channels
from normwise.surgery.layers import Found, Where, chosen, find, matches, not_understood
from normwise.surgery.layouts import ChannelAffine, core
from normwise.surgery.optimizer import Arrival, remap
from normwise.surgery.order import Order, by_position
from normwise.surgery.refit import refit
from normwise.surgery.running import Forward, Left, drift, evaluating, feed, run_on, unwrapped, working_copy


def convert(
    model: torch.nn.Module,
    to: Given,
    *,
    where: Where = None,
    optimizer: torch.optim.Optimizer | None = None,
    example_inputs: Any = None,
    calibrate_with: Iterable[Any] | None = None,
    forward: Forward | None = None,
    copy: bool = False,
    strict: bool = True,
    share: float | None = None,
    allow_leak: bool = False,
    **options: Any,
) -> Conversion:
    """Replace a model's normalization layers by those of another method.

    Layers are found by type and behaviour: torch's, ours, timm's (their activation stays), synchronized and frozen
    batch norms, hand-written layer and RMS norms. The new layers hold the *same* weight and bias parameters, and carry
    statistics where they mean the same, eps, momentum, device, dtype, mode, ``requires_grad``, hooks, and that a layer
    was frozen. A shared layer is replaced once and stays shared. Group counts are chosen per layer by
    :func:`normwise.nn.groups_for`.

    ``"none"`` leaves a weight and bias per channel; stored statistics enter them, so that in evaluation a batch norm's
    function stays exactly. ``"weight"`` does the same and puts weight norm on convolutions and linear layers; any other
    method takes it off again where it finds places that ``"weight"`` left.

    With ``calibrate_with`` weight and bias of each new layer are fitted by least squares so that its output matches the
    old layer's per channel, layer by layer in the order in which they run. Running statistics that could not be carried
    are measured on the same data.

    Args:
        model: changed in place.
        to: a key of ``METHODS``, which may bring its options along: ``"group(num_groups=8)"``. Or a method of your own:
            a :class:`normwise.methods.Method`, ``lambda channels: MyLayer(channels)``, ``"my_file.py:MyMethod"``. Its
            layers get the old weight and bias if theirs, too, only scale and shift each channel.
        where: a name pattern such as ``"backbone.*"`` or a predicate ``(name, module) -> bool``; default every layer.
        optimizer: the model's; parameters that leave are taken out of it, new ones join the group of those that they
            replace, with their state where it has the same shape.
        example_inputs: a tensor, a tuple of arguments or a mapping of named ones; to measure the drift with, in
            evaluation mode. Default the first batch of ``calibrate_with``.
        calibrate_with: gives batches; read once per layer, or kept in memory where it can be read only once.
        forward: ``(model, batch) -> anything`` runs the model on a batch of ``calibrate_with``; the default takes
            tensors, (input, target) pairs and mappings.
        copy: leave ``model`` alone and convert a deep copy.
        strict: refuse, before anything is changed, if a layer that ``where`` chose cannot be converted; else leave it
            and say why in the record.
        share: the initial share of the old method in a switchable mix, default equal shares.
        allow_leak: let a causal model see what it is to predict. By default a conversion is refused if outputs at
            earlier positions move when only the last one changes, in training or evaluation, and did not before; for
            that it takes ``example_inputs`` or ``calibrate_with``, and of a model that is called with token numbers
            alone it makes some up. Methods that normalize each token by itself are never refused.
        **options: of the new layers: ``num_groups``, ``over``, ``variance``, …

    Returns:
        The conversion: ``.model``, ``.record``, ``.undo()``; printed, a table.

    Raises:
        InputError: unknown method or option, an argument of the wrong kind, nothing to convert, a layer that cannot be
            (``strict``), a model that cannot be copied (``copy``), or one with lazy layers that have seen no data;
            those of a copy are settled on the given data.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 48, 3), torch.nn.BatchNorm2d(48), torch.nn.ReLU())
        >>> convert(model, "group").model[1]
        GroupNorm(24, 48, eps=1e-05, affine=True, bias=True)
    """
    model_given(model, "convert")
    optimizer_given(optimizer, "convert")
    callable_given(forward, "convert", "forward")
    if calibrate_with is not None:
        batches_given(calibrate_with, "convert", "calibrate_with")
    to, own, options = _asked(to, options)
    if copy and optimizer is not None:
        raise InputError("copy=True leaves the model to its optimizer: give optimizer= only for a conversion in place")
    if share is not None:
        number_given(share, "share")
        if not 0 < share < 1:
            raise InputError(f"share must lie between 0 and 1, got {share}")
    order = Order(to, options, affine=calibrate_with is not None, share=share, own=own)
    batches, run = _data(calibrate_with, example_inputs, forward or feed)
    model = working_copy(model, copy, "convert", run)
    body = unwrapped(model)
    found, left = _plan(body, order, where, strict, run)
    pairs, accounts = _built(body, found, order, run)
    exchange = Exchange(body, pairs)
    record = Record(to, accounts, left)
    looks = None if allow_leak or all(by_position(f.layer, order) for f, _ in found) else run or _guess(body)
    seen = {} if looks is None else sights(body, looks.forward, looks.batch)
    conversion = Conversion(exchange, model, record)
    try:
        new_body = exchange.put_new()
        conversion.model = new_body if model is body else model
        reweighted = _reweight(new_body, order, where, pairs, bool(left))
        conversion._undo += reweighted.undo
        conversion._splits = reweighted.splits
        record.weights, record.left = reweighted.names, record.left + reweighted.left
        _tell_optimizer(conversion, optimizer, reweighted)
        if looks is not None and any(sight.causal for sight in seen.values()):
            _refuse_leak(to, leaks(seen, sights(unwrapped(conversion.model), looks.forward, looks.batch)))
        with exchange.comparing(), nullcontext() if own is None else blaming(f"{to} fails in this model"):
            raw = None if run is None else _measure(exchange, run, record, "drift")
            if batches is not None:
                record.left += refit(exchange, batches, forward or feed)
                if run is not None:
                    _measure(exchange, run, record, "refitted", raw)
    except BaseException:
        conversion.undo()
        raise
    return conversion


def _asked(to: Any, options: dict[str, Any]) -> tuple[str, Given | None, dict[str, Any]]:
    """The name of a method, the method itself if it is one's own, and options."""
    if not (isinstance(to, str | Method) or callable(to)) or isinstance(to, torch.nn.Module):
        raise InputError(
            f"convert expected to= as the name of a method, one of {', '.join(METHODS)}, got {came(to)}: write "
            'convert(model, "group"); for layers of your own convert(model, lambda channels: MyLayer(channels))'
        )
    ((name, given),) = named([to], reserved=METHODS).items()
    given = method_from(given) if isinstance(given, str) else given
    if not isinstance(given, str):
        return name, given, options
    name, told = parse_spec(given)
    if name not in METHODS:
        known = ", ".join(METHODS)
        raise InputError(f"unknown method {name!r}: expected one of {known}; or one of your own: my_file.py:NAME")
    return name, None, told | options


@dataclass(frozen=True)
class _Sample:
    """What a model is run on to see what became of it."""

    forward: Forward
    batch: Any

    def __call__(self, model: torch.nn.Module) -> Any:
        return self.forward(model, self.batch)


def _data(
    calibrate_with: Iterable[Any] | None, example_inputs: Any, forward: Forward
) -> tuple[Iterable[Any] | None, _Sample | None]:
    """The batches, to be read several times; and the examples to run a model on, else the first of these."""
    batches = calibrate_with
    if batches is not None and iter(batches) is batches:
        batches = list(batches)
    if example_inputs is not None:
        return batches, _Sample(run_on, example_inputs)
    if batches is None:
        return None, None
    first = next(iter(batches), None)
    if first is None:
        raise InputError("calibrate_with gave no batches")
    return batches, _Sample(forward, first)


def _guess(body: torch.nn.Module) -> _Sample | None:
    """Token numbers where nobody gave examples: enough to see what a model of tokens may look at."""
    tokens = guessed(body)
    return None if tokens is None else _Sample(run_on, tokens)


def _refuse_leak(to: str, moved: dict[str, float]) -> None:
    if moved:
        raise InputError(
            f"the model is causal, and with {to} norm it would see what it is to predict: {told(moved)}. "
            "Nothing was changed: keep layers that normalize each token "
            "by itself (normwise.nn.LayerNorm, RMSNorm), or give allow_leak=True"
        )


def _plan(
    body: torch.nn.Module, order: Order, where: Where, strict: bool, run: Callable | None
) -> tuple[list[tuple[Found, set[int]]], list[Left]]:
    """Which layers to replace, with the axes seen of their input, and which stay and why."""
    wanted = list(chosen(body, where))
    axes: dict[int, set[int]] = {}
    if run is not None:
        with evaluating(body):
            axes = spatial_axes(wanted, lambda: run(body))
            wanted = with_channels(wanted, lambda: run(body))
    replace, left, refused = [], [], []
    for found in wanted:
        seen = axes.get(id(found.module), set())
        reason = refusal(found.layer, order, seen)
        idle = None if reason else unneeded(found.module, found.layer, order)
        if reason is None and idle is None:
            replace.append((found, seen))
        else:
            left.append(Left(found.names[0], reason or idle or ""))
            refused += [left[-1]] if reason else []
    left += [
        Left(name, "it is called a norm, and what it computes is not understood")
        for name, module in not_understood(body)
        if where is None or matches(where, name, module)
    ]
    if refused and strict:
        listed = "; ".join(f"{x.layer or type(body).__name__}: {x.reason}" for x in refused)
        raise InputError(
            f"cannot convert {len(refused)} of {len(wanted)} layers to {order.to} norm: {listed}. Nothing was changed: "
            "leave them out with where=, or give strict=False to leave them as they are"
        )
    if not wanted and (order.own is not None or not order.traits.only_affine):
        raise InputError(_nothing(body, order.to, where))
    return replace, left


def _nothing(body: torch.nn.Module, to: str, where: Where) -> str:
    """Why there is nothing to convert."""
    names = [found.names[0] for found in find(body)]
    if names:
        return f"where={where!r} matches none of the {len(names)} normalization layers: {', '.join(names[:8])}, …"
    if any(True for module in body.modules() for _ in splits(module)):
        return (
            f"{type(body).__name__} has weight norm only, and no place for {to} norm: take it off with to='none', then "
            "put layers where you want them (normwise.nn.norm_layer)"
        )
    return f"{type(body).__name__} has no normalization layer"


def _built(
    body: torch.nn.Module, found: Sequence[tuple[Found, set[int]]], order: Order, run: Callable | None
) -> tuple[list[Pair], list[Replacement]]:
    like = next((p for p in body.parameters() if p.is_floating_point()), None)
    pairs, accounts = [], []
    for f, axes in found:
        try:
            built = build(unwrapped(f.module), f.layer, order, axes, like)
        except TypeError as error:
            raise InputError(f"{order.to} norm does not take these options: {error}") from error
        pairs.append(Pair(f, built.module))
        accounts.append(_account(f, built))
    return pairs, accounts


def _account(found: Found, built: Built) -> Replacement:
    return Replacement(
        list(found.names), type(found.module).__name__, type(core(built.module)).__name__, built.carried, built.lost
    )


def _reweight(
    body: torch.nn.Module, order: Order, where: Where, pairs: Sequence[Pair], idle: bool
) -> weights.Reweighted:
    """Put weight norm on or take it off, as the method asks."""

    def meant(name: str, module: torch.nn.Module) -> bool:
        return where is None or matches(where, name, module)

    if order.own is None and order.traits.on_weights:
        done = weights.put_on(body, meant)
        if not (done.names or done.left or pairs):
            raise InputError("weight norm acts on convolutions and linear layers, and where= chose none")
        return done
    places = any(isinstance(p.old, ChannelAffine) and METHODS[p.old.method].on_weights for p in pairs)
    bare = order.own is None and order.traits.only_affine
    done = weights.take_off(body, meant) if places or bare else weights.Reweighted()
    if bare and not (pairs or done.names or idle):
        raise InputError(_nothing(body, order.to, where))
    return done


def _tell_optimizer(
    conversion: Conversion, optimizer: torch.optim.Optimizer | None, reweighted: weights.Reweighted
) -> None:
    """Exchange the parameters in the optimizer; without one, say so where it matters."""
    pairs, to = conversion._exchange.pairs, conversion.record.to
    gone, arrivals = list(reweighted.gone), list(reweighted.arrivals)
    for pair in pairs:
        old, new = (dict(m.named_parameters()) for m in (pair.old, pair.new))
        before, kept = ({id(p) for p in parameters.values()} for parameters in (old, new))
        gone += [p for p in old.values() if id(p) not in kept]
        for name, parameter in new.items():
            if id(parameter) not in before:
                beside = tuple(old[n] for n in (name, *pair.found.layer.names) if n in old)
                heir = name in old and folds(pair.found.layer, to)
                arrivals.append(Arrival(f"{pair.name}.{name}", parameter, beside, heir))
    if optimizer is not None:
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if not any(id(p) in held for p in (*conversion.model.parameters(), *gone)):
            raise InputError("optimizer= holds none of the model's parameters: give the one that trains this model")
        conversion._undo.append(remap(optimizer, gone, arrivals))
    if (gone or arrivals) and isinstance(conversion.model, torch.nn.parallel.DistributedDataParallel):
        conversion.record.notes.append(
            "DistributedDataParallel does not know the new parameters, which would drift apart: wrap the model anew"
        )
    if optimizer is None and (gone or arrivals):
        conversion.record.notes.append(
            f"{len(gone)} parameters left and {len(arrivals)} came: an optimizer made before needs optimizer="
        )


def _measure(exchange: Exchange, run: Callable, record: Record, name: str, old: Any = None) -> Any:
    """Fill in the drifts, and give what the old network put out, for the next time."""
    old = exchange.outputs("old", run) if old is None else old
    own = exchange.own_drifts(run)
    here, result = exchange.outputs("new", run)
    for account, pair in zip(record.replaced, exchange.pairs, strict=True):
        if pair.name in own:
            before, after = old[0][pair.name], here.get(pair.name, [])
            place = drift(before, after) if len(before) == len(after) else math.inf
            setattr(account, name, Drift(own[pair.name], place))
    total = drift(old[1], result)
    if total is None and name == "drift":
        record.notes.append("the model's output holds no tensors that are known of: its drift was not measured")
    if name == "drift":
        record.output_drift = total
    else:
        record.output_refitted = total
    return old
