"""Which parameters an optimizer should treat apart: mixing weights and norms."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.modules.batchnorm import _NormBase

from normwise.errors import InputError
from normwise.nn._checks import model_given, number_given
from normwise.nn._recurrent_kinds import Kind
from normwise.nn._state import TrackingNorm

NORMS: tuple[type[torch.nn.Module], ...] = (_NormBase, torch.nn.GroupNorm, torch.nn.LayerNorm, torch.nn.RMSNorm)


def param_groups(
    model: torch.nn.Module,
    lr: float,
    weight_decay: float = 0.0,
    *,
    mixing_lr: float = 0.1,
    norms: tuple[type[torch.nn.Module], ...] = (),
) -> list[dict[str, Any]]:
    """Split a model's parameters into groups for an optimizer.

    ==========  ======================================================  ==============  ============
    name        parameters                                              learning rate   weight decay
    ==========  ======================================================  ==============  ============
    ``mixing``  ``mean_weight`` and ``var_weight`` of switchable norms  mixing_lr · lr  0
    ``norm``    weight and bias of norms, gains in recurrent layers     lr              0
    ``rest``    all others                                              lr              weight_decay
    ==========  ======================================================  ==============  ============

    Norms are found by type: torch's, ours and what derives from them. Each parameter that requires a gradient comes
    once, a shared one in the first group it belongs to; frozen ones are left out, and so are empty groups.

    Args:
        model: any module.
        lr: the learning rate.
        weight_decay: for all but norms and mixing weights.
        mixing_lr: the mixing weights' part of the learning rate; a tenth is the switchable norm authors' choice.
        norms: further classes to treat as norms.

    Returns:
        Groups with ``name``, ``params``, ``lr`` and ``weight_decay``, to be given to any optimizer.

    Raises:
        InputError: no parameter requires a gradient, or a rate or decay is negative.

    Example:
        >>> from normwise.nn import SwitchableNorm2d
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), SwitchableNorm2d(4))
        >>> groups = param_groups(model, lr=0.1, weight_decay=1e-4)
        >>> [(group["name"], len(group["params"]), round(group["lr"], 3)) for group in groups]
        [('mixing', 2, 0.01), ('norm', 2, 0.1), ('rest', 2, 0.1)]
        >>> optimizer = torch.optim.SGD(groups, momentum=0.9)
    """
    model_given(model, "param_groups")
    for name, value in {"lr": lr, "weight_decay": weight_decay, "mixing_lr": mixing_lr}.items():
        number_given(value, name)
    if min(lr, weight_decay, mixing_lr) < 0:
        raise InputError(
            f"lr, weight_decay and mixing_lr must not be negative, got {lr}, {weight_decay} and {mixing_lr}"
        )
    members: dict[str, dict[torch.nn.Parameter, None]] = {"mixing": {}, "norm": {}, "rest": {}}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                members[_group_of(module, name, NORMS + norms)][parameter] = None
    settings = {"mixing": (lr * mixing_lr, 0.0), "norm": (lr, 0.0), "rest": (lr, weight_decay)}
    groups: list[dict[str, Any]] = []
    seen: set[torch.nn.Parameter] = set()
    for name, found in members.items():
        params = [parameter for parameter in found if parameter not in seen]
        seen.update(params)
        if params:
            rate, decay = settings[name]
            groups.append({"name": name, "params": params, "lr": rate, "weight_decay": decay})
    if not groups:
        raise InputError(f"{type(model).__name__} has no parameter that requires a gradient: nothing to optimize")
    return groups


def spare_norms(optimizer: torch.optim.Optimizer, model: torch.nn.Module) -> None:
    """Take weight decay off the norms and mixing weights of a model, in an optimizer that exists.

    All other settings and the optimizer's state stay. Groups that hold both kinds of parameters are split, so call it
    before a learning rate scheduler is made: one that exists does not know the new groups.
    """
    spared = {
        id(parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if _group_of(module, name, NORMS) != "rest"
    }
    for group in list(optimizer.param_groups):
        mine = [i for i, parameter in enumerate(group["params"]) if id(parameter) in spared]
        if not mine or not group.get("weight_decay"):
            continue
        others = [i for i in range(len(group["params"])) if i not in mine]
        if not others:
            group["weight_decay"] = 0.0
            continue
        apart = {**group, "weight_decay": 0.0}
        for name in ("params", "param_names"):
            if name in group:
                apart[name], group[name] = [group[name][i] for i in mine], [group[name][i] for i in others]
        # Not add_param_group, which would take the names anew.
        optimizer.param_groups.append(apart)


def _group_of(module: torch.nn.Module, name: str, norms: tuple[type[torch.nn.Module], ...]) -> str:
    if isinstance(module, TrackingNorm) and name in ("mean_weight", "var_weight"):
        return "mixing"
    # The biases of our recurrent layers are the shifts of their norms.
    in_gates = isinstance(module, Kind) and name.startswith(("gain_", "bias_"))
    return "norm" if in_gates or isinstance(module, norms) else "rest"
