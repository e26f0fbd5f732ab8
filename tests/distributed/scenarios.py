"""What a rank does. Every scenario also runs in a single process, on the joined batch: that is the oracle."""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import normwise
from normwise import nn
from normwise.core.distributed import Sync
from normwise.errors import NormwiseWarning
from normwise.functional import normalize
from normwise.methods import method_named

CHANNELS = 4
LEARNED = ("weight", "bias", "mean_weight", "var_weight", "gate")


def joined(counts: list[int], space: tuple[int, ...], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """The whole batch and the gradient of its output; samples differ in their means."""
    generator = torch.Generator().manual_seed(seed)
    shape = (sum(counts), CHANNELS, *space)
    offsets = torch.arange(sum(counts), dtype=torch.float64).reshape(-1, *(1,) * (1 + len(space)))
    x = torch.randn(shape, generator=generator, dtype=torch.float64) + offsets
    return x, torch.randn(shape, generator=generator, dtype=torch.float64)


def share(t: torch.Tensor, counts: list[int], rank: int | None) -> torch.Tensor:
    return t if rank is None else t.split(counts)[rank].clone()


def parameters(seed: int = 7) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = {"weight": CHANNELS, "bias": CHANNELS, "mean_weight": 3, "var_weight": 3}
    return {k: torch.randn(n, generator=generator, dtype=torch.float64).requires_grad_() for k, n in sizes.items()}


def one_step(rank: int | None, case: dict[str, Any], sync: Sync | None) -> dict[str, torch.Tensor]:
    """Forward, backward and running averages of one rank's share, or of everything for ``rank=None``."""
    counts, space = case["counts"], case["space"]
    x, upstream = (share(t, counts, rank) for t in joined(counts, space))
    given: dict[str, Any] = parameters()
    learned = dict(given)
    method = method_named(case["method"])
    if not method.learned:
        learned = {k: given[k] for k in ("weight", "bias")}
    if "gate" in method.learned:
        learned = {k: given[k] for k in ("weight", "bias")}
        learned["gate"] = torch.linspace(0.1, 0.9, CHANNELS, dtype=torch.float64).requires_grad_()
    options: dict[str, Any] = dict(case.get("options", {}))
    if "lengths" in case:
        options["lengths"] = share(torch.tensor(case["lengths"]), counts, rank)
    x.requires_grad_()
    running_mean, running_var = torch.zeros(CHANNELS).double(), torch.ones(CHANNELS).double()
    y = normalize(
        x,
        method,
        running_mean=running_mean,
        running_var=running_var,
        momentum=0.3,
        sync=sync,
        **learned,
        **options,
    )
    if case.get("twice"):
        (gradient,) = torch.autograd.grad((y * upstream).sum(), x, create_graph=True)
        (gradient.square().sum() + y.square().sum()).backward()
    else:
        y.backward(upstream)
    found = {"y": y.detach(), "dx": x.grad, "running_mean": running_mean, "running_var": running_var}
    return {**found, **{f"d{k}": v.grad for k, v in learned.items()}}


def steps(rank: int, world_size: int, cases: list[dict[str, Any]]) -> list[dict[str, torch.Tensor]]:
    return [one_step(rank, case, Sync()) for case in cases]


def subgroup(rank: int, world_size: int) -> torch.Tensor:
    """Ranks in pairs, each pair a group of its own."""
    groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    x, _ = joined([1] * world_size, (3,))
    return normalize(share(x, [1] * world_size, rank), "batch", sync=Sync(groups[rank // 2]))


def messages(rank: int, world_size: int) -> list[str]:
    """The collectives of one step of one layer, in order."""
    said: list[str] = []
    for name in ("all_gather", "reduce_scatter", "all_reduce"):
        original = getattr(dist, name)

        def spy(*args: Any, _original: Any = original, _name: str = name, **kwargs: Any) -> Any:
            said.append(_name)
            return _original(*args, **kwargs)

        setattr(dist, name, spy)
    one_step(rank, {"method": "switchable", "counts": [2, 1], "space": (3,)}, Sync())
    return said


def model(kind: str = "ours") -> torch.nn.Module:
    """A small network; ``torch`` has torch's batch norms, to be converted."""
    torch.manual_seed(3)
    batch = torch.nn.BatchNorm2d if kind == "torch" else nn.BatchNorm2d
    return torch.nn.Sequential(
        torch.nn.Conv2d(CHANNELS, 6, 1),
        batch(6),
        torch.nn.ReLU(),
        torch.nn.Conv2d(6, 5, 1),
        nn.SwitchableNorm2d(5, activation="silu"),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(5, 2),
        nn.BatchNorm1d(2),
    ).double()


def train(network: torch.nn.Module, batches: list[torch.Tensor], scale: float) -> None:
    """A few steps on ``scale`` times the sum of the samples' losses."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    for x in batches:
        optimizer.zero_grad()
        (network(x).square().sum() * scale).backward()
        optimizer.step()


def trainings(rank: int, world_size: int, cases: list[tuple[str, str, list[int]]]) -> list[dict[str, torch.Tensor]]:
    return [wrapped(rank, world_size, *case) for case in cases]


def wrapped(rank: int, world_size: int, wrapper: str, kind: str, counts: list[int]) -> dict[str, torch.Tensor]:
    """Train under a wrapper that averages gradients over ranks; give the full state afterwards."""
    network = normwise.sync(model(kind))
    if wrapper == "ddp":
        shell: torch.nn.Module = DistributedDataParallel(network)
    else:
        for layer in network:
            if isinstance(layer, (torch.nn.Conv2d, nn.SwitchableNorm2d, nn.BatchNorm2d)):
                fully_shard(layer, mesh=init_device_mesh("cpu", (world_size,)))
        shell = fully_shard(network, mesh=init_device_mesh("cpu", (world_size,)))
    # Averaged over ranks, so that the whole is the mean over all samples: see docs/many-processes.md.
    train(shell, [share(x, counts, rank) for x in epochs(counts)], world_size / sum(counts))
    state = network.state_dict()
    return {k: v.full_tensor() if isinstance(v, DTensor) else v for k, v in state.items()}


def epochs(counts: list[int]) -> list[torch.Tensor]:
    return [joined(counts, (2, 2), seed)[0] for seed in range(3)]


def poisoned(rank: int, world_size: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], int]:
    """A good step, then one in which a single rank has a NaN: the state before and after, and what was skipped."""
    layer = normwise.sync(nn.BatchNorm1d(CHANNELS))
    x = share(joined([2, 3], (4,))[0], [2, 3], rank).float()
    layer(x)
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    if rank == 1:
        x[0, 0, 0] = torch.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NormwiseWarning)
        layer(x)
    return before, dict(layer.state_dict()), int(layer.num_batches_skipped)


def compiled(rank: int, world_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A compiled synced layer, beside the same layer uncompiled."""
    x, _ = joined([2, 3], (4,))
    layer = normwise.sync(nn.BatchNorm1d(CHANNELS).double())
    plain = layer(share(x, [2, 3], rank))
    return torch.compile(layer, backend="eager")(share(x, [2, 3], rank)), plain


def several(rank: int, world_size: int) -> dict[str, Any]:
    """The short ones in one go: starting the processes takes longer than they do."""
    return {one.__name__: one(rank, world_size) for one in (poisoned, compiled, messages)}
