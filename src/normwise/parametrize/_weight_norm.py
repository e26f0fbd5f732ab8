"""Weight norm: magnitude and direction of a weight, learned apart."""

from __future__ import annotations

from collections.abc import MutableMapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import parametrize
from torch.nn.utils.weight_norm import WeightNorm as _WeightNormHook

from normwise.errors import InputError
from normwise.nn._checks import model_given, number_given
from normwise.parametrize._copies import held_weight, make_copyable, refresh


class WeightNorm(torch.nn.Module):
    """The parametrization w = g · v / ‖v‖; see :func:`weight_norm`.

    Example:
        >>> WeightNorm(dim=0, eps=1e-12)(torch.tensor([[2.0]]), torch.tensor([[3.0]]))
        tensor([[2.]])
    """

    def __init__(self, dim: int | None, eps: float) -> None:
        super().__init__()
        # Torch's sign for the whole weight; there is no axis -1 in its weight norms.
        self.dim = None if dim == -1 else dim
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
        dim: the axis along which each slice has its own magnitude; ``None``, or as in torch -1, for one magnitude of
            the whole weight.
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
    model_given(module, "weight_norm")
    check(module, name, dim, eps, type(module).__name__)
    put_on(module, name, WeightNorm(dim, eps))
    return module


def put_on(module: torch.nn.Module, name: str, norm: WeightNorm) -> None:
    """Parametrize a weight, so that copies, pickles and older checkpoints work."""
    parametrize.register_parametrization(module, name, norm, unsafe=True)
    make_copyable(module)
    module._register_load_state_dict_pre_hook(partial(_split_on_load, name), with_module=True)
    refresh(module)


def stop_splitting(module: torch.nn.Module, name: str) -> None:
    """Take off the hook that brings plain weights to g and v as a state dict is loaded."""
    hooks = module._load_state_dict_pre_hooks
    for key in [k for k, hook in hooks.items() if _is_split_hook(hook, name)]:
        del hooks[key]


def check(module: torch.nn.Module, name: str, dim: int | None, eps: float, title: str) -> None:
    weight = held_weight(module, name, title)
    if dim is not None:
        number_given(dim, "dim", whole=True)
    number_given(eps, "eps")
    if dim is not None and not -weight.ndim <= dim < weight.ndim:
        raise InputError(f"dim={dim} is no axis of {name!r} of {title}, whose shape is {tuple(weight.shape)}")
    if eps < 0:
        raise InputError(f"eps must not be negative, got {eps}")
    if parametrize.is_parametrized(module, name):
        raise InputError(f"{name!r} of {title} is parametrized already: remove that first")
    if any(isinstance(h, _WeightNormHook) and h.name == name for h in module._forward_pre_hooks.values()):
        raise InputError(f"{name!r} of {title} has torch's weight norm already: remove_weight_norm first")
    if name not in module._parameters and name not in module._buffers:
        raise InputError(f"{name!r} of {title} is computed from other tensors, by a hook: take that off first")


def _split_on_load(name: str, module: torch.nn.Module, state: MutableMapping[str, Any], prefix: str, *_: Any) -> None:
    """Bring torch's older keys, and a plain weight, to g and v before a state dict is loaded."""
    steps: Any = module.parametrizations[name] if parametrize.is_parametrized(module, name) else [None]  # type: ignore[index]
    if not isinstance(steps[0], WeightNorm):
        return  # taken off by torch.nn.utils.parametrize.remove_parametrizations, which leaves this hook
    keys = [f"{prefix}parametrizations.{name}.original{k}" for k in (0, 1)]
    old = [f"{prefix}{name}_g", f"{prefix}{name}_v"]
    if old[0] in state and old[1] in state:
        state.update(zip(keys, (state.pop(key) for key in old), strict=True))
    elif f"{prefix}{name}" in state and keys[0] not in state:
        split = steps[0].right_inverse(state.pop(f"{prefix}{name}"))
        state.update(zip(keys, split, strict=True))


def _is_split_hook(hook: Any, name: str) -> bool:
    call = getattr(hook, "hook", hook)
    return isinstance(call, partial) and call.func is _split_on_load and call.args == (name,)
