"""What the package knows of devices, as far as a machine with a CPU alone can show it; see also ``pretend_*.py``."""

from __future__ import annotations

import functools
import types
from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from normwise import devices
from normwise.errors import InputError
from normwise.study.tasks.own import OwnMetric

META = torch.device("meta")
Pair = namedtuple("Pair", "inputs targets")


@dataclass(frozen=True)
class Batch:
    pixels: torch.Tensor
    name: str


class Encoding(UserDict):
    """Moves as the batches of transformers' tokenizers do: itself."""

    def to(self, device: torch.device) -> Encoding:
        self.data = {key: value.to(device) for key, value in self.data.items()}
        return self


class Mover:
    """Moves itself and gives nothing."""

    def __init__(self) -> None:
        self.x = torch.ones(2)

    def to(self, device: torch.device) -> None:
        self.x = self.x.to(device)


class Output(OrderedDict):
    """Its entries are attributes, too, as those of transformers' outputs are."""

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        self.__dict__[key] = value


class Weighted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(3))

    def score(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight


class Held:
    """A loss that is an object with a tensor."""

    def __init__(self) -> None:
        self.weight, self.label = torch.ones(3), "loss"

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight


def one() -> torch.Tensor:
    return torch.ones(2)


STRUCTURES = {
    "tensor": (one, lambda v: v),
    "tuple": (lambda: (one(), "a"), lambda v: v[0]),
    "named tuple": (lambda: Pair(one(), 3), lambda v: v.inputs),
    "list of dicts": (lambda: [{"x": one()}], lambda v: v[0]["x"]),
    "dict": (lambda: {"x": {"y": one()}}, lambda v: v["x"]["y"]),
    "dataclass": (lambda: Batch(one(), "a"), lambda v: v.pixels),
    "encoding": (lambda: Encoding(x=one()), lambda v: v["x"]),
    "mover": (Mover, lambda v: v.x),
    "output": (lambda: Output(x=one()), lambda v: v.x),
    "frozen mapping": (lambda: types.MappingProxyType({"x": one()}), lambda v: v["x"]),
    "packed": (lambda: nn.utils.rnn.pack_padded_sequence(torch.ones(2, 3, 1), [3, 2], True), lambda v: v.data),
    "module": (Weighted, lambda v: v.weight),
}
FUNCTIONS = {
    "module": (Weighted, lambda v: v.weight),
    "method of a module": (lambda: Weighted().score, lambda v: v.__self__.weight),
    "object": (Held, lambda v: v.weight),
    "method of an object": (lambda: Held().__call__, lambda v: v.__self__.weight),
    "partial": (lambda: functools.partial(max, one(), key=one()), lambda v: v.keywords["key"]),
    "partial of an object": (lambda: functools.partial(Held(), 1), lambda v: v.func.weight),
    "dataclass of an object": (lambda: OwnMetric(Held()), lambda v: v.function.weight),
}


@pytest.mark.parametrize("kind", STRUCTURES)
def test_any_structure_moves_and_what_was_handed_over_stays(kind: str) -> None:
    make, tensor_of = STRUCTURES[kind]
    value = make()
    moved = devices.move(value, META)
    assert tensor_of(moved).device == META
    assert type(moved) is (dict if kind == "frozen mapping" else type(value))
    assert tensor_of(value).device == devices.CPU


@pytest.mark.parametrize("kind", STRUCTURES)
def test_what_lies_there_stays_the_same_object(kind: str) -> None:
    value = STRUCTURES[kind][0]()
    moved = devices.move(value, devices.CPU)
    # Whoever moves itself is asked to.
    assert moved is value or kind in {"encoding", "mover", "packed"}


def test_what_holds_no_tensor_stays() -> None:
    for value in (None, "text", 3, len, int, {"a": [1]}, (), object()):
        assert devices.move(value, META) is value


def test_an_output_keeps_entries_and_attributes_together() -> None:
    moved = devices.move(Output(x=one()), META)
    assert moved["x"] is moved.x


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_a_function_is_moved_with_what_it_holds(kind: str) -> None:
    make, tensor_of = FUNCTIONS[kind]
    function = make()
    moved = devices.held_by(function, META)
    assert type(moved) is type(function)
    assert (tensor_of(moved).device, tensor_of(function).device) == (META, devices.CPU)
    assert devices.held_by(function, devices.CPU) is function


def test_a_function_that_holds_nothing_stays() -> None:
    for function in (one, len, Held, None, nn.functional.relu):
        assert devices.held_by(function, META) is function


def test_what_a_user_means() -> None:
    if torch.accelerator.is_available():
        pytest.skip("this machine has an accelerator, which auto takes")
    assert devices.available() == ["cpu"]
    for wanted in ("auto", None, "cpu", torch.device("cpu"), torch.device("cpu", 0)):
        assert devices.resolve(wanted) == devices.CPU
    assert devices.name(devices.CPU) == devices.asked("auto") == "cpu"
    with pytest.raises(InputError, match="there is no device cuda:1 here: expected auto or one of cpu"):
        devices.resolve("cuda:1")
    with pytest.raises(InputError, match="there is no device meta here"):
        devices.resolve("meta")
    with pytest.raises(InputError, match="unknown device 'gpu': expected auto or one of cpu"):
        devices.resolve("gpu")
    assert devices.of_kind("auto", "cpu", "the study") == devices.CPU
    with pytest.raises(InputError, match="there is no device cuda here"):
        devices.of_kind("auto", "cuda", "the study")
    with pytest.raises(InputError, match="the study was begun on cuda and keeps to it, got the device cpu"):
        devices.of_kind("cpu", "cuda", "the study")


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 4)
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.usefixtures("four_gpus")
def test_workers_take_accelerators_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices.available() == ["cuda", "cuda:0", "cuda:1", "cuda:2", "cuda:3", "cpu"]
    assert devices.resolve() == torch.device("cuda", 0)
    assert (devices.asked("auto"), devices.asked("cuda:2")) == ("cuda", "cuda:2")
    assert (devices.workers("auto"), devices.workers("cuda", each=2)) == (4, 2)
    assert [devices.share("cuda", k)[1]["CUDA_VISIBLE_DEVICES"] for k in range(5)] == ["0", "1", "2", "3", "0"]
    assert [devices.share("cuda", k, 2)[1]["CUDA_VISIBLE_DEVICES"] for k in range(3)] == ["0,1", "2,3", "0,1"]
    assert devices.share("cuda:3", 1) == ("cuda", {"CUDA_VISIBLE_DEVICES": "3"})
    assert devices.share("hpu", 2) == ("hpu:2", {})
    assert devices.share("cpu", 2) == ("cpu", {})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7, GPU-3f,1,2")
    assert devices.share("cuda", 1) == ("cuda", {"CUDA_VISIBLE_DEVICES": "GPU-3f"})


@pytest.mark.usefixtures("four_gpus")
def test_more_devices_than_there_are_are_refused() -> None:
    devices.refuse_more(torch.device("cuda", 0), 4)
    devices.refuse_more(devices.CPU, 40)
    with pytest.raises(InputError, match="5 devices are to train one trial, from cuda:0 on, and there are 4 of cuda"):
        devices.refuse_more(torch.device("cuda", 0), 5)
    with pytest.raises(InputError, match="from cuda:2 on"):
        devices.refuse_more(torch.device("cuda", 2), 3)


def test_errors_of_memory_are_known() -> None:
    for error in (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ):
        assert devices.out_of_memory(error)
    assert not devices.out_of_memory(RuntimeError("shapes do not fit"))
    assert not devices.out_of_memory(ValueError("out of memory"))


def test_the_random_state_comes_back() -> None:
    before = torch.get_rng_state()
    with devices.keeping_random_state():
        torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)


def test_ranks_of_cpus_talk_through_gloo() -> None:
    assert devices.ranks_backend(devices.CPU) == "gloo"
    assert devices.ranks_backend(torch.device("cuda", 1)) == "nccl"
