"""What converting a trained batch norm network costs in accuracy, and what brings it back.

A small ResNet is trained on Fashion-MNIST with batch norm. Each of four methods then replaces batch norm in a copy:

- ``raw``: by ``normwise.convert``, which carries weight and bias;
- ``calibrated``: the same, then ``normwise.surgery.calibrate`` on training images, where running statistics are kept;
- ``refitted``: with ``calibrate_with=``, which fits weight and bias in closed form on the same images;
- ``dropped``: as common replacement tools do, with new layers that start at weight 1 and bias 0 (for group norm with
  min(32, C) groups, Opacus' choice);
- each of them after one more epoch of training, beside batch norm itself after the same epoch.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normwise.files import write_atomic
from normwise.methods import METHODS as METHODS_TABLE
from normwise.study.data import Part, Splits
from normwise.study.tasks.images import fashion_mnist
from normwise.surgery.calibrate import calibrate
from normwise.surgery.convert import convert
from normwise.surgery.layers import find

RESULTS = Path(__file__).parent.parent / "results" / "convert-fashion.json"
METHODS = ("group", "layer", "instance", "switchable")
BATCH = 64


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


def resnet() -> nn.Module:
    stem = nn.Sequential(nn.Conv2d(1, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    blocks = nn.Sequential(Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2))
    return nn.Sequential(stem, blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def batches(part: Part, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    order = torch.randperm(len(part.inputs), generator=torch.Generator().manual_seed(seed))
    for index in order.split(BATCH):
        yield part.inputs[index], part.targets[index]


def train(model: nn.Module, part: Part, epochs: int, lr: float, seed: int) -> nn.Module:
    """SGD with momentum, the rate falling linearly to 0."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    steps = epochs * -(-len(part.inputs) // BATCH)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    for epoch in range(epochs):
        for x, y in batches(part, 1000 * seed + epoch):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            schedule.step()
    return model


def accuracy(model: nn.Module, part: Part) -> float:
    model.eval()
    with torch.no_grad():
        right = sum((model(x).argmax(1) == y).sum().item() for x, y in batches(part, 0))
    return right / len(part.inputs)


def raw(trained: nn.Module, method: str, data: Splits) -> nn.Module:
    return convert(trained, method, copy=True).model


def calibrated(trained: nn.Module, method: str, data: Splits) -> nn.Module:
    return calibrate(raw(trained, method, data), sample(data), layerwise=True)


def refitted(trained: nn.Module, method: str, data: Splits) -> nn.Module:
    return convert(trained, method, copy=True, calibrate_with=sample(data)).model


def sample(data: Splits) -> list[tuple[Tensor, Tensor]]:
    return list(itertools.islice(batches(data.train, 7), 16))


def dropped(trained: nn.Module, method: str, data: Splits) -> nn.Module:
    model = raw(trained, method, data)
    for found in find(model):
        if method == "group":
            found.module.num_groups = min(32, found.layer.channels)
        nn.init.ones_(found.module.weight)
        nn.init.zeros_(found.module.bias)
        if found.layer.running_mean is not None:
            found.module.reset_running_stats()
    return model


WAYS: dict[str, Callable[[nn.Module, str, Splits], nn.Module]] = {
    "raw": raw,
    "calibrated": calibrated,
    "refitted": refitted,
    "dropped": dropped,
}


def measure(seed: int, data: Splits, epochs: int, lr: float, tune_lr: float) -> list[dict]:
    torch.manual_seed(seed)
    trained = train(resnet(), data.train, epochs, lr, seed).eval()
    tuned = train(copy.deepcopy(trained), data.train, 1, tune_lr, seed + 50)
    rows = [
        {
            "seed": seed,
            "method": "batch",
            "way": "as trained",
            "converted": accuracy(trained, data.test),
            "tuned": accuracy(tuned, data.test),
        }
    ]
    print(rows[-1], flush=True)
    for method in METHODS:
        for way, change in WAYS.items():
            if way == "calibrated" and not METHODS_TABLE[method].running:
                continue
            model = change(trained, method, data)
            row = {"seed": seed, "method": method, "way": way, "converted": accuracy(model, data.test)}
            row["tuned"] = accuracy(train(model, data.train, 1, tune_lr, seed + 50), data.test)
            rows.append(row)
            print(row, flush=True)
    return rows


def summary(rows: list[dict]) -> list[dict]:
    """Mean over the seeds, and the range where there are several."""
    found = []
    for method, way in dict.fromkeys((row["method"], row["way"]) for row in rows):
        own = [row for row in rows if (row["method"], row["way"]) == (method, way)]
        line: dict = {"method": method, "way": way}
        for what in ("converted", "tuned"):
            values = [row[what] for row in own]
            line[what] = round(statistics.fmean(values), 4)
            line[f"{what}_range"] = [min(values), max(values)]
        found.append(line)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--train", type=int, default=12_000, help="images to train on")
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--tune-lr", type=float, default=0.02)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    began = time.perf_counter()
    data = fashion_mnist(train=options.train, valid=1)
    rows = [
        row for seed in range(options.seeds) for row in measure(seed, data, options.epochs, options.lr, options.tune_lr)
    ]
    record = {
        "what": "test accuracy on Fashion-MNIST of a batch norm ResNet (9 norm layers) after its norms were replaced "
        "('converted'), and after one more epoch of training ('tuned'); mean and range over seeds",
        "command": "python benchmarks/convert_fashion.py "
        + " ".join(f"--{name.replace('_', '-')} {value}" for name, value in vars(options).items()),
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "machine": {"machine": platform.machine(), "capability": torch.backends.cpu.get_cpu_capability()},
        "settings": {**vars(options), "batch": BATCH, "momentum": 0.9, "weight_decay": 5e-4, "refit_batches": 16}
        | {"test": len(data.test.inputs), "parameters": sum(p.numel() for p in resnet().parameters())},
        "seconds": round(time.perf_counter() - began, 1),
        "summary": summary(rows),
        "rows": rows,
    }
    write_atomic(RESULTS, json.dumps(record, indent=2) + "\n")
    for line in record["summary"]:
        print(line)


if __name__ == "__main__":
    main()
