"""What watching costs: steps of a training loop with and without ``normwise.watch``, in turns, in one process.

    python benchmarks/watch_overhead.py            # writes results/watch-overhead.json

Each round trains ``--steps`` steps plainly and as many watched, the order of the two changing from round to round, so
that what disturbs the machine disturbs both; the ratio of each pair is taken, and the median of the ratios. A watched
block counts whole: entering and leaving, surveying the model, the sampled steps with their hooks.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from convert_fashion import resnet
from torch import nn

import normwise
from normwise.files import write_atomic
from normwise.kernels import describe_environment
from normwise.study.tasks import load_task

Case = tuple[nn.Module, torch.Tensor, torch.Tensor]
RESULT = Path(__file__).parents[1] / "results" / "watch-overhead.json"


def digits(batch_size: int) -> Case:
    task = load_task("digits")
    train = task.splits.train
    return task.make_model(task.norm("batch")), train.inputs[:batch_size], train.targets[:batch_size]


def residual(batch_size: int) -> Case:
    return resnet(), torch.randn(batch_size, 1, 28, 28), torch.randint(10, (batch_size,))


def transformer(batch_size: int) -> Case:
    layer = nn.TransformerEncoderLayer(128, 4, 256, dropout=0.0, batch_first=True)

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False), nn.Linear(128, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(x).mean(1))

    return Tokens(), torch.randn(batch_size, 64, 128), torch.randint(10, (batch_size,))


CASES: dict[str, tuple[Callable[[int], Case], int]] = {
    "digits ConvNet": (digits, 32),
    "ResNet on 28 x 28": (residual, 32),
    "transformer of 4 layers": (transformer, 16),
}


def measure(name: str, rounds: int, steps: int) -> dict[str, Any]:
    torch.manual_seed(0)
    make, batch_size = CASES[name]
    model, x, y = make(batch_size)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def block(watched: bool, count: int = steps) -> float:
        begin = time.perf_counter()
        with normwise.watch(model) if watched else nullcontext():
            for _ in range(count):
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
        return (time.perf_counter() - begin) / count

    for watched in (False, True):
        block(watched, 5)
    times: dict[bool, list[float]] = {False: [], True: []}
    for i in range(rounds):
        for watched in (False, True) if i % 2 else (True, False):
            times[watched].append(block(watched))
    ratios = [b / a - 1 for a, b in zip(times[False], times[True], strict=True)]
    return {
        "case": name,
        "batch_size": batch_size,
        "norms": len(normwise.surgery.find(model)),
        "plain_ms_per_step": round(1e3 * statistics.median(times[False]), 3),
        "overhead": round(statistics.median(ratios), 4),
        "overheads": [round(ratio, 4) for ratio in ratios],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in CASES:
        row = measure(name, options.rounds, options.steps)
        rows.append(row)
        print(f"{name}: {row['plain_ms_per_step']:.2f} ms a step, watched {row['overhead']:+.1%}", flush=True)
    write_atomic(
        options.out,
        json.dumps(
            {
                "command": shlex.join(["python", "benchmarks/watch_overhead.py", *sys.argv[1:]]),
                "settings": {"rounds": options.rounds, "steps": options.steps, "threads": 1, "every": 16},
                "environment": describe_environment(),
                "rows": rows,
            },
            indent=1,
        )
        + "\n",
    )


if __name__ == "__main__":
    main()
