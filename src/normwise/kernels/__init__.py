"""The kernels under the whole family: ``moments``, ``apply``, ``grad_sums``, ``grad_input``.

A backend is a module with these four. :mod:`normwise.kernels.reference`, in plain torch, says what is right and serves
every device; :mod:`normwise.kernels.cpu.native` is C++, :mod:`normwise.kernels.triton.serving` Triton, for devices.
Whole normalizations are in :mod:`normwise.kernels.cpu.fused`, and in :mod:`normwise.kernels.of_torch` torch's own, for
devices without kernels of ours.
"""

from __future__ import annotations

from types import ModuleType

from torch import Tensor

from normwise.kernels import of_torch, reference
from normwise.kernels.cpu import fused, native
from normwise.kernels.environment import describe_environment
from normwise.kernels.reference import ACTIVATIONS, accumulation_dtype, activate, known_activation
from normwise.kernels.triton import serving

__all__ = [
    "ACTIVATIONS",
    "accumulation_dtype",
    "activate",
    "backend",
    "describe_environment",
    "fused",
    "known_activation",
    "native",
    "of_torch",
    "reference",
    "serving",
]


_ROOMS = (serving, native) if serving.INTERPRETED else (native, serving)


def backend(x: Tensor) -> ModuleType:
    """The module whose kernels take a tensor."""
    return next((room for room in _ROOMS if room.supports(x)), reference)
