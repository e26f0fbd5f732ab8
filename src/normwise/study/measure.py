"""What a training step costs in memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(step: Callable[[], object], device: str | torch.device = "cpu") -> int | None:
    """Measure the most memory that one call holds at once beyond what is held before it."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with _quiet(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    results = getattr(profiler.profiler, "kineto_results", None)
    if results is None:
        return None
    # Every allocation and release is an event of its own; their running sum is what was held.
    changes = sorted((e.start_ns(), i, e.nbytes()) for i, e in enumerate(results.events()) if e.name() == "[memory]")
    held = peak = 0
    for _, _, change in changes:
        held += change
        peak = max(peak, held)
    return peak if changes else None


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence file descriptor 2: the profiler's C++ side writes log lines there that no setting turns off."""
    try:
        kept = os.dup(2)
    except OSError:  # closed: nothing to silence
        yield
        return
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
