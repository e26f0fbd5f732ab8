"""Keep an optimizer in step with a model whose parameters were exchanged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import Parameter

from normwise.errors import InputError


@dataclass(frozen=True)
class Arrival:
    """A new parameter: its name, and the old ones in whose place it comes, nearest first.

    ``heir`` says that it takes over the state of the first of them, where the shapes agree.
    """

    name: str
    parameter: Parameter
    instead_of: tuple[Parameter, ...]
    heir: bool = False


def remap(
    optimizer: torch.optim.Optimizer, gone: Sequence[Parameter], arrivals: Sequence[Arrival]
) -> Callable[[], None]:
    """Take parameters out of an optimizer and put others in.

    A new parameter joins the group of the one it replaces (where there was none, the last group), and inherits its
    state where it stands for it and has its shape. One that replaces what the optimizer does not hold stays out, too.
    """
    groups = optimizer.param_groups
    home = {id(p): group for group in groups for p in group["params"]}
    if not home:
        raise InputError("the optimizer holds no parameters: give the one that trains this model")
    before = [(list(group["params"]), list(group.get("param_names", ()))) for group in groups]
    states = {p: optimizer.state[p] for group in groups for p in group["params"] if p in optimizer.state}
    for arrival in arrivals:
        known = [home[id(p)] for p in arrival.instead_of if id(p) in home]
        if arrival.instead_of and not known:
            continue  # what it replaces was not trained by this optimizer, nor shall it be
        if id(arrival.parameter) not in home:
            _add(known[0] if known else groups[-1], arrival)
        if arrival.heir and arrival.instead_of:
            _inherit(optimizer, arrival.instead_of[0], arrival.parameter)
    leaving = {id(p) for p in gone}
    for group in groups:
        _remove(group, leaving)
    for parameter in gone:
        optimizer.state.pop(parameter, None)

    def back() -> None:
        for group, (params, names) in zip(groups, before, strict=False):
            group["params"][:] = params
            if "param_names" in group:
                group["param_names"][:] = names
        for arrival in arrivals:
            optimizer.state.pop(arrival.parameter, None)
        optimizer.state.update(states)

    return back


def _add(group: dict[str, Any], arrival: Arrival) -> None:
    group["params"].append(arrival.parameter)
    if "param_names" in group:
        group["param_names"].append(arrival.name)


def _inherit(optimizer: torch.optim.Optimizer, old: Parameter, new: Parameter) -> None:
    if old in optimizer.state and old.shape == new.shape and old is not new:
        state = optimizer.state[old]
        optimizer.state[new] = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in state.items()}


def _remove(group: dict[str, Any], leaving: set[int]) -> None:
    keep = [i for i, p in enumerate(group["params"]) if id(p) not in leaving]
    for name in ("params", "param_names"):
        if name in group:
            group[name][:] = [group[name][i] for i in keep]
