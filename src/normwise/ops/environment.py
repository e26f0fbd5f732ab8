"""What the numbers of this installation come from: versions, kernels, processor."""

from __future__ import annotations

import platform

import torch

from normwise.ops import native


def describe_environment() -> dict[str, str]:
    """Describe what the kernels run on, for ``normwise env`` and for the records of measurements.

    Returns:
        Titles and values, in the order to print them in; no host names and no paths.

    Example:
        >>> list(describe_environment())
        ['python', 'torch', 'native kernels', 'autograd', 'instruction set', 'threads', 'processor']
    """
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "native kernels": native.why_not() or "in use",
        "autograd": f"in Python ({native.why_not_differentiable()})" if native.why_not_differentiable() else "in C++",
        "instruction set": native.instruction_set() if native.available() else "-",
        "threads": str(torch.get_num_threads()),
        "processor": processor_name(),
    }


def processor_name() -> str:
    """Name the processor's model.

    Returns:
        The name, or the architecture where the system does not tell.

    Example:
        >>> len(processor_name()) > 0
        True
    """
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
