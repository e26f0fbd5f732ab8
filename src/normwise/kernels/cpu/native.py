"""The kernels in C++, where they were built: same functions, same results as :mod:`normwise.kernels.reference`.

They speak torch's stable ABI (see ``setup.py``) and cover CPU tensors of float32, float64, bfloat16 and float16 in the
contiguous and the channels-last layout; other strides are copied into one of the two first.

The four kernels take no part in autograd: :mod:`normwise.core.autograd` does that for moments, method and apply as a
whole. The operators of :mod:`normwise.kernels.cpu.fused` do where a second library could be built. It speaks
autograd's C++ interface and Python's, which are no part of the stable ABI, so its name holds the one torch and Python
that it serves.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Callable
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import torch
from torch import Tensor

from normwise.kernels.asked import ASKED, refused
from normwise.kernels.operators import FAKES, SCHEMAS
from normwise.kernels.reference import ACTIVATIONS

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

# The kernels know activations by these numbers.
CODES = {activation: code for code, activation in enumerate(ACTIVATIONS)}

_LIBRARY = Path(__file__).with_name("_native.so")
_SERVES = f"{torch.__version__}-{sysconfig.get_config_var('SOABI')}"
_GRAPH = Path(__file__).with_name(f"_graph-{_SERVES}.so")
_HOW = "build it with `pip install --no-build-isolation .` where torch and a C++ compiler are present"


def _load() -> str | None:
    """Load the library; the reason if that is not possible."""
    if ASKED == "torch":
        return refused("native")
    if not _LIBRARY.exists():
        return f"the native library is not built: {_HOW}"
    try:
        torch.ops.load_library(str(_LIBRARY))
    except OSError as problem:
        return f"the native library does not load ({problem}): {_HOW}"
    # A library built in place stays behind when its sources move on.
    missing = [name for name in ("isa", *FAKES) if not hasattr(torch.ops.normwise, name)]
    if missing:
        return f"the native library is of another version (it lacks {', '.join(missing)}): {_HOW}"
    return None


def _load_graph() -> str | None:
    """Load autograd's kernels; the reason if that is not possible."""
    if _problem is not None:
        return "there are no native kernels to differentiate"
    if not _GRAPH.exists():
        return f"not built for torch {_SERVES}: {_HOW}"
    try:
        torch.ops.load_library(str(_GRAPH))
    except OSError as problem:
        return f"does not load ({problem}): {_HOW}"
    known = torch._C._dispatch_has_kernel_for_dispatch_key("normwise::layer_norm", "Autograd")
    return None if known else f"is of another version: {_HOW}"


def _load_calls() -> dict[str, Callable[..., Tensor | None]]:
    """Load the functions of the second library; none if it was built without Python's headers."""
    loader = ExtensionFileLoader("_graph", str(_GRAPH))
    spec = spec_from_file_location("_graph", _GRAPH, loader=loader)
    if _graph_problem is not None or spec is None:
        return {}
    try:
        module = module_from_spec(spec)
    except ImportError:
        return {}
    return {name: getattr(module, name) for name in ("sample_norm", "batch_norm", "mix_norm", "layer_norm")}


_problem = _load()
_graph_problem = _load_graph()

# The shortest way from Python to an operator of normwise.kernels.cpu.fused, where it was built. Takes what the
# operator takes, all of it by place, and gives its first result; or None where anything but autograd has a part in the
# call: a transform, autocast, a profiler, another device.
CALLS = _load_calls()


def available() -> bool:
    """Whether the native kernels are loaded."""
    return _problem is None


def why_not() -> str | None:
    """Why the native kernels are not available and how to get them."""
    return _problem


def differentiates() -> bool:
    """Whether the operators of :mod:`normwise.kernels.cpu.fused` are differentiable, by autograd in C++.

    Where not, the caller does it in Python.
    """
    return _graph_problem is None


def why_not_differentiable() -> str | None:
    """Why autograd does not reach the native kernels from C++, and how to get that."""
    return _graph_problem


def instruction_set() -> str:
    """The instruction set that the kernels chose for this processor.

    The environment variable ``NORMWISE_ISA``, read once at the first call of a kernel, may ask for less.
    """
    return ("baseline", "avx2", "avx512")[torch.ops.normwise.isa()]


def supports(x: Tensor) -> bool:
    """Whether the kernels take this tensor."""
    return _problem is None and x.is_cpu and x.dtype in DTYPES and x.ndim >= 2 and x.layout == torch.strided


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of every cell, as :func:`normwise.kernels.reference.moments`."""
    return torch.ops.normwise.moments(x)


def apply(
    x: Tensor, center: Tensor, scale: Tensor, shift: Tensor, activation: str | None = None, slope: float = 0.01
) -> Tensor:
    """Normalize: ``act((x − center) · scale + shift)``, as :func:`normwise.kernels.reference.apply`."""
    return torch.ops.normwise.apply(x, center, scale, shift, CODES[activation], slope)


def grad_sums(
    g: Tensor,
    x: Tensor,
    mean: Tensor,
    center: Tensor,
    scale: Tensor,
    shift: Tensor,
    activation: str | None = None,
    slope: float = 0.01,
) -> tuple[Tensor, Tensor]:
    """S1 = Σ g and S2 = Σ g · (x − mean) per cell, as :func:`normwise.kernels.reference.grad_sums`."""
    return torch.ops.normwise.grad_sums(g, x, mean, center, scale, shift, CODES[activation], slope)


def grad_input(
    g: Tensor,
    x: Tensor,
    mean: Tensor,
    center: Tensor,
    scale: Tensor,
    shift: Tensor,
    grad_mean: Tensor,
    grad_var: Tensor,
    activation: str | None = None,
    slope: float = 0.01,
) -> Tensor:
    """``scale · g + (2 · grad_var / M) · (x − mean) + grad_mean / M``; see the reference."""
    return torch.ops.normwise.grad_input(
        g, x, mean, center, scale, shift, grad_mean, grad_var, CODES[activation], slope
    )


# What no library defined, so that other devices' kernels and the compiler find the same operators everywhere.
_SCHEMAS = torch.library.Library("normwise", "FRAGMENT")
for _name, _fake in FAKES.items():
    if not hasattr(torch.ops.normwise, _name):
        _SCHEMAS.define(f"{_name}{SCHEMAS[_name]}")
    torch.library.register_fake(f"normwise::{_name}", _fake)
