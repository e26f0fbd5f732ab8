"""What the numbers of this installation come from: versions, kernels, processor."""

from __future__ import annotations

import platform
from itertools import takewhile

import torch

from normwise.kernels.cpu import native
from normwise.kernels.triton import serving


def describe_environment() -> dict[str, str]:
    """Describe what the kernels run on, for ``normwise env`` and for the records of measurements."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "native kernels": native.why_not() or "in use",
        "triton kernels": serving.serves(),
        "autograd": _autograd(),
        "instruction set": native.instruction_set() if native.available() else "-",
        "threads": str(torch.get_num_threads()),
        "processor": processor_name(),
    }


def _autograd() -> str:
    problem = native.why_not_differentiable()
    if problem:
        return f"in Python ({problem})"
    return "in C++" if native.CALLS else "in C++, called through torch.ops (built without Python's headers)"


def processor_name() -> str:
    """Name the processor's model, with the numbers that tell apart what is sold under one name."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            # Of the first processor, whose lines end with an empty one.
            pairs = (line.partition(":") for line in takewhile(str.strip, lines))
            told = {title.strip(): value.strip() for title, _, value in pairs}
        return f"{told['model name']} (family {told['cpu family']}, model {told['model']})"
    except (OSError, KeyError):
        return platform.processor() or platform.machine()
