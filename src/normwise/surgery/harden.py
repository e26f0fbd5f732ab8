"""Let each switchable layer become what it chose, and tell how far that moved it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from normwise.errors import InputError
from normwise.methods import METHODS, Switchable
from normwise.nn import SwitchableNorm
from normwise.nn._checks import callable_given, number_given
from normwise.surgery.build import build
from normwise.surgery.layers import Found, Where, chosen, replace
from normwise.surgery.order import Order
from normwise.surgery.running import Left, drift, evaluating, hooked, run_on, tensors_in, unwrapped, working_copy


@dataclass(frozen=True)
class Hardened:
    """What became of one switchable layer.

    ``members`` and the weights are what it had learned, ``kept`` the members that stayed. ``drift`` is the root mean
    square of the change of the layer's output on the same input, over that of the output; ``None`` without example
    inputs, or if it did not run.
    """

    layer: str
    members: list[str]
    mean_weights: list[float]
    var_weights: list[float]
    kept: list[str]
    drift: float | None = None

    @property
    def became(self) -> str:
        """The method's name, or ``"switchable"`` for a mixture."""
        return self.kept[0] if len(self.kept) == 1 else Switchable.name


@dataclass(frozen=True)
class Hardening:
    """What :func:`harden` did; ``print`` it for a table.

    Example:
        >>> row = Hardened("norm1", ["layer", "batch"], [0.1, 0.9], [0.2, 0.8], ["batch"], drift=0.1)
        >>> print(Hardening([row], [], drift=0.05))
        hardened 1 of 1 switchable layers to a single method, output moved by 5.0%
          norm1 -> batch  shares of means 0.10 layer, 0.90 batch; of variances 0.20 layer, 0.80 batch  moved by 10.0%
    """

    layers: list[Hardened]
    left: list[Left]
    drift: float | None = None

    def __str__(self) -> str:
        """Give a table."""
        single = sum(len(row.kept) == 1 for row in self.layers)
        total = len(self.layers) + len(self.left)
        moved = "" if self.drift is None else f", output moved by {self.drift:.1%}"
        lines = [f"hardened {single} of {total} switchable layers to a single method{moved}"]
        for row in self.layers:
            shares = [
                ", ".join(f"{share:.2f} {name}" for name, share in zip(row.members, weights, strict=True))
                for weights in (row.mean_weights, row.var_weights)
            ]
            became = row.became if len(row.kept) == 1 else f"mixture of {', '.join(row.kept)}"
            moved = "" if row.drift is None else f"  moved by {row.drift:.1%}"
            lines.append(f"  {row.layer} -> {became}  shares of means {shares[0]}; of variances {shares[1]}{moved}")
        return "\n".join([*lines, *(f"  {left.layer} left alone: {left.reason}" for left in self.left)])


def harden(
    model: nn.Module,
    threshold: float = 0.75,
    example_inputs: Any = None,
    *,
    negligible: float = 0.1,
    where: Where = None,
    copy: bool = False,
    report: Callable[[Hardening], object] | None = None,
) -> nn.Module:
    """Replace each switchable layer by the method that its learned weights chose, so that it costs no more than that.

    A layer whose greatest share of the means and of the variances is the same member's, both at least ``threshold``,
    becomes that method's plain layer. Any other becomes a mixture of those members that have a share of at least
    ``negligible`` in either; the ratios among them stay. Weight, bias, running statistics, activation, mode and hooks
    are carried. The function changes by what the dropped members contributed: give ``example_inputs`` to be told how
    far, then :func:`calibrate`, and train a little where it matters. Batch norms that result can be folded. A single
    method normalizes by biased variances, also where the layer had ``variance="official"``.

    Args:
        model: changed in place.
        threshold: the share from which a member counts as chosen, above 0.5 to be a majority.
        example_inputs: a tensor, a tuple of arguments or a mapping of named ones, to measure the drift on.
        negligible: members below this share of both means and variances are dropped from a mixture.
        where: a name pattern or predicate ``(name, layer) -> bool``; default every switchable layer.
        copy: leave ``model`` alone and harden a deep copy.
        report: called with the :class:`Hardening`: ``print``, or a list's ``append``.

    Returns:
        The model, or the copy; the new layer where the model itself is a switchable layer.

    Raises:
        InputError: there is no switchable layer, or a share outside 0 to 1.

    Example:
        >>> from normwise.nn import SwitchableNorm2d
        >>> layer = SwitchableNorm2d(3)
        >>> _ = layer.mean_weight.data.copy_(torch.tensor([0.0, 0.0, 4.0]))
        >>> _ = layer.var_weight.data.copy_(torch.tensor([0.0, 1.0, 4.0]))
        >>> type(harden(nn.Sequential(layer))[0]).__name__
        'BatchNorm2d'
    """
    number_given(threshold, "threshold")
    number_given(negligible, "negligible")
    callable_given(report, "harden", "report")
    if not (0 <= threshold <= 1 and 0 <= negligible <= 1):
        raise InputError(f"threshold and negligible are shares from 0 to 1, got {threshold!r} and {negligible!r}")
    run = None if example_inputs is None else partial(run_on, example_inputs=example_inputs)
    model = working_copy(model, copy, "harden", run)
    body = unwrapped(model)
    found = [f for f in chosen(body, where) if isinstance(f.module, SwitchableNorm)]
    if not found:
        raise InputError(f"nothing to harden: {type(model).__name__} has no switchable layer that is meant by where=")
    left = [Left(f.names[0], f.layer.problem) for f in found if f.layer.problem is not None]
    found = [f for f in found if f.layer.problem is None]
    kept = [_kept(f.module, threshold, negligible) for f in found]
    new = [_built(f, members) for f, members in zip(found, kept, strict=True)]
    drifts: dict[nn.Module, float] = {}
    before = _observed(body, found, new, example_inputs, drifts) if example_inputs is not None else []
    layers = []
    for f, members, module in zip(found, kept, new, strict=True):
        old: Any = f.module
        means, variances = (shares.tolist() for shares in old.shares())
        layers.append(Hardened(f.names[0], list(old.over), means, variances, members, drifts.get(old)))
        body = replace(body, f.module, module)
        model = module if model is f.module else model
    if report is not None:
        report(Hardening(layers, left, _output_drift(body, before, example_inputs)))
    return model


def _kept(layer: Any, threshold: float, negligible: float) -> list[str]:
    """The members that stay."""
    means, variances = layer.shares()
    best = {int(means.argmax()), int(variances.argmax())}
    if len(best) == 1 and min(means.max().item(), variances.max().item()) >= threshold:
        return [layer.over[best.pop()]]
    relevant = {k for k in range(len(layer.over)) if max(means[k].item(), variances[k].item()) >= negligible}
    return [name for k, name in enumerate(layer.over) if k in relevant | best]


def _built(found: Found, members: list[str]) -> nn.Module:
    old: Any = found.module
    if members == list(old.over) and len(members) > 1 and old.sparsity is None:
        return old
    if len(members) == 1:
        options = {"num_groups": old.num_groups} if METHODS[members[0]].grouped else {}
        return build(old, found.layer, Order(members[0], options), set(), None).module
    options = {"over": tuple(members), "variance": old.variance, "num_groups": old.num_groups}
    new: Any = build(old, found.layer, Order(Switchable.name, options), set(), None).module
    kept = [old.over.index(name) for name in members]
    with torch.no_grad():
        for logits, was, share in zip(_mix(new), _mix(old), old.shares(), strict=True):
            # A sparse mix has no logits of a softmax; a share of 0 becomes one that is as good as 0 and can learn.
            logits.copy_(was[kept] if old.sparsity is None else share[kept].clamp_min(1e-8).log())
            logits.requires_grad_(was.requires_grad)
    return new


def _mix(layer: Any) -> tuple[nn.Parameter, nn.Parameter]:
    return layer.mean_weight, layer.var_weight


def _observed(
    model: nn.Module, found: list[Found], new: list[nn.Module], example_inputs: Any, drifts: dict[nn.Module, float]
) -> list[Tensor]:
    """Run the model as it is: its outputs, and how far each new layer is from the old one on the same input."""

    def compare(module: nn.Module, old: nn.Module, args: tuple, kwargs: dict, y: Tensor) -> None:
        # forward itself: the new layer has the old one's hooks, of which this is one.
        with evaluating(module):
            moved = drift(y, module.forward(*args, **kwargs))
        drifts[old] = max(moved or 0.0, drifts.get(old, 0.0))

    pairs = [(f.module, partial(compare, module)) for f, module in zip(found, new, strict=True)]
    with evaluating(model), hooked(pairs):
        return [t.clone() for t in tensors_in(run_on(model, example_inputs))]


def _output_drift(model: nn.Module, before: list[Tensor], example_inputs: Any) -> float | None:
    if example_inputs is None:
        return None
    with evaluating(model):
        return drift(before, tensors_in(run_on(model, example_inputs)))
