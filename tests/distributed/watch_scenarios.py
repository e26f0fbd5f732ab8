"""What each rank does in the tests of diagnosis; a module of its own, so that children can import it."""

from __future__ import annotations

import torch
from torch import nn

import normwise


def watched(rank: int, world_size: int, synced: bool) -> dict:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    model = nn.parallel.DistributedDataParallel(normwise.sync(model) if synced else model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    random = torch.Generator().manual_seed(rank)
    batches = [(torch.randn(2, 3, 4, 4, generator=random), torch.zeros(2, dtype=torch.long)) for _ in range(8)]
    with normwise.watch(model) as w:
        for x, y in batches:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    found = w.diagnosis()
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    again = normwise.diagnose(model, batches, nn.functional.cross_entropy)
    return {
        "codes": [f.code for f in found.findings if f.severity != "info"],
        "message": "".join(f.message + f.fix for f in found.of("few-elements")),
        "elements": (found.norms[0].elements, again.norms[0].elements),
        "ranks": found.run.ranks,
        "steps": found.run.steps,
        "hooks": hooks,
        "weight": model.module[4].weight.detach(),
    }
