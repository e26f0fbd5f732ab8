"""Everything that wants a CUDA or ROCm device, in one run of under 9 minutes: ``make bench-gpu``.

Takes torch 2.11 or later for the device; normwise may be installed or stand beside this file. Writes results/gpu.json
after every row, so that what was measured is kept if the run is stopped: the bandwidth of a copy; errors against
float64; reads on the host, graph capture, launches and peak memory; five layers next to torch.nn, torch.compile and
the limit that the copy sets; one comparison of methods on the device and on the CPU. ``--dry`` goes through all parts
on the CPU, with Triton's interpreter, on tiny tensors: its times mean nothing and are not written.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DRY = "--dry" in sys.argv
if DRY:
    os.environ.update(NORMWISE_BACKEND="triton", TRITON_INTERPRET="1")
if importlib.util.find_spec("normwise") is None:
    sys.path.insert(0, str(ROOT / "src"))

import torch  # noqa: E402 - after the environment is set
from torch import Tensor, nn  # noqa: E402

import normwise.nn as ours  # noqa: E402
from normwise.kernels import describe_environment, reference, serving  # noqa: E402

LIMIT_S = 9 * 60
SHAPES = [(32, 256, 56, 56), (64, 512, 28, 28), (256, 512, 7, 7), (8, 64, 16, 56, 56)]
SHAPES = [(2, 4, 3, 5)] if DRY else SHAPES
DTYPES = [torch.float32, torch.bfloat16]
DEVICE = torch.device("cpu" if DRY else "cuda")
# Sizes of x that a step must move: what pools within a sample may do both passes on chip.
MOVES = {"batch": 8, "switchable": 8, "group": 5, "instance": 5, "layer": 5}


def group_count(channels: int) -> int:
    """The groups of the group norms here."""
    return min(32, channels // 2)


def layer(name: str, shape: tuple[int, ...], package: Any) -> nn.Module | None:
    """A layer of ours or of torch; ``None`` where torch has none."""
    C, axes = shape[1], len(shape) - 2
    if name in ("group", "layer"):
        return package.GroupNorm(group_count(C) if name == "group" else 1, C)
    if name == "switchable":
        return getattr(package, f"SwitchableNorm{axes}d")(C) if package is ours else None
    options = {"affine": True} if name == "instance" else {}
    return getattr(package, f"{name.title()}Norm{axes}d")(C, **options)


def tensor(shape: tuple[int, ...], dtype: torch.dtype, last: bool, mean: float = 0.5) -> Tensor:
    """An input, contiguous or channels-last."""
    x = mean + torch.randn(shape, dtype=torch.float32, device=DEVICE)
    x = x.movedim(1, -1).contiguous().movedim(-1, 1) if last else x
    return x.to(dtype).requires_grad_()


def randomized(module: nn.Module) -> nn.Module:
    """A layer whose parameters tell an error."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.rand(parameter.shape) + 0.5)
    return module.to(DEVICE)


def step(module: Callable[[Tensor], Tensor], x: Tensor, g: Tensor, parameters: list[nn.Parameter]) -> list[Tensor]:
    """Forward and backward."""
    y = module(x)
    return [y, *torch.autograd.grad(y, [x, *parameters], g)]


class Record:
    """What was measured so far, in a file."""

    def __init__(self, path: Path) -> None:
        self.path, self.start = path, time.monotonic()
        self.told: dict[str, Any] = {"command": "make bench-gpu", "dry": DRY, "finished": False}

    def left(self) -> float:
        """Seconds that are left."""
        return LIMIT_S - (time.monotonic() - self.start)

    def must_stop(self, part: str, spare: float) -> bool:
        """Whether a part has to leave the rest of the time to others, which is noted."""
        stops = not DRY and self.left() < spare
        if stops:
            self.add("stopped for want of time", {"part": part, "seconds left": self.left()})
        return stops

    def add(self, part: str, row: dict[str, Any]) -> None:
        """Note a row of a part, and write all."""
        self.told.setdefault(part, []).append(row)
        print(part, row, flush=True)
        self.write()

    def write(self) -> None:
        """Write so that a reader sees what was there before or all of this."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_suffix(".part")
        beside.write_text(json.dumps(self.told, indent=1) + "\n", encoding="utf-8")
        beside.replace(self.path)


def seconds(run: Callable[[], Any], budget: float = 0.25) -> float | None:
    """The median time of a call on the device, warmed, with the second-level cache cleared; nothing in a dry run."""
    run()
    if DRY:
        return None
    clear = torch.empty(64 * 2**20, device=DEVICE)
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    times, until = [], time.monotonic() + budget
    while len(times) < 10 or (time.monotonic() < until and len(times) < 100):
        clear.zero_()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(times)


def bandwidth(record: Record) -> None:
    """Copies, out of place, of what no cache holds."""
    size = 2**10 if DRY else 2**28
    x, y = torch.ones(size, device=DEVICE), torch.empty(size, device=DEVICE)
    took = seconds(lambda: y.copy_(x))
    rate = None if took is None else 2 * x.numel() * x.element_size() / took / 1e9
    record.add("copy", {"elements": size, "GB/s": rate})


def problems() -> Iterator[tuple[str, tuple[int, ...], torch.dtype, bool]]:
    """Layers, shapes, types, channels-last; all layers at one shape before the next, should time run out."""
    for shape, dtype, last, name in product(SHAPES, DTYPES, (False, True), MOVES):
        yield name, shape, dtype, last


def correctness(record: Record) -> None:
    """Errors of a step against plain operators in float64, relative to the largest value, ours and torch's."""
    shapes = [(2, 4, 3, 5)] if DRY else [(8, 64, 28, 28), (16, 128, 7, 7), (2, 32, 8, 14, 14)]
    for name, shape, dtype, last, mean in product(MOVES, shapes, DTYPES, (False, True), (0.0, 1e3, 1e6)):
        if (dtype != torch.float32 and mean) or (DRY and mean == 1e3):
            continue
        if record.must_stop("errors", 360):
            return
        torch.manual_seed(0)
        x, g = tensor(shape, dtype, last, mean), tensor(shape, dtype, last, 0.0).detach()
        mine = randomized(layer(name, shape, ours))
        twin = layer(name, shape, ours).to(DEVICE).double()
        twin.load_state_dict(mine.state_dict())
        wide = x.detach().double().requires_grad_()
        expected = plainly(twin, wide, g.double())
        row = {"layer": name, "shape": [*shape], "dtype": str(dtype), "channels last": last, "mean": mean}
        torchs = layer(name, shape, nn)
        for whose, module in (("normwise", mine), ("torch", torchs)):
            if module is None:
                continue
            module = module.to(DEVICE)
            if whose == "torch":
                module.load_state_dict(mine.state_dict(), strict=False)
            found = step(module, x, g, [*module.parameters()])
            row[whose] = [_error(a, b) for a, b in zip(found, expected, strict=True)]
        record.add("errors of y, dx and parameters", row)


def plainly(module: nn.Module, x: Tensor, g: Tensor) -> list[Tensor]:
    """A step in plain operators."""
    route = sys.modules["normwise.core.route"]
    before, calls = route.backend, route.native.CALLS
    route.backend, route.native.CALLS = lambda x: reference, {}
    try:
        return step(module, x, g, [*module.parameters()])
    finally:
        route.backend, route.native.CALLS = before, calls


def _error(found: Tensor, expected: Tensor) -> float:
    return ((found.double() - expected).abs().max() / expected.abs().max()).item()


def discipline(record: Record) -> None:
    """Reads on the host, capture in a graph, launches and peak memory of a step."""
    launching = importlib.import_module("normwise.kernels.triton.launching")
    for name, last in product(MOVES, (False, True)):
        if record.must_stop("discipline", 330):
            return
        shape = SHAPES[0]
        module = randomized(layer(name, shape, ours))
        x, g = tensor(shape, torch.float32, last), tensor(shape, torch.float32, last).detach()
        parameters, made, run = [*module.parameters()], [], launching.run
        expected = step(module, x, g, parameters)

        def counting(kernel: Any, *args: Any, run: Any = run, made: list[str] = made) -> None:
            made.append(kernel.__name__)
            run(kernel, *args)

        launching.run = counting
        try:
            y = module(x)
            forward = len(made)
            torch.autograd.grad(y, [x, *parameters], g)
        finally:
            launching.run = run
        del y
        row: dict[str, Any] = {"layer": name, "channels last": last, "launches": [forward, len(made) - forward]}
        if not DRY:
            row |= on_a_device(module, x, g, parameters, expected)
        record.add("discipline", row)


def on_a_device(
    module: nn.Module, x: Tensor, g: Tensor, parameters: list[nn.Parameter], expected: list[Tensor]
) -> dict[str, Any]:
    """What only a device has: reads by the host, graphs, and memory beyond results, in sizes of x."""
    told: dict[str, Any] = {}
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(module, x, g, parameters)
        told["host reads"] = "none"
    except RuntimeError as error:
        told["host reads"] = str(error)[:200]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    size = x.numel() * x.element_size()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    y = module(x)
    told["memory forward"] = (torch.cuda.max_memory_allocated() - before) / size
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    torch.autograd.grad(y, [x, *parameters], g)
    told["memory backward"] = (torch.cuda.max_memory_allocated() - before) / size
    try:
        graph = torch.cuda.CUDAGraph()
        aside = torch.cuda.Stream()
        with torch.cuda.stream(aside):
            step(module, x, g, parameters)
        torch.cuda.current_stream().wait_stream(aside)
        with torch.cuda.graph(graph):
            captured = step(module, x, g, parameters)
        graph.replay()
        torch.cuda.synchronize()
        told["graph"] = "same bits" if all(map(torch.equal, captured, expected)) else "other results"
    except RuntimeError as error:
        told["graph"] = str(error)[:200]
    return told


def speed(record: Record) -> None:
    """A step of each layer, eager, next to torch's; then compiled, for as long as there is time."""
    rate = record.told["copy"][0]["GB/s"]
    for compiled in (False, True):
        for name, shape, dtype, last in problems():
            if record.must_stop(f"seconds of a step, {'compiled' if compiled else 'eager'}", 150):
                return
            torch.manual_seed(0)
            x, g = tensor(shape, dtype, last), tensor(shape, dtype, last).detach()
            row = {"layer": name, "shape": [*shape], "dtype": str(dtype), "channels last": last, "compiled": compiled}
            if rate is not None:
                row["limit"] = MOVES[name] * x.numel() * x.element_size() / (rate * 1e9)
            for whose, package in (("normwise", ours), ("torch", nn)):
                module = layer(name, shape, package)
                if module is None or (DRY and compiled and (name, last) != ("batch", False)):
                    continue
                module, call = module.to(DEVICE), module
                if compiled:
                    torch._dynamo.reset()
                    call = torch.compile(module, backend="eager" if DRY else "inductor")
                row[whose] = _tried(call, x, g, [*module.parameters()])
            record.add("seconds of a step", row)


def _tried(*args: Any) -> Any:
    """The time of a step, or what went wrong."""
    try:
        return seconds(lambda: step(*args))
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:200]


def comparison(record: Record) -> None:
    """The main job on the device and on the CPU."""
    data = "fashion-mnist" if Path("/usr/share/datasets/fashion-mnist").exists() and not DRY else "digits"
    for device in ("cpu",) if DRY else ("cuda", "cpu"):
        with tempfile.TemporaryDirectory() as out:
            command = [
                "compare",
                "--data",
                data,
                *(("--epochs", "0.1") if DRY else ("--quick",)),
                "--methods",
                "batch,group",
            ]
            command += ["--batch-sizes", "32", "--seeds", "2", "--lrs", "0.1", "--workers", "1"]
            command += ["--device", device, "--out", out]
            environment = {k: v for k, v in os.environ.items() if k not in ("NORMWISE_BACKEND", "TRITON_INTERPRET")}
            environment["PYTHONPATH"] = os.pathsep.join(sys.path)
            begin = time.monotonic()
            limit = max(30.0, record.left() if device == "cpu" else record.left() / 2)
            try:
                run = [sys.executable, "-m", "normwise", *command]
                done = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=limit, check=False)
                told = {"said": (done.stdout or done.stderr)[-1500:], "code": done.returncode}
            except subprocess.TimeoutExpired:
                told = {"said": "", "code": f"took more than the {limit:.0f} s that were left"}
            took = None if DRY else time.monotonic() - begin
            record.add("compare", {"device": device, "command": " ".join(command[:-2]), "seconds": took, **told})


def main() -> None:
    """Run all parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "gpu.json", help="where to write")
    parser.add_argument("--dry", action="store_true", help="without a device")
    record = Record(parser.parse_args().out)
    if not DRY and serving.why_not():
        sys.exit(f"The kernels in Triton do not serve: {serving.why_not()}. Without a device: --dry")
    record.told["environment"] = {**describe_environment(), "platform": platform.platform()}
    for part in (bandwidth, correctness, discipline, speed, comparison):
        part(record)
    record.told["finished"] = True
    record.write()


if __name__ == "__main__":
    main()
