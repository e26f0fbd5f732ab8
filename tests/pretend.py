"""A pretend accelerator: a device of torch's own kind, "pretend", whose tensors lie in the CPU's memory.

Real training runs on it, with the CPU's results, so that a test shows without a GPU that a program moves what it must,
mixes no devices, and waits for the device no more often than it should. As on a GPU

* an operator that meets tensors of both devices refuses (scalars and copies excepted, and indices on the CPU);
* a generator of the CPU cannot draw on the device;
* reading a value makes the host wait. Each reading is counted, and each operator: see :func:`counting`;
* memory is counted and can be limited: see :class:`Memory`;
* ``torch.accelerator`` names it, waits for it and tells its memory; autocast and ``GradScaler`` know it.

Other than on a GPU

* it draws random numbers from the CPU's generator, so that a run is the same as on the CPU;
* there is one device, without streams and generators;
* modules move by ``torch.__future__.set_swap_module_params_on_conversion``, so that parameters stay who they are.

:func:`install` registers it, which cannot be undone: ``torch.accelerator`` then names it to all that runs later in the
process. It must come before the first backward pass, when autograd counts the devices. So no test installs it in the
process of the suite. Tests of the device stand in files whose names begin with ``pretend_``, install it in a fixture,
and run in a process of their own: see :func:`run_alone`. A program runs with the device in place by
``python tests/pretend.py -m module arguments``.
"""

from __future__ import annotations

import contextlib
import functools
import runpy
import subprocess
import sys
import types
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "pretend"


# What is counted.


@dataclass
class Counts:
    """Operators and readings on the host by name, the former without views and allocations; copies to the device."""

    operators: Counter[str] = field(default_factory=Counter)
    reads: Counter[str] = field(default_factory=Counter)
    copies: int = 0
    waits: int = 0


_counting: list[Counts] = []


@contextlib.contextmanager
def counting() -> Iterator[Counts]:
    """Count what runs on the device."""
    counts = Counts()
    _counting.append(counts)
    try:
        yield counts
    finally:
        _counting.remove(counts)


# Their results are as large as the values say, or are no tensors at all.
_READS = {
    "_local_scalar_dense", "_unique", "_unique2", "bincount", "equal", "is_nonzero", "item", "linalg_lstsq",
    "masked_select", "nonzero", "unique_consecutive", "unique_dim",
}  # fmt: skip
_ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_pin_memory"}
# Views by the way they are used, though torch does not tag them so.
_VIEWS = {"_unsafe_view", "_reshape_alias", "lift_fresh", "set_"}


def is_work(operator: Any) -> bool:
    """Whether an operator computes or moves something, other than views and allocations."""
    name = name_of(operator)
    return not (operator.is_view or name in _ALLOCATIONS or name in _VIEWS)


def name_of(operator: Any) -> str:
    """An operator's name without namespace and overload."""
    return str(operator._schema.name).partition("::")[2]


def _count(operator: Any, tensors: list[Tensor], kwargs: dict[str, Any]) -> None:
    name = name_of(operator)
    read = name if name in _READS else None
    if name == "repeat_interleave" and kwargs.get("output_size") is None:
        read = name
    if name.startswith(("index", "_index_put")) and any(t.dtype in (torch.bool, torch.uint8) for t in tensors[1:]):
        read = f"{name} by a mask"
    copied = [_is_ours(t) for t in tensors] if name == "_copy_from" else None
    if copied == [True, False]:
        read = "copy to the CPU"
    for counts in _counting:
        if is_work(operator):
            counts.operators[name] += 1
        if read:
            counts.reads[read] += 1
        if copied == [False, True]:
            counts.copies += 1


# Memory.


class Memory:
    """What lies on the device, in bytes, and how much may: beyond ``limit`` torch's error of no memory comes."""

    allocated = 0
    peak = 0
    limit: int | None = None

    @classmethod
    def reset_peak(cls) -> None:
        cls.peak = cls.allocated


class _Block:
    """The memory behind a storage of the device: a storage of the CPU."""

    def __init__(self, inner: torch.UntypedStorage) -> None:
        self.inner, self.size = inner, inner.nbytes()
        if Memory.limit is not None and Memory.allocated + self.size > Memory.limit:
            self.size = 0
            raise torch.OutOfMemoryError(f"{NAME} out of memory: tried to allocate {inner.nbytes()} bytes more")
        Memory.allocated += self.size
        Memory.peak = max(Memory.peak, Memory.allocated)

    def __del__(self) -> None:
        Memory.allocated -= self.size


class _Maker(Tensor):
    """What storages of the device are made with: torch makes them for tensors of subclasses only."""

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotImplementedError(func)


def _storage(inner: torch.UntypedStorage) -> torch.UntypedStorage:
    """A storage of the device around memory of the CPU."""
    made = Tensor._make_wrapper_subclass(
        _Maker, (0,), dtype=torch.uint8, device=torch.device(NAME, 0), storage_size=inner.nbytes()
    )
    storage = made.untyped_storage()
    storage.block = _Block(inner)  # type: ignore[attr-defined]
    return storage


# Some operators change no more than what a tensor is of its storage: those of the CPU do it for any device.
_ANY_DEVICE = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)


def _point(t: Tensor, storage: torch.UntypedStorage, like: Tensor) -> Tensor:
    """Make a tensor one of a storage, with the shape and strides of another."""
    place = (like.storage_offset(), like.shape, like.stride())
    torch.ops.aten.set_.source_Storage_storage_offset.redispatch(_ANY_DEVICE, t, storage, *place)
    return t


def _outer(inner: Tensor, storage: torch.UntypedStorage | None = None) -> Tensor:
    """The tensor of the device for one of the CPU; of a ``storage`` that the device has already, if any."""
    if inner.dtype in LACKS:
        raise TypeError(f"Cannot convert a {NAME} Tensor to {inner.dtype}, which the device does not have")
    storage = _storage(inner.untyped_storage()) if storage is None else storage
    return _point(torch._C._acc.create_empty_tensor((0,), inner.dtype), storage, inner)


def _inner(t: Any) -> Any:
    """The tensor of the CPU behind one of the device; anything else as it is."""
    if not _is_ours(t):
        return t
    place = (t.storage_offset(), t.shape, t.stride())
    return torch.empty(0, dtype=t.dtype).set_(_memory(t), *place)


def _is_ours(t: Any) -> bool:
    return isinstance(t, Tensor) and t.device.type == NAME


def _memory(t: Tensor) -> torch.UntypedStorage:
    block = getattr(t.untyped_storage(), "block", None)
    return torch.UntypedStorage(0) if block is None else block.inner  # of an empty one nobody has asked before


# Types that the device does not have: a test may put float64 here, which MPS lacks.
LACKS: set[torch.dtype] = set()

# Operators.

# They may meet tensors of both devices.
_MEET = {"_copy_from", "index", "index_put", "index_put_", "_index_put_impl_"}


def _run(operator: Any, *args: Any, **kwargs: Any) -> Any:
    """Compute on the CPU what came for the device."""
    name = name_of(operator)
    if name == "set_":
        return operator.redispatch(_ANY_DEVICE, *args, **kwargs)
    if name == "_fused_sdp_choice":
        return 0  # the CPU's choice is a kernel of the CPU: attention in plain operators
    flat, spec = pytree.tree_flatten((args, kwargs))
    ours = [t for t in flat if _is_ours(t)]
    _refuse_a_mixture(name, flat, bool(ours))
    _count(operator, [t for t in flat if isinstance(t, Tensor)], kwargs)
    inner = [_inner(value) for value in flat]
    known = {id(i): t for i, t in zip(inner, flat, strict=True) if isinstance(t, Tensor)}
    storages = {_memory(t)._cdata: t.untyped_storage() for t in ours}
    args, kwargs = pytree.tree_unflatten(inner, spec)
    on_device = bool(ours)
    if name == "_copy_from":
        args[1].copy_(args[0])
        return flat[1]
    if kwargs.get("device") is not None:
        on_device, kwargs["device"] = torch.device(kwargs["device"]).type == NAME, torch.device("cpu")
        kwargs["pin_memory"] = False
    elif not ours:
        on_device, kwargs["device"] = True, torch.device("cpu")  # made of nothing, on the device by torch's own choice
    # Torch hands a number over as one, also where the operator that it chose wants a tensor: ``x % 2``.
    declared = zip(args, operator._schema.arguments, strict=False)
    number = any(isinstance(a, bool | int | float | complex) and str(d.type) == "Tensor" for a, d in declared)
    found = (operator.overloadpacket if number else operator)(*args, **kwargs)

    def outer(t: Any) -> Any:
        if not isinstance(t, Tensor) or not on_device:
            return t
        return known[id(t)] if id(t) in known else _outer(t, storages.get(t.untyped_storage()._cdata))

    for i, t in zip(inner, flat, strict=True):
        if _is_ours(t) and (i.shape != t.shape or i.untyped_storage()._cdata not in storages):
            _point(t, _storage(i.untyped_storage()), i)  # resized
    return pytree.tree_map(outer, found)


def _refuse_a_mixture(name: str, flat: list[Any], on_device: bool) -> None:
    for value in flat if on_device and name not in _MEET else ():
        if isinstance(value, Tensor) and value.dim() and not _is_ours(value):
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found {value.device} and {NAME}:0 ({name})"
            )
    if any(isinstance(value, torch.Generator) for value in flat):
        raise RuntimeError(f"Expected a {NAME!r} device type for generator but found 'cpu' ({name})")


# Kernels of a device that the CPU has under other names.
_FURTHER = {"convolution", "convolution_backward", "_copy_from"}


def _kernels() -> Iterator[tuple[str, Any]]:
    """The operators that a device has kernels of; the others are made of these."""
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    for name in torch._C._dispatch_get_all_op_names():
        short = name.removeprefix("aten::")
        if short != name and (has(name, "CPU") or short.startswith("_foreach_") or short in _FURTHER):
            yield short, _overload(short)


# Autocast: torch has lists for each kind of device, and none for one of which it does not know.
_LOWER = (
    "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d.input", "conv_transpose3d.input", "convolution",
    "linear", "matmul", "mm", "mv", "bmm", "addmm", "addmv", "baddbmm", "addbmm", "scaled_dot_product_attention",
)  # fmt: skip
_FULL = (
    "softmax.int", "log_softmax.int", "layer_norm", "native_layer_norm", "group_norm", "rms_norm", "cross_entropy_loss",
    "nll_loss", "nll_loss_nd", "mse_loss", "l1_loss", "smooth_l1_loss", "kl_div", "exp", "log", "log2", "log10",
    "log1p", "expm1", "pow.Tensor_Scalar", "pow.Tensor_Tensor", "rsqrt", "reciprocal", "norm.Scalar", "cumsum",
    "cumprod", "prod", "sum", "sum.dim_IntList", "softplus", "binary_cross_entropy_with_logits",
)  # fmt: skip


def _overload(name: str) -> Any:
    plain, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.aten, plain), overload or "default")


def _autocast(library: torch.library.Library, name: str, lower: bool) -> None:
    operator = _overload(name)
    key = torch._C.DispatchKey.AutocastPrivateUse1

    def cast(value: Any) -> Any:
        floating = isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64
        if not floating or value.device.type != NAME:
            return value
        return value.to(torch.get_autocast_dtype(NAME) if lower else torch.float32)

    def kernel(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key)):
            args, kwargs = pytree.tree_map(cast, (args, kwargs))
            return operator(*args, **kwargs)

    library.impl(name, kernel, "AutocastPrivateUse1")


# The device.


def _synchronize(device: Any = None) -> None:
    for counts in _counting:
        counts.waits += 1


class _Module(types.ModuleType):
    """What stands as ``torch.pretend``."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def set_device(self, device: Any) -> None:
        pass

    def get_device_name(self, device: Any = None) -> str:
        return "Pretend accelerator"

    def _is_in_bad_fork(self) -> bool:
        return False

    # It draws from the CPU's generator, which torch.manual_seed has seeded already.
    def manual_seed(self, seed: int) -> None:
        pass

    def manual_seed_all(self, seed: int) -> None:
        pass

    def get_rng_state(self, device: Any = None) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        torch.set_rng_state(state)

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]


# As torch.accelerator has them.
_MEMORY = {
    "memory_allocated": lambda *_: Memory.allocated,
    "memory_reserved": lambda *_: Memory.allocated,
    "max_memory_allocated": lambda *_: Memory.peak,
    "max_memory_reserved": lambda *_: Memory.peak,
    "reset_peak_memory_stats": lambda *_: Memory.reset_peak(),
    "empty_cache": lambda: None,
    "synchronize": _synchronize,
}


def _tag(storage: Any) -> str | None:
    return NAME if storage.device.type == NAME else None


def _restored(storage: Any, location: str) -> Any:
    return _storage(storage) if location.startswith(NAME) else None


def _let_storages(name: str, wrapped: bool) -> None:
    """Have a method of storages, which torch calls to save and to copy them, go to the memory behind."""
    elsewhere = getattr(torch.UntypedStorage, name)

    def method(storage: Any, *args: Any) -> Any:
        if storage.device.type != NAME:
            return elsewhere(storage, *args)
        found = elsewhere(storage.block.inner, *args)
        return _storage(found) if wrapped else found

    setattr(torch.UntypedStorage, name, method)


_installed: list[torch.library.Library] = []


def install() -> torch.device:
    """Register the device with torch, once and for the rest of the process, and give it."""
    if _installed:
        return torch.device(NAME)
    module = _Module(f"torch.{NAME}")
    _setup_privateuseone_for_python_backend(NAME, backend_module=module)
    for name, function in _MEMORY.items():
        setattr(module, name, function)
        setattr(torch.accelerator, name, function)
    library = torch.library.Library("aten", "IMPL")
    for name, operator in _kernels():
        library.impl(name, functools.partial(_run, operator), "PrivateUse1")
    # Torch's own would take a kernel of GPUs for each cell.
    for name in ("lstm.input", "lstm.data"):
        library.impl(name, _overload(name).py_kernels[torch._C.DispatchKey.Autograd], "AutogradPrivateUse1")
    library.impl("_pin_memory", lambda t, device=None: t.clone(), "CPU")
    others = torch.library.Library("_", "IMPL")
    others.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    for names, lower in ((_LOWER, True), (_FULL, False)):
        for name in names:
            _autocast(library, name, lower)
    torch.serialization.register_package(0, _tag, _restored)
    for name in ("data_ptr", "cpu", "_write_file", "_set_from_file"):
        _let_storages(name, wrapped=False)
    _let_storages("clone", wrapped=True)
    torch.__future__.set_swap_module_params_on_conversion(True)
    _installed.extend((library, others))
    return torch.device(NAME)


def run_alone(path: Path, *options: str) -> None:
    """Run the tests of a file in a process of their own; fail with what they print."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(path), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{path.name}:\n{done.stdout[-8000:]}\n{done.stderr[-2000:]}"


if __name__ == "__main__":
    # As the module that others import, whose lists they must share.
    sys.path.insert(0, str(Path(__file__).parent))
    from pretend import install as install_shared

    install_shared()
    _, *sys.argv = [a for a in sys.argv if a != "-m"]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
