"""Surgery, probes and weight norms on a device: the CPU's results, on the device, with few readings on the host."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normwise.nn as norms
import pretend
from normwise import parametrize, probe, surgery
from normwise.findings import Diagnosis
from normwise.kernels.reference import has_float64


@pytest.fixture(autouse=True, params=["without float64"])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """A device that lacks float64, as MPS does, unless a test asks for it."""
    found = pretend.install()
    pretend.LACKS |= {torch.float64} if request.param == "without float64" else set()
    has_float64.cache_clear()
    yield found
    pretend.LACKS.clear()


def model() -> nn.Module:
    """A small network with layers of ours and torch's, whose statistics are those of data."""
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3),
        norms.SwitchableNorm2d(6, activation="relu"),
        nn.Conv2d(6, 8, 1),
        norms.BatchNorm2d(8, activation="silu"),
        nn.Conv2d(8, 4, 1),
        nn.GroupNorm(2, 4),
        nn.Flatten(),
        nn.Linear(64, 3),
        nn.LayerNorm(3),
    )
    with torch.no_grad():
        net[4].mean_weight.copy_(torch.tensor([9.0, 0.0, 0.0]))
        net[4].var_weight.copy_(torch.tensor([9.0, 0.0, 0.0]))
        for x, _ in batches():
            net(x)
    return net


def batches(on: Any = "cpu") -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(2)
    return [((torch.randn(8, 2, 6, 6) + 1).to(on), torch.randint(3, (8,)).to(on)) for _ in range(3)]


def inputs(on: Any) -> Tensor:
    return batches(on)[0][0]


def images(_: str, layer: nn.Module) -> bool:
    return not isinstance(layer, nn.LayerNorm)


def averaged(net: nn.Module, on: Any) -> nn.Module:
    other = model().to(on)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(0.1)
    net.load_state_dict(surgery.average_states([net.state_dict(), other.state_dict()], [3, 1], model=net))
    return net


def paused(net: nn.Module, on: Any) -> nn.Module:
    with surgery.statistics_paused(net):
        net(inputs(on))
    return net


def unfrozen(net: nn.Module, on: Any) -> nn.Module:
    surgery.freeze(net)
    with surgery.audit_frozen(net):
        net(inputs(on))
    return surgery.unfreeze(net)


Tool = Callable[[nn.Module, Any], nn.Module]
TOOLS: dict[str, Tool] = {
    "convert to group": lambda net, on: surgery.convert(net, "group", example_inputs=inputs(on)).model,
    "convert to switchable": lambda net, on: surgery.convert(net, "switchable", where=images).model,
    "convert and calibrate": lambda net, on: (
        surgery.convert(net, "batch", strict=False, calibrate_with=batches(on), example_inputs=inputs(on)).model
    ),
    "convert a copy": lambda net, on: surgery.convert(net, "instance", copy=True, where=images).model,
    "calibrate": lambda net, on: surgery.calibrate(net, batches(on)),
    "calibrate layer by layer": lambda net, on: surgery.calibrate(net, batches(on), layerwise=True),
    "fold": lambda net, on: surgery.fold(net.eval(), inputs(on)),
    "freeze": lambda net, on: surgery.freeze(net),
    "freeze and unfreeze": unfrozen,
    "pause": paused,
    "harden": lambda net, on: surgery.harden(net, example_inputs=inputs(on)),
    "to_torch": lambda net, on: surgery.to_torch(net.eval(), harden=True, example_inputs=inputs(on)),
    "average": averaged,
    "sync": lambda net, on: norms.sync(net),
    "weight_normalize": lambda net, on: parametrize.weight_normalize(net),
    "weight_norm_init": lambda net, on: started(net, on),
    "weight_standardization": lambda net, on: standardized(net),
    "spectral_norm": lambda net, on: spectral(net),
}


def started(net: nn.Module, on: Any) -> nn.Module:
    parametrize.weight_normalize(net)
    parametrize.weight_norm_init(net, inputs(on))
    return net


def standardized(net: nn.Module) -> nn.Module:
    parametrize.weight_standardization(net[0])
    return net


def spectral(net: nn.Module) -> nn.Module:
    torch.manual_seed(5)
    parametrize.spectral_norm(net[10])
    return net


def of_all(net: nn.Module) -> Iterable[tuple[str, Tensor]]:
    yield from net.named_parameters()
    yield from net.named_buffers()


@pytest.mark.parametrize("name", TOOLS)
def test_a_tool_does_on_a_device_what_it_does_on_the_cpu(name: str, device: torch.device) -> None:
    expected = TOOLS[name](model(), "cpu")
    found = TOOLS[name](model().to(device), device)
    assert {t.device.type for _, t in of_all(found)} == {"pretend"}
    assert [key for key, _ in of_all(found)] == [key for key, _ in of_all(expected)]
    for (key, t), (_, wanted) in zip(of_all(found), of_all(expected), strict=True):
        torch.testing.assert_close(t.detach().cpu(), wanted.detach(), rtol=1e-4, atol=1e-5, msg=f"{key}: {{}}".format)
    for training in (True, False):
        result = found.train(training)(inputs(device))
        wanted = expected.train(training)(inputs("cpu"))
        torch.testing.assert_close(result.cpu(), wanted, rtol=1e-3, atol=1e-4)


def test_inspection_describes_what_is_there(device: torch.device) -> None:
    expected, found = surgery.inspect(model()), surgery.inspect(model().to(device))
    assert [(row.names, row.method) for row in found.layers] == [(row.names, row.method) for row in expected.layers]
    stored = surgery.inspect(model().to(device).state_dict())
    assert [row.names for row in stored.layers] == [row.names for row in surgery.inspect(model().state_dict()).layers]


@pytest.mark.parametrize("device", ["with float64", "without float64"], indirect=True)
@pytest.mark.parametrize("optimized", [False, True])
def test_a_diagnosis_is_the_cpus(optimized: bool, device: torch.device) -> None:
    def diagnosis(on: Any) -> Diagnosis:
        net = model().to(on)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=0.01) if optimized else None
        loss = nn.functional.cross_entropy
        return probe.diagnose(net, batches(on), loss, optimizer=optimizer, device=None if on == "cpu" else on)

    expected, found = diagnosis("cpu"), diagnosis(device)
    assert [f.code for f in found.findings] == [f.code for f in expected.findings]
    for one, other in zip(found.norms, expected.norms, strict=True):
        assert (one.layer.name, one.samples, one.elements) == (other.layer.name, other.samples, other.elements)
        assert known(one.mean_gap) == pytest.approx(known(other.mean_gap), rel=1e-2, abs=1e-3)
        assert known(one.var_min) == pytest.approx(known(other.var_min), rel=1e-3)
    for one, other in zip(found.weights, expected.weights, strict=True):
        assert known(one.gradient) == pytest.approx(known(other.gradient), rel=1e-3)


def known(value: float | None) -> float:
    return -1.0 if value is None else value


def test_a_watched_step_reads_a_few_times_however_deep_the_model_is(device: torch.device) -> None:
    def reads(depth: int) -> int:
        blocks = [nn.Sequential(nn.Linear(8, 8), norms.BatchNorm1d(8), nn.ReLU()) for _ in range(depth)]
        net = nn.Sequential(*blocks, nn.Linear(8, 2)).to(device)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        x = torch.randn(16, 8, device=device)
        with probe.watch(net, optimizer, every=1) as watching:
            for _ in range(3):
                optimizer.zero_grad()
                with pretend.counting() as counts:
                    net(x).square().mean().backward()
                    optimizer.step()
        assert watching.diagnosis().norms[0].samples == 3
        return counts.reads.total()

    assert reads(2) == reads(6) <= 3


@pytest.mark.parametrize("device", ["with float64"], indirect=True)
def test_a_diagnosis_reads_once_for_each_pass_of_a_layers_own(device: torch.device) -> None:
    def reads(depth: int) -> int:
        blocks = [nn.Sequential(nn.Linear(8, 8), norms.BatchNorm1d(8), nn.ReLU()) for _ in range(depth)]
        net = nn.Sequential(*blocks, nn.Linear(8, 2)).to(device)
        batches = [(torch.randn(16, 8), torch.randint(2, (16,))) for _ in range(2)]
        with pretend.counting() as counts:
            probe.diagnose(net, batches, "cross_entropy", optimizer=torch.optim.SGD(net.parameters(), lr=0.1))
        return counts.reads.total()

    # Where float64 is lacking, what needs it is copied whole. Of a layer: the loss once more,
    # a fix tried on a copy, and its input in each batch that calibrates.
    assert reads(6) - reads(2) <= 4 * 5


def test_shares_and_sparsity_are_told(device: torch.device) -> None:
    net = model().to(device)
    assert norms.importance(net)[0].mean_weights[0] > 0.9
    sparse = norms.SwitchableNorm2d(6, sparse=True).to(device)
    assert norms.set_sparsity(sparse, 0.5) == 1
    assert sparse.sparsity is not None
    assert sparse.sparsity.device.type == "pretend"
    assert len(norms.param_groups(net, lr=0.1, weight_decay=0.1)) > 1
