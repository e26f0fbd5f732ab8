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
* a tensor is of a subclass, :class:`PretendTensor`, and so are parameters;
* there is one device, without streams, and ``torch.load`` cannot bring to it what was saved from elsewhere.

:func:`install` registers it, which cannot be undone: ``torch.accelerator`` then names it to all that runs later in the
process. So no test installs it in the process of the suite. Tests of the device stand in files whose names begin with
``pretend_``, install it in a fixture, and run in a process of their own: see :func:`run_alone`. A program runs with the
device in place by ``python tests/pretend.py -m module arguments``.
"""

from __future__ import annotations

import contextlib
import functools
import runpy
import subprocess
import sys
import types
import weakref
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "pretend"


# What is counted.


@dataclass
class Counts:
    """Operators by name without views and allocations; readings on the host and copies to the device, by name too."""

    operators: Counter[str] = field(default_factory=Counter)
    reads: Counter[str] = field(default_factory=Counter)
    copies: Counter[str] = field(default_factory=Counter)
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


def _count(operator: Any, tensors: list[Tensor], to: str | None, kwargs: dict[str, Any]) -> None:
    name = name_of(operator)
    source, target = _copy_between(name, tensors, to)
    read = name if name in _READS else None
    if name == "repeat_interleave" and kwargs.get("output_size") is None:
        read = name
    if name in {"index", "_index_put_impl_", "index_put_", "index_put"} and any(
        t.dtype in (torch.bool, torch.uint8) for t in tensors[1:]
    ):
        read = f"{name} by a mask"
    if source == NAME and target == "cpu":
        read = "copy to the CPU"
    for counts in _counting:
        if is_work(operator):
            counts.operators[name] += 1
        if read:
            counts.reads[read] += 1
        if source == "cpu" and target == NAME:
            counts.copies[name] += 1


def _copy_between(name: str, tensors: list[Tensor], to: str | None) -> tuple[str | None, str | None]:
    """The devices that a copy goes from and to."""
    if name == "_to_copy":
        return tensors[0].device.type, to or tensors[0].device.type
    if name in {"copy_", "_copy_from"}:
        target, source = tensors[:2] if name == "copy_" else reversed(tensors[:2])
        return source.device.type, target.device.type
    return None, None


# Memory.


class Memory:
    """What lies on the device, in bytes, and how much may: beyond ``limit`` torch's error of no memory comes."""

    allocated = 0
    peak = 0
    limit: int | None = None
    # By the storage: how many tensors share it.
    shared: ClassVar[Counter[int]] = Counter()

    @classmethod
    def take(cls, inner: Tensor) -> None:
        storage = inner.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if not cls.shared[key]:
            if cls.limit is not None and cls.allocated + size > cls.limit:
                del cls.shared[key]
                raise torch.OutOfMemoryError(f"{NAME} out of memory: tried to allocate {size} bytes more")
            cls.allocated += size
            cls.peak = max(cls.peak, cls.allocated)
        cls.shared[key] += 1
        weakref.finalize(inner, cls.release, key, size).atexit = False

    @classmethod
    def release(cls, key: int, size: int) -> None:
        cls.shared[key] -= 1
        if not cls.shared[key]:
            del cls.shared[key]
            cls.allocated -= size

    @classmethod
    def reset_peak(cls) -> None:
        cls.peak = cls.allocated


# Tensors.


class PretendTensor(Tensor):
    """A tensor of the device; ``inner`` is the one of the CPU that holds its values."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> PretendTensor:
        made = Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=torch.device(NAME, 0),
        )  # fmt: skip
        Memory.take(inner)
        made.inner = inner
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"{self.inner!r} on {NAME}"

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        if not force:
            raise TypeError(f"can't convert {NAME}:0 device type tensor to numpy. Use Tensor.cpu() first")
        return self.detach().cpu().numpy()

    def __deepcopy__(self, memo: dict[int, Any]) -> PretendTensor:
        if id(self) in memo:
            return memo[id(self)]
        if not self.is_leaf:
            raise RuntimeError("Only Tensors created explicitly by the user support the deepcopy protocol")
        made = memo[id(self)] = _restored(PretendTensor(self.inner.clone()), self)
        if self.grad is not None:
            made.grad = self.grad.__deepcopy__(memo)
        return made

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _loaded, (self.inner, self.requires_grad, getattr(self, "_is_param", False))

    # With these two torch exchanges the contents of a parameter that moves to the device, as it does for a GPU: who
    # holds it, an optimizer for one, holds the moved one.
    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(parts: dict[str, Tensor], *_: Any) -> PretendTensor:
        return PretendTensor(parts["inner"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _restored(made: Tensor, like: Tensor) -> Any:
    """Make a parameter of what was one."""
    made.requires_grad_(like.requires_grad)
    if getattr(like, "_is_param", False):
        made._is_param = True  # type: ignore[attr-defined]
    return made


# The mark of a file's storages that were saved from the device; loaded to elsewhere, they have lost it.
_SAVED = f"{NAME}:saved"


def _tag(storage: Any) -> str | None:
    return _SAVED if storage._cdata in Memory.shared else None


def _restore(storage: Any, location: str) -> Any:
    if location == _SAVED:
        storage.saved_from_the_device = True
        return storage
    if location.startswith(NAME):
        raise NotImplementedError(f"load to the CPU and move: {NAME} restores only what was saved from it")
    return None


def _loaded(inner: Tensor, requires_grad: bool, parameter: bool) -> Tensor:
    """Give what torch.load or pickle read back."""
    if not hasattr(inner.untyped_storage(), "saved_from_the_device"):
        return torch.nn.Parameter(inner, requires_grad) if parameter else inner.requires_grad_(requires_grad)
    made = PretendTensor(inner).requires_grad_(requires_grad)
    if parameter:
        made._is_param = True
    return made


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, PretendTensor) else value


# Operators.

# They may meet tensors of both devices.
_MEET = {"_to_copy", "copy_", "_copy_from", "index", "index_put", "index_put_", "_index_put_impl_", "set_"}


def _run(operator: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Compute on the CPU what came for the device."""
    name = name_of(operator)
    flat, spec = pytree.tree_flatten((args, kwargs))
    tensors = [t for t in flat if isinstance(t, Tensor)]
    ours = [t for t in tensors if isinstance(t, PretendTensor)]
    to = kwargs.get("device")
    to = None if to is None else torch.device(to).type
    _refuse_a_mixture(name, tensors, ours, flat)
    _count(operator, tensors, to, kwargs)
    if name == "_fused_sdp_choice":
        return 0  # the CPU's choice is a kernel of the CPU: attention in plain operators
    args, kwargs = pytree.tree_unflatten([_inner(value) for value in flat], spec)
    if to == NAME:
        kwargs["device"] = torch.device("cpu")
    if kwargs.get("pin_memory"):
        kwargs["pin_memory"] = False
    found = operator(*args, **kwargs)
    on_device = bool(ours) if to is None else to == NAME
    # What is changed in place, or given back as it came, stays the tensor that it is.
    known = {id(_inner(t)): t for t in tensors}

    def outer(t: Any) -> Any:
        if not isinstance(t, Tensor):
            return t
        return known[id(t)] if id(t) in known else (PretendTensor(t) if on_device else t)

    for t in ours:
        assert t.shape == t.inner.shape, f"{name}: a tensor of {NAME} keeps its shape"
    return pytree.tree_map(outer, found)


def _refuse_a_mixture(name: str, tensors: list[Tensor], ours: list[PretendTensor], flat: list[Any]) -> None:
    if ours and name not in _MEET:
        for t in tensors:
            if not isinstance(t, PretendTensor) and t.dim():
                raise RuntimeError(
                    f"Expected all tensors to be on the same device, but found {t.device} and {NAME}:0 ({name})"
                )
    if any(isinstance(value, torch.Generator) for value in flat):
        raise RuntimeError(f"Expected a {NAME!r} device type for generator but found 'cpu' ({name})")


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
    for name, operator in _makers():
        library.impl(name, functools.partial(_make, operator), "PrivateUse1")
    library.impl("_copy_from", _copy_from, "PrivateUse1")
    # Torch's own would take a kernel of GPUs for each cell.
    for name in ("lstm.input", "lstm.data"):
        library.impl(name, _overload(name).py_kernels[torch._C.DispatchKey.Autograd], "AutogradPrivateUse1")
    library.impl("_pin_memory", lambda t, device=None: t.clone(), "CPU")
    for names, lower in ((_LOWER, True), (_FULL, False)):
        for name in names:
            _autocast(library, name, lower)
    torch.serialization.register_package(0, _tag, _restore)
    torch.serialization.add_safe_globals([_loaded])
    _installed.append(library)
    return torch.device(NAME)


def _makers() -> Iterator[tuple[str, Any]]:
    """The operators that make tensors of nothing."""
    for name in torch._C._dispatch_get_all_op_names():
        if not name.startswith("aten::") or name.endswith("out"):
            continue
        operator = _overload(name.removeprefix("aten::"))
        arguments = operator._schema.arguments
        if any(a.name == "device" for a in arguments) and not any("Tensor" in str(a.type) for a in arguments):
            yield name.removeprefix("aten::"), operator


def _make(operator: Any, *args: Any, **kwargs: Any) -> Any:
    return _run(operator, args, {"device": torch.device(NAME), **kwargs})


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    """Copy where torch does so below all Python, as ``torch.tensor(..., device=...)`` does."""
    _count(torch.ops.aten._copy_from.default, [source, target], None, {})
    _inner(target).copy_(_inner(source))
    return target


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
