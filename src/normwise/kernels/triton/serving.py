"""Whether the kernels in Triton serve a tensor, and their place among the operators.

They serve ``torch.ops.normwise.*`` on CUDA devices, which ROCm's are to torch, too. With Triton's interpreter
(``TRITON_INTERPRET=1``) and ``NORMWISE_BACKEND=triton`` they serve CPU tensors, slowly, which is how they are tested.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import warnings
from typing import Any

import torch
from torch import Tensor

from normwise.kernels.asked import ASKED, refused

# The four kernels are called like those in C++: the dispatcher finds the ones of a tensor's device.
from normwise.kernels.cpu.native import DTYPES, apply, grad_input, grad_sums, moments  # noqa: F401
from normwise.kernels.operators import FAKES

OLDEST = (3, 4)
# The compute capability that Triton asks for.
CAPABILITY = (8, 0)
NAMES = [name for name in FAKES if not name.startswith("layer_norm")]

INTERPRETED = ASKED == "triton" and os.environ.get("TRITON_INTERPRET") == "1"
_KEY = "CPU" if INTERPRETED else "CUDA"


def supports(x: Tensor) -> bool:
    """Whether the kernels take this tensor."""
    here = x.is_cpu if INTERPRETED else x.is_cuda
    return here and x.dtype in DTYPES and x.ndim >= 2 and x.layout == torch.strided and why_not() is None


@functools.cache
def why_not() -> str | None:
    """Why these kernels do not serve; ``None`` where they do."""
    if problem := refused("triton"):
        return problem
    if not INTERPRETED and not torch.cuda.is_available():
        return "there is no CUDA or ROCm device"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed: pip install 'normwise[triton]'"
    version = importlib.import_module("triton").__version__
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        return f"Triton {version} is too old: {'.'.join(map(str, OLDEST))} or later is needed"
    if not INTERPRETED and torch.version.hip is None and torch.cuda.get_device_capability() < CAPABILITY:
        return f"the device's compute capability is {torch.cuda.get_device_capability()}: Triton needs {CAPABILITY}"
    return None


def serves() -> str:
    """What these kernels do here, in words."""
    return why_not() or (
        "in use on the CPU, interpreted" if INTERPRETED else f"in use on {torch.cuda.get_device_name()}"
    )


def _call(name: str, *args: Any) -> Any:
    """An operator on a device; Triton and the kernels are loaded by the first call."""
    if problem := why_not():
        raise RuntimeError(f"normwise: the kernels in Triton do not serve {name}: {problem}")
    return importlib.import_module("normwise.kernels.triton.wholes").call(name, *args)


_LIBRARY = torch.library.Library("normwise", "IMPL")
with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "[^$]*Overriding a previously registered kernel")  # interpreted, in C++'s place
    for _name in NAMES:
        _LIBRARY.impl(_name, functools.partial(_call, _name), _KEY, allow_override=INTERPRETED)
