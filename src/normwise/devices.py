"""What the package knows of devices; everything else handles a ``torch.device`` as a value and asks here.

All of it goes through ``torch.accelerator`` and ``torch.get_device_module``, so that CUDA, ROCm, MPS, XPU and backends
of others (PrivateUse1) are served alike. What one kind alone has stands in the tables below.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import gc
import os
import types
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from normwise.errors import InputError

CPU = torch.device("cpu")
AUTO = "auto"
# What ``precision`` may be, and the type that autocast computes in.
PRECISIONS: dict[str, torch.dtype | None] = {"32": None, "bf16": torch.bfloat16, "16": torch.float16}
# What says which devices a process may see, by their kind: their numbers, separated by commas.
_VISIBLE = {"cuda": "CUDA_VISIBLE_DEVICES", "xpu": "ZE_AFFINITY_MASK"}
_UNDETERMINED = " does not have a deterministic implementation"
_MEMORY_SPENT = ("out of memory", "can't allocate memory", "failed to allocate", "cannot allocate memory")


def available() -> list[str]:
    """Name the devices that there are, the accelerator's first."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return ["cpu"]
    count = torch.accelerator.device_count()
    return [accelerator.type, *(f"{accelerator.type}:{k}" for k in range(count) if count > 1), "cpu"]


def resolve(wanted: str | torch.device | None = AUTO, own: torch.device | None = None) -> torch.device:
    """Give the device that a user means; refuse one that is not there.

    Args:
        wanted: ``"auto"`` or ``None`` is the accelerator that torch reports, else the CPU.
        own: where the user's model lies: ``"auto"`` leaves it on an accelerator.
    """
    if wanted is None or wanted == AUTO:
        if own is not None and own.type != "cpu":
            return own
        wanted = available()[0]
    try:
        device = torch.device(wanted)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"unknown device {wanted!r}: expected auto or one of {', '.join(available())}") from error
    if device.type == "cpu":
        return CPU
    if not _exists(device):
        raise InputError(f"there is no device {wanted} here: expected auto or one of {', '.join(available())}")
    return device if device.index is not None else torch.device(device.type, torch.accelerator.current_device_index())


def of_kind(wanted: str | torch.device | None, kind: str, what: str) -> torch.device:
    """Give the device that a user means, for something that keeps to one kind of device."""
    device = resolve(kind if wanted is None or wanted == AUTO else wanted)
    if device.type != kind:
        raise InputError(f"{what} was begun on {kind} and keeps to it, got the device {wanted}")
    return device


def _exists(device: torch.device) -> bool:
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return (
        accelerator is not None
        and accelerator.type == device.type
        and (device.index or 0) < torch.accelerator.device_count()
    )


def count(device: torch.device) -> int | None:
    """How many devices of its kind there are; of CPUs as many as one likes."""
    return None if device.type == "cpu" else torch.accelerator.device_count()


def name(device: torch.device) -> str:
    """What a device calls itself: ``"cpu"``, ``"cuda: NVIDIA H100"``."""
    told = getattr(_module(device), "get_device_name", None)
    title = ""
    with contextlib.suppress(Exception):
        title = told(device) if told is not None else ""
    return f"{device.type}: {title}" if title else device.type


def _module(device: torch.device) -> Any:
    with contextlib.suppress(RuntimeError):
        return torch.get_device_module(device)
    return None


@contextmanager
def current(device: torch.device) -> Iterator[None]:
    """Make a device the current one for a while: what is made without a number, and its kernels, are there."""
    if device.type == "cpu":
        yield
        return
    before = torch.accelerator.current_device_index()
    torch.accelerator.set_device_index(device.index or 0)
    try:
        yield
    finally:
        torch.accelerator.set_device_index(before)


def synchronize(device: torch.device) -> None:
    """Wait until a device has done all that it was told."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def autocast(device: torch.device | None, precision: str | int) -> contextlib.AbstractContextManager[Any]:
    """Compute in a precision: the forward pass and the loss."""
    if str(precision) not in PRECISIONS:
        raise InputError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    dtype = PRECISIONS[str(precision)]
    return contextlib.nullcontext() if dtype is None else torch.autocast((device or CPU).type, dtype)


# Memory.


def allocated(device: torch.device) -> int | None:
    """The bytes that tensors hold; ``None`` where the device's allocator does not say."""
    return _counted("memory_allocated", device)


def peak_allocated(device: torch.device) -> int | None:
    """The most bytes that tensors held at once since :func:`forget_peak`."""
    return _counted("max_memory_allocated", device)


def forget_peak(device: torch.device) -> None:
    """Begin anew with the peak."""
    with contextlib.suppress(Exception):
        torch.accelerator.reset_peak_memory_stats(device)


def _counted(what: str, device: torch.device) -> int | None:
    if device.type == "cpu":
        return None
    with contextlib.suppress(Exception):  # whatever an allocator without statistics raises
        return getattr(torch.accelerator, what)(device) or None
    return None


def free_memory(device: torch.device) -> int | None:
    """The bytes that are free; ``None`` where that is not to be known."""
    if device.type != "cpu":
        with contextlib.suppress(Exception):
            return torch.accelerator.get_memory_info(device)[0]
        return None
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device's memory did not suffice."""
    spent = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return spent or (isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _MEMORY_SPENT))


def release(device: torch.device) -> None:
    """Give an accelerator's memory back that nothing holds any more."""
    if device.type != "cpu":
        gc.collect()
        with contextlib.suppress(Exception):
            torch.accelerator.empty_cache()


# Moving.


def of(module: nn.Module) -> torch.device | None:
    """The device of a model that lies on one; ``None`` for one that is spread out or has no tensors."""
    found = {t.device for t in (*module.parameters(), *module.buffers())}
    return found.pop() if len(found) == 1 else None


def move(value: Any, device: torch.device | None) -> Any:
    """Move all tensors of any structure; what is there already, or holds none, stays the same object.

    Tuples, lists, mappings, dataclasses, modules and whatever has a ``to``. Modules and objects are copied first: who
    handed them over keeps them as they are. To an accelerator the copies are pinned and do not keep the host waiting.
    """
    if device is None or value is None or isinstance(value, str | bytes | int | float | bool | type):
        return value
    if isinstance(value, Tensor):
        return _moved(value, device)
    if isinstance(value, nn.Module):
        there = all(t.device == device for t in (*value.parameters(), *value.buffers()))
        return value if there else copy.deepcopy(value).to(device)
    if isinstance(value, Mapping) and not hasattr(value, "to"):
        return _moved_mapping(value, device)
    if isinstance(value, tuple | list) and not hasattr(value, "to"):
        items = [move(item, device) for item in value]
        if _same(value, items):
            return value
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if callable(getattr(value, "to", None)):
        made = copy.copy(value)  # some, as those of transformers, change themselves
        moved = made.to(device)
        return made if moved is None else moved
    if dataclasses.is_dataclass(value):
        return _moved_attributes(value, [field.name for field in dataclasses.fields(value)], move, device)
    return value


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    if tensor.device == device:
        return tensor
    if tensor.device.type == "cpu" and pins(device):
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def _moved_mapping(value: Mapping[Any, Any], device: torch.device) -> Any:
    items = {key: move(item, device) for key, item in value.items()}
    if _same(value.values(), items.values()):
        return value
    if type(value) is dict or not isinstance(value, MutableMapping):
        return items
    made = copy.copy(value)
    for key, item in items.items():
        made[key] = item
    return made


def _moved_attributes(value: Any, names: Iterable[str], by: Callable[..., Any], device: torch.device) -> Any:
    """A copy of an object with some attributes moved."""
    held = {name: getattr(value, name) for name in names if hasattr(value, name)}
    moved = {name: by(item, device) for name, item in held.items()}
    if _same(held.values(), moved.values()):
        return value
    made = copy.copy(value)
    for attribute, item in moved.items():
        object.__setattr__(made, attribute, item)
    return made


def held_by(function: Any, device: torch.device | None) -> Any:
    """Move what a function of the user's holds: of a bound method, a ``partial``, or an object that can be called."""
    if device is None or function is None or isinstance(function, type | types.FunctionType | nn.Module):
        return move(function, device)
    if isinstance(function, types.MethodType):
        owner = held_by(function.__self__, device)
        return function if owner is function.__self__ else types.MethodType(function.__func__, owner)
    if isinstance(function, functools.partial):
        parts = function.func, function.args, function.keywords
        moved = held_by(parts[0], device), move(parts[1], device), move(parts[2], device)
        return function if _same(parts, moved) else functools.partial(moved[0], *moved[1], **moved[2])
    if dataclasses.is_dataclass(function):
        return _moved_attributes(function, [field.name for field in dataclasses.fields(function)], held_by, device)
    return _moved_attributes(function, getattr(function, "__dict__", ()), move, device)


def _same(before: Any, after: Any) -> bool:
    return all(a is b for a, b in zip(before, after, strict=True))


@functools.cache
def pins(device: torch.device) -> bool:
    """Whether memory of the host can be pinned for a device, so that copies do not keep the host waiting."""
    if device.type == "cpu":
        return False
    try:
        torch.empty(1).pin_memory()
    except (RuntimeError, NotImplementedError):
        return False
    return True


# Random numbers and determinism.


@contextmanager
def keeping_random_state(device: torch.device | None = None) -> Iterator[None]:
    """Give the random generators of the CPU and of a device, by default the current one, back as they were."""
    if device is None:
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        device = CPU if accelerator is None else resolve(accelerator)
    module = None if device.type == "cpu" else _module(device)
    # MPS has one device and takes none.
    place = () if device.type == "mps" else (device,)
    state = None if module is None else module.get_rng_state(*place)
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            if module is not None:
                module.set_rng_state(state, *place)


@contextmanager
def deterministic(device: torch.device) -> Iterator[list[str]]:
    """Have an accelerator's deterministic algorithms for a while; what has none is told in the list."""
    found: list[str] = []
    if device.type == "cpu":
        yield found
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    settings: Any = torch.utils.deterministic
    fills = settings.fill_uninitialized_memory
    with warnings.catch_warnings():
        warnings.filterwarnings("always", f".*{_UNDETERMINED}")
        show = warnings.showwarning

        def note(message: Any, *rest: Any, **more: Any) -> None:
            operator, told, _ = str(message).partition(_UNDETERMINED)
            if not told:
                show(message, *rest, **more)
            elif operator not in found:
                found.append(operator)

        warnings.showwarning = note
        torch.use_deterministic_algorithms(True, warn_only=True)
        settings.fill_uninitialized_memory = False  # of no use here, and slow
        try:
            yield found
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
            settings.fill_uninitialized_memory = fills


# Several processes.


def workers(wanted: str | torch.device | None, each: int = 1) -> int:
    """How many processes do not get in each other's way; a trial of theirs takes ``each`` accelerators."""
    there = count(resolve(wanted))
    return min(os.cpu_count() or 1, 4) if there is None else max(there // max(each, 1), 1)


def asked(wanted: str | torch.device | None) -> str:
    """What to tell other processes of a device: its kind or, where the user gave its number, that one."""
    found = resolve(wanted)
    numbered = wanted is not None and wanted != AUTO and torch.device(wanted).index is not None
    return str(found) if numbered else found.type


def share(asked: str, turn: int, each: int = 1) -> tuple[str, dict[str, str]]:
    """Give a process devices of its own: as many as ``each``, in turn, or the one that was asked for.

    Returns:
        The device as the process is to call it, and the variables of its environment.
    """
    device = torch.device(asked)
    there = count(device)
    if there is None:
        return asked, {}
    first = turn % max(there // each, 1) * each if device.index is None else device.index
    variable = _VISIBLE.get(device.type)
    if variable is None:
        return f"{device.type}:{first}", {}
    numbers = [text.strip() for text in os.environ.get(variable, "").split(",") if text.strip()]
    numbers = numbers if len(numbers) == there else [str(k) for k in range(there)]
    return device.type, {variable: ",".join(numbers[first : first + each])}


def refuse_more(device: torch.device, wanted: int) -> None:
    """Refuse to train one trial on more devices than there are from this one on."""
    there = count(device)
    if there is not None and there - (device.index or 0) < wanted:
        raise InputError(
            f"{wanted} devices are to train one trial, from {device} on, and there are {there} of {device.type} here"
        )


def ranks_backend(device: torch.device) -> str:
    """What processes that train together on such devices talk through: ``"gloo"``, ``"nccl"``."""
    return torch.distributed.get_default_backend_for_device(device.type)
