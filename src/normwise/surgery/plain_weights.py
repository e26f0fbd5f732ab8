"""Weights that our parametrizations compute, brought back to what torch has: its own weight norm, or a plain weight."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _WeightNorm

from normwise.parametrize import WeightNorm, WeightStandardization
from normwise.parametrize._weight_norm import _is_split_hook


def parametrized(module: nn.Module) -> Iterator[str]:
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
        nowhere = step._norm(v) <= step.eps
        with torch.no_grad():  # torch's formula would divide 0 by 0
            v.copy_(torch.where(nowhere, torch.ones_like(v), v))
            g.mul_(~nowhere)
        step.dim = _dim(step, v)
        del step.eps
        step.__class__ = _WeightNorm  # type: ignore[assignment]
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
    nowhere = step._norm(v) <= step.eps
    whole = torch.where(nowhere, torch.ones_like(v), v), torch.where(nowhere, torch.zeros_like(g), g)
    return torch._weight_norm(*whole, _dim(step, v))
