"""What a call of an operator launches, and compiles to for a device that need not be there."""

from __future__ import annotations

import hashlib
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from normwise.kernels.triton import launching, wholes

TARGETS = {
    **{f"sm_{arch}": GPUTarget("cuda", arch, 32) for arch in (80, 90, 100, 120)},
    **{arch: GPUTarget("hip", arch, 64) for arch in ("gfx942", "gfx90a")},
    "gfx1100": GPUTarget("hip", "gfx1100", 32),
}
TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
POINTERS = {
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
}
# Of the launcher's, which are no arguments of kernels; AMD's compiler has the first alone.
_OPTIONS = ("num_warps", "maxnreg")
# A float64 mean is put together from two numbers by an addition a row, and cut into them by a subtraction: no more.
_IN_FLOAT64 = re.compile(r"(?:arith\.(?:mulf|divf)|math\.\w+).*f64|arith\.addf.*(?:x\d+xf64|: f64)")
LAYERS = ("instance", "group", "layer", "batch", "evaluation", "switchable", "cells")


@dataclass(frozen=True)
class Launch:
    """A kernel, what it is given, and what it is compiled for."""

    kernel: Any
    programs: int
    args: tuple[Any, ...]
    options: dict[str, Any]

    @property
    def name(self) -> str:
        return self.kernel.__name__

    @property
    def key(self) -> str:
        """The same for launches of which one is compiled."""
        told = (self.source().hash(), *(self.options[name] for name in _OPTIONS if name in self.options))
        return f"{self.name} {hashlib.sha256(repr(told).encode()).hexdigest()[:12]}"

    def source(self) -> ASTSource:
        """As the launcher would specialize it: numbers of 1 and multiples of 16, absent tensors, aligned ones."""
        constants: dict[tuple[int, ...], Any] = {}
        attributes: dict[tuple[int, ...], Any] = {}

        def kind(path: tuple[int, ...], value: Any, constant: bool) -> Any:
            if constant or value is None or (type(value) is int and value == 1):
                constants[path] = value
                return "constexpr"
            if isinstance(value, tuple):
                return tuple(kind((*path, i), v, False) for i, v in enumerate(value))
            if isinstance(value, Tensor) or (type(value) is int and value % 16 == 0):
                attributes[path] = [["tt.divisibility", 16]]
            if isinstance(value, Tensor):
                return POINTERS[value.dtype]
            return "fp32" if isinstance(value, float) else "i32" if value < 2**31 else "i64"

        values = dict(zip(self.kernel.arg_names, self.args, strict=False)) | self.options
        signature = {p.name: kind((i,), values[p.name], p.is_constexpr) for i, p in enumerate(self.kernel.params)}
        return ASTSource(self.kernel, signature, constants, attributes)

    def compile(self, target: str) -> dict[str, int]:
        """Compile for a device, and read what came out."""
        read, known = (_of_nvidia, _OPTIONS) if target.startswith("sm_") else (_of_amd, _OPTIONS[:1])
        options = {name: self.options[name] for name in known if name in self.options}
        compiled = triton.compile(self.source(), target=TARGETS[target], options=options)
        told = {"warps": self.options["num_warps"], "shared": compiled.metadata.shared}
        return {**told, "float64": len(_IN_FLOAT64.findall(compiled.asm["ttir"])), **read(compiled.asm)}


def _of_nvidia(asm: dict[str, Any]) -> dict[str, int]:
    def told(tool: str, *how: str) -> str:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(asm["cubin"])
            file.flush()
            return subprocess.run([str(TOOLS / tool), *how, file.name], capture_output=True, check=True).stdout.decode()

    numbers = re.search(r"REG:(\d+) .*LOCAL:(\d+)", told("cuobjdump", "-res-usage"))
    assert numbers is not None
    registers, local = map(int, numbers.groups())
    code = told("nvdisasm", "-c")
    return {
        "registers": registers,
        "spills": local + len(re.findall(r"\b(?:STL|LDL)\b", code)),
        "wide loads": len(re.findall(r"\bLDG\.(?:\w+\.)*128", code)),
        "loads": len(re.findall(r"\bLDG\.", code)),
        "atomics": len(re.findall(r"\b(?:ATOMG?|RED)\b", code)),
    }


def _of_amd(asm: dict[str, Any]) -> dict[str, int]:
    code = asm["amdgcn"]

    def number(title: str) -> int:
        return int(re.search(rf"\.{title}:\s*(\d+)", code)[1])  # type: ignore[index]

    return {
        "registers": number("vgpr_count"),
        "spills": number("vgpr_spill_count") + number("private_segment_fixed_size"),
        "wide loads": len(re.findall(r"(?:global|buffer)_load_(?:dwordx4|b128)", code)),
        "loads": len(re.findall(r"(?:global|buffer)_load_", code)),
        "atomics": len(re.findall(r"(?:global|buffer|flat)_atomic", code)),
    }


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Note launches instead of making them."""
    launches: list[Launch] = []
    before = launching.run

    def note(kernel: Any, programs: int, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        launches.append(Launch(kernel, programs, args, options))

    launching.run = note
    try:
        yield launches
    finally:
        launching.run = before


def launches(
    layer: str, shape: tuple[int, ...], dtype: torch.dtype, columns: bool = False, code: int = 0
) -> tuple[list[Launch], list[Launch]]:
    """What a training step of a layer launches, forward and backward, on tensors without data."""
    with recorded() as made:
        backward = _forward(layer, shape, dtype, columns, code)
        forward = [*made]
        backward()
    return forward, made[len(forward) :]


def _forward(layer: str, shape: tuple[int, ...], dtype: torch.dtype, columns: bool, code: int) -> Callable[[], Any]:
    """Normalize; what then gives the gradients."""

    def empty(*size: int, of: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(size, dtype=of, device="meta")

    C, x = shape[1], empty(*shape, of=dtype)
    x = x.movedim(1, -1).contiguous().movedim(-1, 1) if columns else x
    w, act = empty(C), (code, 0.01)
    averages = (empty(C), empty(C), empty(of=torch.int64), empty(of=torch.int64))
    groups = {"instance": C, "group": 32 if C % 32 == 0 else 1, "layer": 1}
    if layer in groups:
        G = groups[layer]
        _, moments = wholes.sample_norm(x, G, w, w, 1e-5, *act)
        return lambda: wholes.sample_norm_backward(x, x, moments, G, w, w, 1e-5, *act)
    if layer in ("batch", "evaluation"):
        trains = layer == "batch"
        _, moments = wholes.batch_norm(x, w, w, 1e-5, trains, *averages, 0.1, *act)
        return lambda: wholes.batch_norm_backward(x, x, moments, w, w, 1e-5, trains, True, *act)
    if layer == "switchable":
        mix = (empty(3), empty(3), True, [C, 1, 0], 1e-5, None, None)
        _, moments = wholes.mix_norm(x, w, w, *mix, *averages, 0.1, *act)
        return lambda: wholes.mix_norm_backward(x, x, moments, w, w, *mix, *act)
    cell = empty(*shape[:2])
    wholes.OPERATORS["moments"](x)
    wholes.OPERATORS["apply"](x, cell, cell, cell, *act)
    four = (x, x, cell, cell, cell, cell)

    def backward() -> None:
        wholes.OPERATORS["grad_sums"](*four, *act)
        wholes.OPERATORS["grad_input"](*four, cell, cell, *act)

    return backward


# A thread's. Of 64k on NVIDIA's that leaves room for three programs of 4 warps, or of 8 warps, which hold a group, for
# two; of 512 a lane on AMD's for two.
REGISTERS = {("sm", 4): 168, ("sm", 8): 128, ("gf", 4): 192, ("gf", 8): 192}
# Kernels that read x or its gradient, and how many tensors of that size.
READS = {"piece_moments": 1, "batch_apply": 1, "mix_apply": 1, "cell_apply": 1, "sample_forward": 1}
READS |= dict.fromkeys(("batch_grad_sums", "batch_grad_input", "mix_grad_sums", "mix_grad_input"), 2)
READS |= {"cell_grad_sums": 2, "cell_grad_input": 2, "sample_backward": 2}


def faults(launch: Launch, figures: dict[str, int], target: str) -> list[str]:
    """What is wrong with what came out of the compiler."""
    wrong = []
    if figures["spills"]:
        wrong.append(f"spills {figures['spills']}")
    if figures["registers"] > REGISTERS[target[:2], max(4, figures["warps"])]:
        wrong.append(f"takes {figures['registers']} registers")
    if figures["atomics"]:
        wrong.append("adds in no fixed order")
    if figures["float64"] and launch.options["ACC"] != triton.language.float64:
        wrong.append(f"calculates in float64: {figures['float64']} times")
    narrow = narrow_loads(launch, figures, target)
    return [*wrong, narrow] if narrow else wrong


def narrow_loads(launch: Launch, figures: dict[str, int], target: str) -> str | None:
    """Whether a tile, whose rows allow it, is read by loads of less than 128 bits."""
    if launch.name not in READS:
        return None
    x, (R, B) = launch.args[0], (launch.options["R"], launch.options["B"])
    run = x.shape[1] if launch.options["COLUMNS"] else x[0, 0].numel()
    lanes = 32 if target.startswith("sm_") else TARGETS[target].warp_size
    threads, size = lanes * launch.options["num_warps"], x.element_size()
    if run * size % 16 or run % 16 or R * B * size < 16 * threads:
        return None
    # In evaluation without an activation the gradient needs no x.
    reads = 1 if launch.options.get("STORED") and not launch.options["ACT"] else READS[launch.name]
    needed = reads * R * B * size // (16 * threads)
    return None if figures["wide loads"] >= needed else f"{figures['wide loads']} wide loads of {needed}"
