"""Weight norm: magnitude and direction of a weight, learned apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize

from normwise.errors import InputError
from normwise.parametrize._copies import held_weight, make_copyable, refresh


class WeightNorm(torch.nn.Module):
    """The parametrization w = g · v / ‖v‖; see :func:`weight_norm`.

    Example:
        >>> WeightNorm(dim=0, eps=1e-12)(torch.tensor([[2.0]]), torch.tensor([[3.0]]))
        tensor([[2.]])
    """

    def __init__(self, dim: int | None, eps: float) -> None:
        super().__init__()
        self.dim = dim
        self.eps = eps

    def forward(self, g: Tensor, v: Tensor) -> Tensor:
        """Join magnitude and direction."""
        norm = self._norm(v)
        # A direction of no length gives a weight of 0 and finite gradients, never 0 / 0.
        return (v * (g.to(norm.dtype) / torch.where(norm > self.eps, norm, 1.0))).to(v.dtype)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Split a weight into magnitude and direction."""
        norm = self._norm(weight)
        # A row of zeros gets some direction: with g = 0 it stays exactly zero, and can still learn to be something.
        direction = torch.where(norm > self.eps, weight, torch.ones_like(weight))
        return norm.to(weight.dtype), direction

    def _norm(self, v: Tensor) -> Tensor:
        # In float32 at least: the sum of squares of a long float16 row overflows.
        v = v if v.dtype == torch.float64 else v.float()
        if self.dim is None:
            return torch.linalg.vector_norm(v)
        axes = tuple(a for a in range(v.ndim) if a != self.dim % v.ndim)
        return torch.linalg.vector_norm(v, dim=axes, keepdim=True) if axes else v.abs()

    def extra_repr(self) -> str:
        """Describe the parametrization in ``print(model)``."""
        return f"dim={self.dim}, eps={self.eps}"


def weight_norm(
    module: torch.nn.Module, name: str = "weight", dim: int | None = 0, eps: float = 1e-12
) -> torch.nn.Module:
    """Split a weight into magnitude g and direction v (Salimans & Kingma 2016, arXiv 1602.07868).

    Formula: w = g · v / ‖v‖, the norm taken over all axes but ``dim``, in float32 at least. g and v become
    ``module.parametrizations.<name>.original0`` and ``original1``, the keys of ``torch.nn.utils.parametrizations``.
    State dicts with ``<name>_g`` and ``<name>_v``, torch's older keys, load too, and so does a plain ``<name>``. A row
    of zeros stays zero with finite gradients, where torch's gives NaN. The module can be copied and pickled;
    :func:`remove_weight_norm` undoes it. Build the optimizer afterwards: g and v are new parameters.

    Args:
        module: holds the weight; changed in place.
        name: the parameter's name.
        dim: the axis along which each slice has its own magnitude; ``None`` for one magnitude of the whole weight.
        eps: a direction no longer than this counts as having no length.

    Returns:
        The module.

    Raises:
        InputError: there is no such parameter or axis, or it is parametrized already, or eps is negative.

    Example:
        >>> layer = weight_norm(torch.nn.Linear(4, 3))
        >>> layer.parametrizations.weight.original0.shape
        torch.Size([3, 1])
    """
    _check(module, name, dim, eps, type(module).__name__)
    parametrize.register_parametrization(module, name, WeightNorm(dim, eps), unsafe=True)
    make_copyable(module)
    module._register_load_state_dict_pre_hook(partial(_split_on_load, name), with_module=True)
    refresh(module)
    return module


def _check(module: torch.nn.Module, name: str, dim: int | None, eps: float, title: str) -> None:
    weight = held_weight(module, name, title)
    if dim is not None and not -weight.ndim <= dim < weight.ndim:
        raise InputError(f"dim={dim} is no axis of {name!r} of {title}, whose shape is {tuple(weight.shape)}")
    if eps < 0:
        raise InputError(f"eps must not be negative, got {eps}")
    if parametrize.is_parametrized(module, name):
        raise InputError(f"{name!r} of {title} is parametrized already: remove that first")


def weight_norms(module: torch.nn.Module) -> dict[str, WeightNorm]:
    """Give the weight norms of one module, without those of its children.

    Args:
        module: any module.

    Returns:
        Parameter name → its parametrization.

    Example:
        >>> weight_norms(weight_norm(torch.nn.Linear(4, 3)))
        {'weight': WeightNorm(dim=0, eps=1e-12)}
    """
    if not parametrize.is_parametrized(module):
        return {}
    steps: Any = module.parametrizations
    return {name: step for name, chain in steps.items() for step in chain if isinstance(step, WeightNorm)}


def weight_normalize(
    model: torch.nn.Module,
    where: Callable[[str, torch.nn.Module], bool] | None = None,
    *,
    eps: float = 1e-12,
) -> torch.nn.Module:
    """Split the weights of all linear, convolutional, transposed convolutional and recurrent layers of a model.

    Each output unit has its own magnitude: axis 0 of a weight, axis 1 of a transposed convolution's. Of recurrent
    layers and cells all matrices are split. What has weight norm already is left as it is.

    Args:
        model: changed in place; may be such a layer itself.
        where: ``where(name, module)`` says which of those layers to take; default all.
        eps: as in :func:`weight_norm`.

    Returns:
        The model.

    Raises:
        InputError: a weight is shared between layers, which splitting would tear apart, or cannot be split; the message
            names the layer, and nothing has been changed.

    Example:
        >>> model = weight_normalize(torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.LSTM(3, 2)))
        >>> sorted(weight_norms(model[1]))
        ['weight_hh_l0', 'weight_ih_l0']
    """
    chosen = [
        (path, module, name, dim)
        for path, module in list(model.named_modules())
        if where is None or where(path, module)
        for name, dim in matrices(module)
        if name not in weight_norms(module)
    ]
    owners: dict[int, set[str]] = {}
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            owners.setdefault(id(parameter), set()).add(f"{path}.{name}".lstrip("."))
    for path, module, name, dim in chosen:
        _check(module, name, dim, eps, f"layer {path!r} ({type(module).__name__})" if path else type(module).__name__)
        shared = owners.get(id(module._parameters.get(name)), set())
        if len(shared) > 1:
            raise InputError(
                f"{' and '.join(sorted(shared))} are one parameter, which weight norm would tear apart: leave the "
                "layer out with where=, or untie it first"
            )
    for _, module, name, dim in chosen:
        weight_norm(module, name, dim, eps)
    return model


def matrices(module: torch.nn.Module) -> Iterator[tuple[str, int]]:
    """The names of a layer's weights, with the axis of their output units."""
    if isinstance(module, _ConvTransposeNd):
        yield "weight", 1
    elif isinstance(module, (nn.Linear, _ConvNd)):
        yield "weight", 0
    elif isinstance(module, nn.RNNBase):
        yield from ((name, 0) for name in module._flat_weights_names if name.startswith("weight"))
    elif isinstance(module, nn.RNNCellBase):
        yield from (("weight_ih", 0), ("weight_hh", 0))


def remove_weight_norm(model: torch.nn.Module, name: str | None = None) -> torch.nn.Module:
    """Join g and v into plain weights again, which become new parameters with the same values.

    Args:
        model: changed in place, all its layers included.
        name: only weights of this name; default all.

    Returns:
        The model.

    Raises:
        InputError: there is no weight norm to remove, or another parametrization stands on the same weight.

    Example:
        >>> remove_weight_norm(weight_norm(torch.nn.Linear(4, 3)))
        Linear(in_features=4, out_features=3, bias=True)
    """
    found = [(m, n) for m in model.modules() for n in weight_norms(m) if name in (None, n)]
    if not found:
        what = "weight norm" if name is None else f"weight norm on any {name!r}"
        raise InputError(f"{type(model).__name__} has no {what} to remove")
    for module, weight in found:
        chain: Any = module.parametrizations[weight]  # type: ignore[index]
        if len(chain) > 1:
            kinds = ", ".join(type(step).__name__ for step in chain)
            raise InputError(f"{weight!r} has several parametrizations ({kinds}): removing one would drop the others")
    for module, weight in found:
        parametrize.remove_parametrizations(module, weight)
        hooks = module._load_state_dict_pre_hooks
        for key in [k for k, hook in hooks.items() if _is_split_hook(hook, weight)]:
            del hooks[key]
        refresh(module)
    return model


def _split_on_load(name: str, module: torch.nn.Module, state: MutableMapping[str, Any], prefix: str, *_: Any) -> None:
    """Bring torch's older keys, and a plain weight, to g and v before a state dict is loaded."""
    keys = [f"{prefix}parametrizations.{name}.original{k}" for k in (0, 1)]
    old = [f"{prefix}{name}_g", f"{prefix}{name}_v"]
    if old[0] in state and old[1] in state:
        state.update(zip(keys, (state.pop(key) for key in old), strict=True))
    elif f"{prefix}{name}" in state and keys[0] not in state:
        split = weight_norms(module)[name].right_inverse(state.pop(f"{prefix}{name}"))
        state.update(zip(keys, split, strict=True))


def _is_split_hook(hook: Any, name: str) -> bool:
    call = getattr(hook, "hook", hook)
    return isinstance(call, partial) and call.func is _split_on_load and call.args == (name,)
