"""What a training step costs in memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from normwise import devices


def peak_bytes(step: Callable[[], object], device: torch.device = devices.CPU) -> int | None:
    """Measure the most memory that one call holds at once beyond what is held before it.

    An accelerator's allocator says it, where it can; on the CPU torch's profiler sees each allocation.
    """
    if device.type != "cpu":
        devices.synchronize(device)
        before = devices.allocated(device)
        devices.forget_peak(device)
        step()
        devices.synchronize(device)
        peak = devices.peak_allocated(device)
        return None if before is None or peak is None else peak - before
    with _quiet(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    results = getattr(profiler.profiler, "kineto_results", None)
    if results is None:
        return None
    # A release of what was not allocated here is left out: the profiler knows only some of those.
    open_blocks: dict[int, int] = {}
    held = peak = 0
    for _, block, change in _allocations(results):
        if change < 0 and open_blocks.pop(block, None) is None:
            continue
        if change > 0:
            open_blocks[block] = change
        held += change
        peak = max(peak, held)
    return peak or None


def _allocations(results: Any) -> list[tuple[int, int, int]]:
    """Time, address and bytes (less than 0: released) of each change of memory that a profile saw."""
    found, below = [], list(results.experimental_event_tree())
    while below:
        event = below.pop()
        below += event.children
        if event.name == "[memory]":
            fields = event.extra_fields
            found.append((event.start_time_ns, fields.ptr, fields.alloc_size))
    return sorted(found)


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
