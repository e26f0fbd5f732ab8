"""Weight norm put on and taken off a model's convolutions and linear layers, so that it can be undone exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.utils import parametrize

from normwise.parametrize import WeightNorm, weight_norm
from normwise.surgery.optimizer import Arrival
from normwise.surgery.running import Left

_TRANSPOSED = (torch.nn.ConvTranspose1d, torch.nn.ConvTranspose2d, torch.nn.ConvTranspose3d)
_WITH_WEIGHT = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d, *_TRANSPOSED)


@dataclass
class Reweighted:
    """What was done to the weights: which modules, which parameters came and went, and how to undo it.

    Example:
        >>> Reweighted().names
        []
    """

    names: list[str] = field(default_factory=list)
    norms: dict[str, torch.nn.Module] = field(default_factory=dict)
    left: list[Left] = field(default_factory=list)
    gone: list[Parameter] = field(default_factory=list)
    arrivals: list[Arrival] = field(default_factory=list)
    undo: list[Callable[[], None]] = field(default_factory=list)


Chosen = Callable[[str, torch.nn.Module], bool]


def has_weight_norm(module: torch.nn.Module) -> bool:
    """Whether a module's weight is split into length and direction, by this package's weight norm or torch's.

    Args:
        module: any module.

    Returns:
        Whether it is.

    Example:
        >>> has_weight_norm(weight_norm(torch.nn.Linear(2, 2)))
        True
    """
    lists = getattr(module, "parametrizations", {})
    torch_s = torch.nn.utils.parametrizations._WeightNorm
    return "weight" in lists and len(lists["weight"]) == 1 and isinstance(lists["weight"][0], WeightNorm | torch_s)


def put_on(model: torch.nn.Module, chosen: Chosen) -> Reweighted:
    """Give weight norm to the chosen convolutions and linear layers; the function does not change.

    Args:
        model: changed in place.
        chosen: ``(name, module) -> bool``.

    Returns:
        What was done.

    Example:
        >>> put_on(torch.nn.Sequential(torch.nn.Linear(2, 3)), lambda name, module: True).names
        ['0']
    """
    done = Reweighted()
    users: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            users[id(parameter)] = users.get(id(parameter), 0) + 1
    for name, module in _weighted(model, chosen):
        weight = module.weight
        if has_weight_norm(module):
            done.left.append(Left(name, "already has weight norm"))
        elif "weight" not in module._parameters:
            done.left.append(Left(name, "its weight is computed from others (parametrized, or by a hook)"))
        elif users[id(weight)] > 1:
            done.left.append(Left(name, "its weight is shared with another module"))
        else:
            _split(name, module, weight, done)
    return done


def take_off(model: torch.nn.Module, chosen: Chosen) -> Reweighted:
    """Join lengths and directions to plain weights again; the function does not change.

    Args:
        model: changed in place.
        chosen: ``(name, module) -> bool``.

    Returns:
        What was done.

    Example:
        >>> model = torch.nn.Sequential(weight_norm(torch.nn.Linear(2, 3)))
        >>> take_off(model, lambda name, module: True).names, model
        (['0'], Sequential(
          (0): Linear(in_features=2, out_features=3, bias=True)
        ))
    """
    done = Reweighted()
    for name, module in list(model.named_modules()):
        if has_weight_norm(module) and chosen(name, module):
            _join(name, module, done)
    return done


def _weighted(model: torch.nn.Module, chosen: Chosen) -> Iterator[tuple[str, Any]]:
    for name, module in list(model.named_modules()):
        if isinstance(module, _WITH_WEIGHT) and chosen(name, module):
            yield name, module


def _split(name: str, module: Any, weight: Parameter, done: Reweighted) -> None:
    values, order = weight.detach().clone(), list(module._parameters)
    # The axis of the output channels, which a transposed convolution has second.
    weight_norm(module, dim=1 if isinstance(module, _TRANSPOSED) and module.groups == 1 else 0)
    parts = module.parametrizations["weight"]
    for part in ("original0", "original1"):
        parameter = getattr(parts, part)
        parameter.requires_grad_(weight.requires_grad)
        done.arrivals.append(Arrival(f"{name}.parametrizations.weight.{part}", parameter, (weight,)))
    done.names.append(name)
    done.norms[name] = parts[0]
    done.gone.append(weight)
    done.undo.append(lambda: _put_back(module, weight, values, order))


def _put_back(module: Any, weight: Parameter, values: Tensor, order: list[str]) -> None:
    parametrize.remove_parametrizations(module, "weight")
    with torch.no_grad():
        weight.copy_(values)
    module._parameters["weight"] = weight
    ordered = {name: module._parameters[name] for name in order}
    module._parameters.clear()
    module._parameters.update(ordered)


def _join(name: str, module: Any, done: Reweighted) -> None:
    parts = module.parametrizations["weight"]
    g, v = parts.original0, parts.original1
    values = g.detach().clone(), v.detach().clone()
    asks = v.requires_grad
    parametrize.remove_parametrizations(module, "weight")
    module.weight.requires_grad_(asks)
    done.names.append(name)
    done.norms[name] = parts[0]
    done.gone += [g, v]
    done.arrivals.append(Arrival(f"{name}.weight", module.weight, (v, g)))

    def undo() -> None:
        parametrize.register_parametrization(module, "weight", parts[0], unsafe=True)
        module.parametrizations["weight"] = parts
        with torch.no_grad():
            g.copy_(values[0])
            v.copy_(values[1])

    done.undo.append(undo)
