"""What numbers were measured with: versions and machine."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version

from normwise._version import __version__
from normwise.kernels.environment import processor_name
from normwise.study.compute import Compute


def versions() -> dict[str, str]:
    """Give the versions of what computes."""
    names = ("torch", "optuna", "scipy", "numpy")
    return {"normwise": __version__, "python": platform.python_version()} | {name: version(name) for name in names}


def machine(threads: int | None, compute: Compute) -> dict[str, str]:
    """Describe the machine, and what on it computes."""
    return {
        "system": platform.platform(),
        "processor": processor_name(),
        "cores": str(os.cpu_count()),
        "threads per trial": "torch's default" if threads is None else str(threads),
        **compute.told(),
    }
