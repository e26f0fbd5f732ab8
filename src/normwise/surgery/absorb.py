"""The algebra of folding: a convolution or linear layer takes over the affine map per channel beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from normwise.nn._convolutions import CONVOLUTIONS, TRANSPOSED
from normwise.surgery.running import has_hooks

ABSORBERS: tuple[type[nn.Module], ...] = (*CONVOLUTIONS, nn.Linear)


def is_conv(module: nn.Module) -> bool:
    """Whether a module is one of torch's convolutions."""
    return isinstance(module, CONVOLUTIONS)


def out_features(module: nn.Module) -> int:
    """How many channels a convolution or linear layer gives."""
    return module.out_features if isinstance(module, nn.Linear) else module.out_channels  # type: ignore[return-value]


def why_not(module: nn.Module) -> str | None:
    """Why a layer's weights cannot take anything over, if so."""
    if parametrize.is_parametrized(module):
        return "is parametrized; call torch.nn.utils.parametrize.remove_parametrizations first"
    if type(module) not in ABSORBERS or "forward" in vars(module):
        return f"is a {type(module).__qualname__} with a forward of its own"
    if has_hooks(module):
        return "has hooks"
    return None


def absorb_after(module: nn.Module, scale: Tensor, shift: Tensor) -> None:
    """Make a layer compute ``layer(x) · scale + shift``.

    Formula: W′[o, …] = scale[o] W[o, …], b′ = scale b + shift.
    """
    weight, bias = _parameters(module)
    if isinstance(module, TRANSPOSED):
        # (in, out / groups, …): the input channels of group g lead to the output channels of group g.
        groups = weight.reshape(module.groups, -1, *weight.shape[1:])
        factor = scale.reshape(module.groups, 1, -1, *[1] * (weight.ndim - 2))
        weight = (groups * factor).reshape(weight.shape)
    else:
        weight = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
    _store(module, weight, bias * scale + shift)


def absorb_before(module: nn.Module, scale: Tensor, shift: Tensor) -> None:
    """Make a layer compute ``layer(x · scale + shift)``; borders are the caller's to think of.

    Formula: W′[o, i, …] = W[o, i, …] scale[i], b′[o] = b[o] + Σᵢ Σ… W[o, i, …] shift[i].
    """
    weight, bias = _parameters(module)
    if isinstance(module, TRANSPOSED):
        moved = (weight * _along(shift, 0, weight.ndim)).reshape(module.groups, -1, weight[0].numel())
        spread = moved.sum(1).reshape(bias.shape[0], -1).sum(1)
        weight = weight * _along(scale, 0, weight.ndim)
    else:
        groups = getattr(module, "groups", 1)
        # (groups, out / groups, in / groups, …), so that each group meets its own input channels.
        split = weight.reshape(groups, -1, *weight.shape[1:])
        per_input = (groups, 1, weight.shape[1], *[1] * (weight.ndim - 2))
        spread = (split * shift.reshape(per_input)).flatten(2).sum(2).reshape(-1)
        weight = (split * scale.reshape(per_input)).reshape(weight.shape)
    _store(module, weight, bias + spread)


def border_problem(module: nn.Module, shift: Tensor) -> str | None:
    """Why a layer cannot take over a shift that comes before it, if so: zeros that it adds itself are not shifted."""
    if isinstance(module, nn.Linear) or not bool(shift.any()):
        return None
    conv: Any = module
    if isinstance(module, TRANSPOSED):
        plain = all(k == 1 for k in conv.kernel_size) and all(s == 1 for s in conv.stride) and not any(conv.padding)
        return None if plain else "spreads its input over zeros, which the shift would not reach"
    same = conv.padding == "same" and any(k > 1 for k in conv.kernel_size)
    pads = same if isinstance(conv.padding, str) else any(conv.padding)
    if pads and conv.padding_mode == "zeros":
        return "pads with zeros, which the shift would not reach"
    return None


def _along(vector: Tensor, axis: int, ndim: int) -> Tensor:
    return vector.reshape([-1 if a == axis else 1 for a in range(ndim)])


def _parameters(module: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias in float64 on the CPU; a missing bias as zeros."""
    weight = module.weight.detach().cpu().double()
    bias = module.bias
    zeros = weight.new_zeros(out_features(module))
    return weight, bias.detach().cpu().double() if isinstance(bias, Tensor) else zeros


def _store(module: nn.Module, weight: Tensor, bias: Tensor) -> None:
    """Write in place, so that an optimizer still holds the weight; a bias that was missing is a new parameter."""
    old = module.weight
    assert isinstance(old, nn.Parameter)
    with torch.no_grad():
        old.copy_(weight)
        if isinstance(module.bias, nn.Parameter):
            module.bias.copy_(bias)
        else:
            module.bias = nn.Parameter(bias.to(old), requires_grad=old.requires_grad)


@torch.no_grad()
def write(tensor: Tensor, value: Tensor) -> None:
    """Change a tensor's values where they stand."""
    tensor.copy_(value)


def remembered(module: Any) -> Callable[[], None]:
    """What gives a layer the weight and bias back that it has now, to the bit."""
    bias = module.bias
    values = [(t, t.detach().clone()) for t in (module.weight, bias) if isinstance(t, Tensor)]

    def back() -> None:
        for tensor, value in values:
            write(tensor, value)
        module._parameters["bias"] = bias

    return back
