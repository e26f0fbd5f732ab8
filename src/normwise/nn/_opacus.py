"""Have Opacus refuse our batch norms as it refuses torch's: it looks validators up by exact type.

A batch norm lets samples see each other, which voids the privacy that Opacus promises. Its validator asks each layer
for its parameters before it looks the type up; that is when the type is made known to it. So it does not matter which
library was imported first, nobody imports Opacus who did not, and subclasses are known, too.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn

_ACTIVATIONS = {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "silu": nn.SiLU}


def tell_opacus(layer: nn.Module) -> None:
    """Register a layer's type with Opacus, where that is in use and does not know it."""
    module = sys.modules.get("opacus.validators.module_validator")
    registry: Any = getattr(module, "ModuleValidator", None)
    kind = type(layer)
    if registry is None or kind in registry.VALIDATORS or kind.__module__.startswith("torch."):
        return
    for base in (*kind.__mro__[1:], nn.BatchNorm2d):
        if base in registry.VALIDATORS:
            registry.VALIDATORS[kind] = registry.VALIDATORS[base] if issubclass(kind, base) else _validate_by_method
            if not layer._modules:  # it looks for the children of what it has replaced, too
                registry.FIXERS[kind] = _fix
            return


def _validate_by_method(layer: Any) -> list[Exception]:
    """Opacus's word on batch norms for layers that are none by class, but see several samples."""
    validators: Any = sys.modules["opacus.validators.module_validator"].ModuleValidator.VALIDATORS
    found: list[Exception] = validators[nn.BatchNorm2d](layer) if _mixes_samples(layer) else []
    return found


def _mixes_samples(layer: Any) -> bool:
    return bool(layer.method.over_samples)


def _fix(layer: Any, **options: Any) -> nn.Module:
    """What Opacus puts in the place of torch's layer, and the activation."""
    fixers: Any = sys.modules["opacus.validators.module_validator"].ModuleValidator.FIXERS
    bases = [base for base in type(layer).__mro__ if base.__module__.startswith("torch.") and base in fixers]
    if not bases and not _mixes_samples(layer):
        return layer
    with torch.no_grad():
        norm: nn.Module = fixers[bases[0] if bases else nn.BatchNorm2d](layer, **options)
    return norm if layer.activation is None else nn.Sequential(norm, _ACTIVATIONS[layer.activation]())
