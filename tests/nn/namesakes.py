"""Every layer of ours that has a namesake in torch.nn, and how to put one in the other's place."""

from __future__ import annotations

import warnings

import torch

import normwise.nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch's test machinery imports deprecated things
    from torch.testing._internal.common_methods_invocations import op_db
    from torch.testing._internal.common_modules import ModuleErrorEnum, ModuleInfo, ModuleInput, module_db

__all__ = ["NAMESAKES", "ModuleErrorEnum", "ModuleInfo", "ModuleInput", "module_db", "op_db", "pair", "swap"]

# torch's class -> ours. SyncBatchNorm is the one norm of torch.nn that is elsewhere: with the other processes.
NAMESAKES: dict[type[torch.nn.Module], type[torch.nn.Module]] = {
    getattr(torch.nn, name): getattr(normwise.nn, name)
    for name in normwise.nn.__all__
    if isinstance(getattr(torch.nn, name, None), type)
}


def pair(cls: type[torch.nn.Module], *args: object, **kwargs: object) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Torch's layer with random parameters and running averages, and ours with the same state."""
    theirs, ours = cls(*args, **kwargs), NAMESAKES[cls](*args, **kwargs)
    with torch.no_grad():
        for tensor in theirs.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def swap(model: torch.nn.Module) -> int:
    """Replace every layer of exactly a namesake's class by ours; give how many."""
    count = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) in NAMESAKES:
                setattr(parent, name, _like(child))
                count += 1
    return count


def _like(child: torch.nn.Module) -> torch.nn.Module:
    ours = NAMESAKES[type(child)].__new__(NAMESAKES[type(child)])
    ours.__dict__ = child.__dict__
    if hasattr(ours, "_guard"):
        ours._guard(skip_nonfinite=True)
    return ours
