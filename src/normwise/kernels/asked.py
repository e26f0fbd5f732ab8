"""Which kernels the user asks for, by the environment variable ``NORMWISE_BACKEND``."""

from __future__ import annotations

import os

from normwise.errors import InputError

VARIABLE = "NORMWISE_BACKEND"
# What may be asked for: by default each device's own, else one kind and no other; torch is plain operators.
CHOICES = ("auto", "native", "triton", "torch")


def _asked() -> str:
    """What is asked for."""
    choice = os.environ.get(VARIABLE) or "auto"
    if choice not in CHOICES:
        raise InputError(f"{VARIABLE}={choice}: expected one of {', '.join(CHOICES)}")
    return choice


ASKED = _asked()


def refused(kind: str) -> str | None:
    """Why kernels of a kind are not to serve, if that was asked for."""
    return None if ASKED in ("auto", kind) else f"{VARIABLE}={ASKED} asks for others"
