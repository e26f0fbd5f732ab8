"""Weight norm put on and taken off a model's convolutions and linear layers, so that it can be undone exactly.

And weights that our parametrizations compute, handed over to torch: its own weight norm, or a plain weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.utils import parametrize

from normwise.nn._convolutions import CONVOLUTIONS, TRANSPOSED
from normwise.parametrize import WeightNorm, WeightStandardization, remove_weight_norm, weight_norm
from normwise.parametrize._splits import Split, TorchWeightNorm, splits
from normwise.parametrize._weight_norm import _is_split_hook
from normwise.surgery.optimizer import Arrival
from normwise.surgery.running import Left


@dataclass
class Reweighted:
    """What was done to the weights: which modules, which parameters came and went, and how to undo it.

    ``splits`` holds, by the module's name, what its weights are split by (or were, where that was taken off).
    """

    splits: list[tuple[str, Split]] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    gone: list[Parameter] = field(default_factory=list)
    arrivals: list[Arrival] = field(default_factory=list)
    undo: list[Callable[[], None]] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """The modules, and the weight where it is not called so."""
        full = {f"{module}.{s.name}".strip(".").removesuffix(".weight"): None for module, s in self.splits}
        return list(full)


Chosen = Callable[[str, torch.nn.Module], bool]


def put_on(model: torch.nn.Module, chosen: Chosen) -> Reweighted:
    """Give weight norm to the chosen convolutions and linear layers; the function does not change."""
    done = Reweighted()
    users: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            users[id(parameter)] = users.get(id(parameter), 0) + 1
    for name, module in _weighted(model, chosen):
        weight = module.weight
        if any(split.name == "weight" for split in splits(module)):
            done.left.append(Left(name, "already has weight norm"))
        elif "weight" not in module._parameters:
            done.left.append(Left(name, "its weight is computed from others (parametrized, or by a hook)"))
        elif users[id(weight)] > 1:
            done.left.append(Left(name, "its weight is shared with another module"))
        else:
            _split(name, module, weight, done)
    return done


def take_off(model: torch.nn.Module, chosen: Chosen) -> Reweighted:
    """Join lengths and directions to plain weights again; the function does not change."""
    done = Reweighted()
    for name, module in list(model.named_modules()):
        if chosen(name, module):
            for split in splits(module):
                _join(name, split, done)
    return done


def _weighted(model: torch.nn.Module, chosen: Chosen) -> Iterator[tuple[str, Any]]:
    for name, module in list(model.named_modules()):
        if isinstance(module, (torch.nn.Linear, *CONVOLUTIONS)) and chosen(name, module):
            yield name, module


def _split(name: str, module: Any, weight: Parameter, done: Reweighted) -> None:
    values, order = weight.detach().clone(), list(module._parameters)
    # The axis of the output channels, which a transposed convolution has second.
    weight_norm(module, dim=1 if isinstance(module, TRANSPOSED) and module.groups == 1 else 0)
    split = next(splits(module))
    for key, parameter in zip(split.keys, (split.g, split.v), strict=True):
        parameter.requires_grad_(weight.requires_grad)
        done.arrivals.append(Arrival(f"{name}.{key}", parameter, (weight,)))
    done.splits.append((name, split))
    done.gone.append(weight)
    done.undo.append(lambda: _put_back(module, weight, values, order))


def _put_back(module: Any, weight: Parameter, values: Tensor, order: list[str]) -> None:
    remove_weight_norm(module, "weight")
    with torch.no_grad():
        weight.copy_(values)
    module._parameters["weight"] = weight
    ordered = {name: module._parameters[name] for name in order}
    module._parameters.clear()
    module._parameters.update(ordered)


def _join(name: str, split: Split, done: Reweighted) -> None:
    g, v = split.g, split.v
    values = g.detach().clone(), v.detach().clone()
    split.join()
    joined = getattr(split.module, split.name).requires_grad_(v.requires_grad)
    done.splits.append((name, split))
    done.gone += [g, v]
    done.arrivals.append(Arrival(f"{name}.{split.name}", joined, (v, g)))

    def undo() -> None:
        split.again()
        with torch.no_grad():
            g.copy_(values[0])
            v.copy_(values[1])

    done.undo.append(undo)


def parametrized(module: torch.nn.Module) -> Iterator[str]:
    """Find the weights of one module, without those of its children, that parametrizations of ours compute."""
    if parametrize.is_parametrized(module):
        for name, chain in module.parametrizations.items():  # type: ignore[operator, union-attr]
            if any(isinstance(step, (WeightNorm, WeightStandardization)) for step in chain):
                yield name


def why_no_plain_weight(module: Any, name: str, harden: bool) -> str | None:
    """Say why a weight cannot be computed by torch's classes alone."""
    chain = module.parametrizations[name]
    if any(isinstance(step, WeightStandardization) for step in chain):
        return None if harden else "weight standardization; give harden=True to keep the standardized weight alone"
    with torch.no_grad():
        same = all(torch.allclose(_by_torch(step, *_parts(chain)), step(*_parts(chain))) for step in _norms(chain))
    return None if same else "weight norm, which torch's class computes otherwise; normwise.remove_weight_norm first"


def plain_weight(module: Any, name: str) -> tuple[str, str]:
    """Let torch's classes compute a weight: the parameters of a weight norm stay the same objects."""
    chain = module.parametrizations[name]
    if any(isinstance(step, WeightStandardization) for step in chain):
        parametrize.remove_parametrizations(module, name)
        return "WeightStandardization", "a plain weight"
    for step in _norms(chain):
        g, v = _parts(chain)
        zero = step._norm(v) <= step.eps
        with torch.no_grad():  # torch's formula would divide 0 by 0
            v.copy_(torch.where(zero, torch.ones_like(v), v))
            g.mul_(~zero)
        step.dim = _dim(step, v)
        del step.eps
        step.__class__ = TorchWeightNorm  # type: ignore[assignment]
    hooks = module._load_state_dict_pre_hooks
    for key in [key for key, hook in hooks.items() if _is_split_hook(hook, name)]:
        del hooks[key]
    return "WeightNorm", "torch.nn.utils.parametrizations.weight_norm"


def _norms(chain: Any) -> list[WeightNorm]:
    return [step for step in chain if isinstance(step, WeightNorm)]


def _parts(chain: Any) -> tuple[Tensor, Tensor]:
    return chain.original0, chain.original1


def _dim(step: WeightNorm, v: Tensor) -> int:
    """The axis, as torch's class counts it: −1 stands for the whole weight there."""
    return -1 if step.dim is None else step.dim % v.ndim


def _by_torch(step: WeightNorm, g: Tensor, v: Tensor) -> Tensor:
    zero = step._norm(v) <= step.eps
    whole = torch.where(zero, torch.zeros_like(g), g), torch.where(zero, torch.ones_like(v), v)
    return TorchWeightNorm(_dim(step, v))(*whole)
