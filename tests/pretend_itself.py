"""The pretend accelerator: that it trains as the CPU does, refuses what a device refuses, and counts."""

from __future__ import annotations

import copy
import gc
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import pretend


@pytest.fixture(autouse=True)
def device() -> torch.device:
    return pretend.install()


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.out = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        words = self.words(x)
        mixed, _ = self.attention(words, words, words, need_weights=False)
        return self.out(mixed.mean(1))


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(36, 4),
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "convolutions": (convolutional, lambda: torch.randn(6, 1, 8, 8)),
    "attention": (Attention, lambda: torch.randint(0, 11, (6, 5))),
    "encoder": (
        lambda: nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Flatten(), nn.Linear(40, 4)),
        lambda: torch.randn(6, 5, 8),
    ),
    "recurrent": (
        lambda: nn.Sequential(Last(nn.LSTM(3, 8, batch_first=True)), nn.Linear(8, 4)),
        lambda: torch.randn(6, 5, 3),
    ),
}
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "foreach": lambda p: torch.optim.Adam(p, lr=0.01, foreach=True),
    "fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
}


class Last(nn.Module):
    def __init__(self, recurrent: nn.Module) -> None:
        super().__init__()
        self.recurrent = recurrent

    def forward(self, x: Tensor) -> Tensor:
        return self.recurrent(x)[0][:, -1]


def trained(model: str, optimizer: str, on: torch.device) -> list[float]:
    """The losses of a few steps; the optimizer is built before the model moves, as is common."""
    torch.manual_seed(0)
    build, batch = MODELS[model]
    net, x, y = build(), batch(), torch.randint(0, 4, (6,))
    steps = OPTIMIZERS[optimizer](net.parameters())
    net.to(on)
    losses = []
    for _ in range(3):
        steps.zero_grad()
        loss = nn.functional.cross_entropy(net(x.to(on)), y.to(on))
        loss.backward()
        steps.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_gives_what_the_cpu_gives(model: str, optimizer: str, device: torch.device) -> None:
    expected = trained(model, optimizer, torch.device("cpu"))
    assert trained(model, optimizer, device) == pytest.approx(expected, rel=1e-5)
    assert len(set(expected)) == len(expected)


def test_torch_knows_the_device(device: torch.device) -> None:
    assert torch.accelerator.current_accelerator() == device
    assert torch.accelerator.is_available()
    assert torch.accelerator.device_count() == 1
    x = torch.ones(3, device=device)
    assert x.device == torch.device("pretend", 0)
    assert not x.is_cpu
    assert not x.is_cuda


def test_devices_do_not_mix(device: torch.device) -> None:
    x, y = torch.ones(3), torch.ones(3, device=device)
    for mixed in (lambda: x + y, lambda: torch.cat([x, y]), lambda: y.add_(x), lambda: nn.Linear(3, 1)(y)):
        with pytest.raises(RuntimeError, match="same device"):
            mixed()
    with pytest.raises(RuntimeError, match="generator"):
        torch.rand(3, device=device, generator=torch.Generator())
    with pytest.raises(TypeError, match="numpy"):
        y.numpy()
    assert (y + torch.tensor(1.0)).sum().item() == 6
    assert y[torch.tensor([0, 2])].sum().item() == 2


READS: dict[str, tuple[Callable[[Tensor], object], int]] = {
    "item": (lambda x: x[0].item(), 1),
    "float": (lambda x: float(x.sum()), 1),
    "truth": (lambda x: bool((x > 0).all()), 1),
    "tolist": (lambda x: x.tolist(), 1),
    "cpu": (lambda x: x.cpu(), 1),
    "numpy": (lambda x: x.cpu().numpy(), 1),
    "copy_": (lambda x: torch.zeros(4).copy_(x), 1),
    "nonzero": (lambda x: x.nonzero(), 1),
    "mask": (lambda x: x[x > 0], 1),
    "equal": (torch.equal, 1),
    "unique": (torch.unique, 1),
    "arithmetic": (lambda x: (x * 2 + 1).sum(), 0),
    "indices": (lambda x: x[torch.tensor([0, 1])], 0),
    "where": (lambda x: torch.where(x > 0, x, 0), 0),
    "shape": (lambda x: x.shape[0] + x.numel(), 0),
}


@pytest.mark.parametrize("name", ["remainder", "fmod", "add", "mul", "pow", "floor_divide", "bitwise_and", "eq"])
def test_tensors_and_numbers_calculate_together(name: str, device: torch.device) -> None:
    calculate, x = getattr(torch, name), torch.arange(6)
    found = calculate(x.to(device), 3)
    assert found.device.type == "pretend"
    assert torch.equal(found.cpu(), calculate(x, 3))


@pytest.mark.parametrize("name", READS)
def test_readings_are_counted(name: str, device: torch.device) -> None:
    read, expected = READS[name]
    x = torch.arange(4.0, device=device)
    with pretend.counting() as counts:
        read(x) if name != "equal" else torch.equal(x, x + 0)
    assert counts.reads.total() == expected, counts.reads


def test_operators_are_counted_without_views_and_allocations(device: torch.device) -> None:
    x = torch.ones(2, 3, device=device, requires_grad=True)
    with pretend.counting() as counts:
        (x.t().reshape(3, 2)[0] * torch.empty(2, device=device)).sum().backward()
        torch.accelerator.synchronize()
    assert counts.operators["mul"] == 2
    assert counts.operators["sum"] == 1
    assert not {"t", "view", "select", "empty", "empty_strided"} & counts.operators.keys()
    assert counts.waits == 1
    with pretend.counting() as counts:
        torch.ones(3).to(device)
        torch.tensor([1.0], device=device)
    assert counts.copies == 2
    assert not counts.reads


def test_memory_is_counted_and_limited(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    gc.collect()
    before = torch.accelerator.memory_allocated()
    x = torch.zeros(1000, device=device)
    view = x.view(10, 100)
    assert torch.accelerator.memory_allocated() == before + 4000
    torch.accelerator.reset_peak_memory_stats()
    y = x + 1
    del x, y
    assert torch.accelerator.max_memory_allocated() == before + 8000
    assert torch.accelerator.memory_allocated() == before + 4000
    monkeypatch.setattr(pretend.Memory, "limit", before + 5000)
    with pytest.raises(torch.OutOfMemoryError, match="4000 bytes"):
        view + 1
    del view
    assert torch.accelerator.memory_allocated() == before


def test_autocast_and_its_scaler(device: torch.device) -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)).to(device), torch.randn(3, 4, device=device)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("pretend", dtype):
            assert net[0](x).dtype == dtype
            assert net(x).dtype == torch.float32
            assert (net[0](x) * 2).relu().dtype == dtype
    scaler = torch.amp.GradScaler("pretend", init_scale=8.0)
    steps = torch.optim.SGD(net.parameters(), lr=0.1)
    before = net[0].weight.detach().clone()
    scaler.scale(net(x)[:, 0].sum()).backward()
    scaler.step(steps)
    scaler.update()
    assert not torch.equal(before, net[0].weight)
    net[0].weight.grad.fill_(torch.inf)
    before = net[0].weight.detach().clone()
    scaler.step(steps)
    scaler.update()
    assert torch.equal(before, net[0].weight)
    assert scaler.get_scale() == 4.0


@pytest.mark.parametrize("weights_only", [True, False])
def test_a_file_brings_tensors_back_to_where_they_were(weights_only: bool, device: torch.device) -> None:
    net = convolutional().to(device)
    file = io.BytesIO()
    torch.save({"state": net.state_dict(), "here": torch.ones(2)}, file)
    for where, expected, here in ((None, "pretend", "cpu"), ("cpu", "cpu", "cpu"), ("pretend", "pretend", "pretend")):
        file.seek(0)
        found = torch.load(file, map_location=where, weights_only=weights_only)
        assert {t.device.type for t in found["state"].values()} == {expected}
        assert found["here"].device.type == here
        other = convolutional()
        other.load_state_dict(found["state"])
        assert torch.equal(other[0].weight, net[0].weight.cpu())


def test_copies_stay_on_the_device(device: torch.device) -> None:
    net = convolutional().to(device)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert {type(p) for p in other.parameters()} == {nn.Parameter}
        assert {p.device.type for p in other.parameters()} == {"pretend"}
        assert torch.equal(other[0].weight, net[0].weight)
        with torch.no_grad():
            other[0].weight.zero_()
        assert net[0].weight.abs().sum().item() > 0
    moved = next(net.parameters())
    assert copy.deepcopy(moved.detach() * 2).sum().item() == pytest.approx(2 * moved.sum().item())
    assert {p.device.type for p in net.cpu().parameters()} == {"cpu"}


def test_random_numbers_follow_the_seed(device: torch.device) -> None:
    torch.manual_seed(3)
    expected = torch.randn(4), torch.randperm(5), nn.functional.dropout(torch.ones(9))
    torch.manual_seed(3)
    found = torch.randn(4, device=device), torch.randperm(5, device=device), None
    for one, other in zip(found[:2], expected, strict=False):
        assert torch.equal(one.cpu(), other)
    assert torch.equal(nn.functional.dropout(torch.ones(9, device=device)).cpu(), expected[2])


def test_loaders_pin_for_it(device: torch.device) -> None:
    data = torch.utils.data.TensorDataset(torch.arange(6.0))
    for (batch,) in torch.utils.data.DataLoader(data, batch_size=3, pin_memory=True):
        assert batch.to(device, non_blocking=True).device.type == "pretend"
