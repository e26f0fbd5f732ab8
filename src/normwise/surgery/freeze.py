"""Freeze normalization layers so that they stay frozen, and prove afterwards that nothing moved."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from normwise.errors import InputError, NormwiseError
from normwise.kernels.reference import widened
from normwise.nn._checks import model_given
from normwise.surgery.layers import Where, chosen
from normwise.surgery.running import refuse_lazy, uninitialized, working_copy

# Where a frozen layer keeps what ``unfreeze`` gives back. Plain data, so that copies and pickles stay frozen.
_MARK = "_normwise_frozen"


@dataclass(frozen=True)
class Moved:
    """Something of a frozen layer that is not as it was.

    ``change`` is the largest absolute difference, ``None`` where it is no number of the same shape that changed.
    """

    layer: str
    what: str
    change: float | None = None

    def __str__(self) -> str:
        """Name the layer and what moved."""
        return f"{self.layer}.{self.what}" + ("" if self.change is None else f" (by up to {self.change:.3g})")


def freeze(model: nn.Module, *, where: Where = None, affine: bool = True, copy: bool = False) -> nn.Module:
    """Hold normalization layers at their population statistics, whatever ``train()`` is called later.

    A frozen layer normalizes by its running averages in training too and updates neither them nor, with ``affine``,
    its parameters. It stays frozen under ``.train()``, in deep copies and in pickles; :func:`unfreeze` gives mode and
    ``requires_grad`` back, :func:`audit_frozen` proves that it did not move.

    Args:
        model: changed in place.
        where: a name pattern such as ``"backbone.*"`` or a predicate ``(name, layer) -> bool``; default every layer
            with running statistics. With ``where`` layers without statistics (group norm, …) are frozen too.
        affine: whether the layer's own parameters stop learning as well.
        copy: leave ``model`` alone and freeze a deep copy.

    Returns:
        The model, or the copy.

    Raises:
        InputError: no layer matches, or one is lazy and has seen no data; run one batch first.

    Example:
        >>> model = freeze(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).train()
        >>> model.training, model[1].training, model[1].weight.requires_grad
        (True, False, False)
    """
    model = working_copy(model, copy, "freeze")
    chosen = [layer for _, layer in _freezable(model, where)]
    if not chosen:
        raise InputError(f"nothing to freeze: no normalization layer of {type(model).__name__} {_meant(where)}")
    for layer in chosen:
        _freeze_layer(layer, affine)
    return model


def unfreeze(model: nn.Module, *, where: Where = None) -> nn.Module:
    """Undo :func:`freeze`: mode and ``requires_grad`` are again what they were.

    Args:
        model: changed in place.
        where: a name pattern or predicate; default every frozen layer.

    Returns:
        The model.

    Example:
        >>> model = freeze(nn.Sequential(nn.BatchNorm2d(4)))
        >>> unfreeze(model)[0].training
        True
    """
    model_given(model, "unfreeze")
    for found in chosen(model, where):
        if _MARK in found.module.__dict__:
            _unfreeze_layer(found.module)
    return model


def is_frozen(layer: nn.Module) -> bool:
    """Whether :func:`freeze` holds a layer, or its class does (such as torchvision's ``FrozenBatchNorm2d``).

    Args:
        layer: a module.

    Returns:
        The answer; a layer that was merely put into evaluation mode is not frozen: the next ``train()`` undoes that.

    Example:
        >>> is_frozen(nn.BatchNorm2d(3).eval()), is_frozen(freeze(nn.BatchNorm2d(3)))
        (False, True)
    """
    model_given(layer, "is_frozen")
    constant = isinstance(layer._buffers.get("weight"), Tensor) and "running_mean" in layer._buffers
    return _MARK in layer.__dict__ or constant


def frozen_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Find the layers that :func:`freeze` holds.

    Args:
        model: any module.

    Yields:
        Name and layer.

    Example:
        >>> [name for name, _ in frozen_layers(freeze(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU())))]
        ['0']
    """
    model_given(model, "frozen_layers")
    for name, module in model.named_modules():
        if _MARK in module.__dict__:
            yield name, module


@contextmanager
def statistics_paused(model: nn.Module, *, where: Where = None) -> Iterator[None]:
    """Keep running statistics and their counters as they are for a while; layers still normalize by the batch.

    For the second forward pass of sharpness-aware optimizers, for gradient checks and retries: what has counted once is
    not counted again.

    Args:
        model: any module.
        where: a name pattern or predicate ``(name, layer) -> bool``; default every layer with running statistics.

    Yields:
        Nothing.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.BatchNorm1d(2))
        >>> with statistics_paused(model):
        ...     _ = model(torch.randn(8, 2))
        >>> model[0].running_mean
        tensor([0., 0.])
    """
    model_given(model, "statistics_paused")
    found = [f.module for f in chosen(model, where) if isinstance(getattr(f.module, "running_mean", None), Tensor)]
    layers: list[Any] = [layer for layer in found if hasattr(layer, "momentum")]
    momenta = [layer.momentum for layer in layers]
    counters = [c for layer in layers if isinstance(c := getattr(layer, "num_batches_tracked", None), Tensor)]
    counts = [counter.clone() for counter in counters]
    try:
        for layer in layers:
            layer.momentum = 0.0
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for counter, before in zip(counters, counts, strict=True):
            counter.copy_(before)


class audit_frozen:  # noqa: N801 (used as a context manager, as torch.no_grad is)
    """Prove that frozen layers stay as they are, bit for bit, and name what does not.

    As a context manager it raises at the end if anything moved; else ask :meth:`moved` whenever you like. Parameters,
    statistics, counters, the mode and the layers themselves (not replaced, still frozen) are watched.

    Args:
        model: holds layers that :func:`freeze` froze.
        where: a name pattern or predicate of the layers to watch, frozen or not; default every frozen layer.

    Raises:
        InputError: there is nothing to watch.

    Example:
        >>> model = freeze(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)))
        >>> with audit_frozen(model):
        ...     model.train()(torch.randn(8, 2)).sum().backward()
        >>> audit = audit_frozen(model)
        >>> _ = model[1].running_mean.add_(0.5)
        >>> print(*audit.moved())
        1.running_mean (by up to 0.5)
    """

    def __init__(self, model: nn.Module, *, where: Where = None) -> None:
        model_given(model, "audit_frozen")
        self._model = model
        watched = dict(frozen_layers(model) if where is None else _freezable(model, where))
        if not watched:
            raise InputError("nothing to audit: no layer is frozen; call normwise.freeze(model) first, or give where=")
        self._layers = watched
        self._frozen = {name for name, layer in watched.items() if _MARK in layer.__dict__}
        self._before = {name: _state(layer) for name, layer in watched.items()}

    def moved(self) -> list[Moved]:
        """Compare with the beginning.

        Returns:
            What moved; empty where nothing did.
        """
        now = dict(self._model.named_modules(remove_duplicate=False))
        found = []
        for name, layer in self._layers.items():
            current = now.get(name)
            if current is not layer:
                found.append(Moved(name, f"removed: {type(current).__name__ if current else 'nothing'} stands there"))
                continue
            if name in self._frozen and (_MARK not in layer.__dict__ or layer.training):
                found.append(Moved(name, "training: the layer is no longer frozen"))
            found += _changes(name, self._before[name], _state(layer))
        return found

    def __enter__(self) -> audit_frozen:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        moved = self.moved() if kind is None else []
        if moved:
            raise NormwiseError(f"frozen layers moved: {', '.join(map(str, moved))}")


def _freezable(model: nn.Module, where: Where) -> Iterator[tuple[str, nn.Module]]:
    for found in chosen(model, where):
        if uninitialized(found.module):
            refuse_lazy(model, "freeze")
        if where is not None or (found.layer.running_mean is not None and not found.layer.frozen):
            yield found.names[0], found.module


def _meant(where: Where) -> str:
    return "keeps running statistics" if where is None else f"matches {where!r}"


def _freeze_layer(layer: nn.Module, affine: bool) -> None:
    own = dict(layer.named_parameters(recurse=False)) if affine else {}
    earlier: dict[str, Any] = layer.__dict__.get(_MARK, {"training": layer.training, "requires_grad": {}})
    asked = {name: p.requires_grad for name, p in own.items()} | earlier["requires_grad"]
    object.__setattr__(layer, _MARK, {"training": earlier["training"], "requires_grad": asked})
    for parameter in own.values():
        parameter.requires_grad_(False)
        # An optimizer would still step with a gradient that was left from before.
        parameter.grad = None
    layer.training = False
    object.__setattr__(layer, "train", functools.partial(_stay_in_eval, layer))


def _unfreeze_layer(layer: nn.Module) -> None:
    state = layer.__dict__.pop(_MARK)
    layer.__dict__.pop("train", None)
    layer.training = state["training"]
    for name, asked in state["requires_grad"].items():
        if name in layer._parameters and layer._parameters[name] is not None:
            layer._parameters[name].requires_grad_(asked)  # type: ignore[union-attr]


def _stay_in_eval(layer: nn.Module, mode: bool = True) -> nn.Module:
    """Stand in for ``layer.train``: the layer itself stays, what it holds (an activation) follows."""
    for child in layer.children():
        child.train(mode)
    return layer


def _state(layer: nn.Module) -> dict[str, Tensor]:
    own = {**dict(layer.named_parameters(recurse=False)), **dict(layer.named_buffers(recurse=False))}
    return {name: tensor.detach().clone() for name, tensor in own.items()}


def _changes(name: str, before: dict[str, Tensor], after: dict[str, Tensor]) -> Iterator[Moved]:
    for key in sorted({*before, *after}):
        old, new = before.get(key), after.get(key)
        if old is None or new is None or old.shape != new.shape or old.dtype != new.dtype:
            yield Moved(name, f"{key}: another tensor")
        elif not torch.equal(_bits(old), _bits(new)):
            yield Moved(name, key, (widened(new) - widened(old)).abs().max().item())


def _bits(tensor: Tensor) -> Tensor:
    """The bytes: NaN equals itself there, and 0 differs from −0."""
    return tensor.reshape(-1).cpu().view(torch.uint8)
