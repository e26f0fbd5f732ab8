"""Time layer-normalized LSTM and GRU against plain loops of torch's cells and torch's own fused layers.

Run ``python benchmarks/recurrent.py``; it rewrites ``results/recurrent.json``. Every contender of a setting is timed in
turn, round after round in one process, so that a slow moment of the machine falls on all; ratios are taken in a round.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from normwise.files import write_atomic
from normwise.nn.recurrent import LayerNormGRU, LayerNormLSTM

RESULTS = Path(__file__).parent.parent / "results" / "recurrent.json"
# T, N, input_size, hidden_size: a small tagger, a character model, speech features, a larger language model.
SETTINGS = [(20, 32, 12, 32), (100, 16, 64, 128), (50, 32, 128, 256), (35, 20, 400, 512)]


class CellLoop(nn.Module):
    """The obvious loop over torch's cell, without any norm."""

    def __init__(self, kind: str, inputs: int, hidden: int) -> None:
        super().__init__()
        self.cell = getattr(nn, f"{kind}Cell")(inputs, hidden)

    def forward(self, x: Tensor) -> Tensor:
        hx, outputs = None, []
        for x_t in x.unbind():
            hx = self.cell(x_t, hx)
            outputs.append(hx[0] if isinstance(hx, tuple) else hx)
        return torch.stack(outputs)


class PlainLayerNormLSTM(nn.Module):
    """The paper's equations written down step by step with torch's layers."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.ih, self.hh = nn.Linear(inputs, 4 * hidden, bias=False), nn.Linear(hidden, 4 * hidden, bias=False)
        self.norm_ih, self.norm_hh, self.norm_c = (
            nn.LayerNorm(4 * hidden),
            nn.LayerNorm(4 * hidden),
            nn.LayerNorm(hidden),
        )

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(x.shape[1], self.hidden)
        outputs = []
        for x_t in x.unbind():
            i, f, g, o = (self.norm_ih(self.ih(x_t)) + self.norm_hh(self.hh(h))).chunk(4, -1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * self.norm_c(c).tanh()
            outputs.append(h)
        return torch.stack(outputs)


class PlainLayerNormGRU(nn.Module):
    """The paper's equations written down step by step with torch's layers."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.ih, self.hh = nn.Linear(inputs, 3 * hidden, bias=False), nn.Linear(hidden, 3 * hidden, bias=False)
        self.norms = nn.ModuleList(nn.LayerNorm(size * hidden) for size in (2, 1, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[1], self.hidden)
        sizes = [2 * self.hidden, self.hidden]
        outputs = []
        for x_t in x.unbind():
            x_rz, x_n = self.ih(x_t).split(sizes, -1)
            h_rz, h_n = self.hh(h).split(sizes, -1)
            r, z = (self.norms[0](x_rz) + self.norms[2](h_rz)).sigmoid().chunk(2, -1)
            n = (self.norms[1](x_n) + r * self.norms[3](h_n)).tanh()
            h = (1 - z) * n + z * h
            outputs.append(h)
        return torch.stack(outputs)


OURS = {"LSTM": LayerNormLSTM, "GRU": LayerNormGRU}
PLAIN = {"LSTM": PlainLayerNormLSTM, "GRU": PlainLayerNormGRU}


def contenders(kind: str, inputs: int, hidden: int) -> dict[str, nn.Module]:
    return {
        "normwise": OURS[kind](inputs, hidden),
        "plain layer-norm loop": PLAIN[kind](inputs, hidden),
        "torch cell loop, no norm": CellLoop(kind, inputs, hidden),
        "torch layer, no norm": getattr(nn, kind)(inputs, hidden),
    }


def run(model: nn.Module, x: Tensor) -> Tensor:
    y = model(x)
    return y[0] if isinstance(y, tuple) else y


def training(model: nn.Module, x: Tensor, grad: Tensor) -> None:
    model.zero_grad()
    run(model, x).backward(grad)


def inference(model: nn.Module, x: Tensor, grad: Tensor) -> None:
    with torch.no_grad():
        run(model, x)


def time_all(
    work: Callable[..., None], models: dict[str, nn.Module], rounds: int, *inputs: Tensor
) -> dict[str, list[float]]:
    """CPU seconds of each contender in each round, interleaved; CPU time does not count waiting for a core."""
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for round_ in range(rounds + 2):
        for name, model in models.items():
            began = time.process_time()
            work(model, *inputs)
            if round_ >= 2:
                seconds[name].append(time.process_time() - began)
    return seconds


def check_equal(kind: str) -> None:
    """Refuse to time two networks that do not compute the same."""
    ours, plain = OURS[kind](5, 6), PLAIN[kind](5, 6)
    with torch.no_grad():
        ours.weight_ih_l0.copy_(plain.ih.weight)
        ours.weight_hh_l0.copy_(plain.hh.weight)
    x = torch.randn(7, 3, 5)
    torch.testing.assert_close(run(ours, x), run(plain, x))


def measure(rounds: int) -> list[dict]:
    rows = []
    for kind in OURS:
        check_equal(kind)
        for T, N, inputs, hidden in SETTINGS:
            models = contenders(kind, inputs, hidden)
            x = torch.randn(T, N, inputs)
            grad = torch.randn(T, N, hidden)
            for work in (training, inference):
                times = time_all(work, models, rounds, x, grad)
                seconds = {name: statistics.median(values) for name, values in times.items()}
                ratios = {
                    name: round(statistics.median(a / b for a, b in zip(v, times["normwise"], strict=True)), 3)
                    for name, v in times.items()
                }
                shape = {"steps": T, "batch": N, "input_size": inputs, "hidden_size": hidden}
                row = {"kind": kind, "work": work.__name__, **shape, "cpu_seconds": seconds, "times_normwise": ratios}
                rows.append(row)
                told = ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items() if name != "normwise")
                print(f"{kind:4} {work.__name__:9} {shape}: {seconds['normwise'] * 1e3:.2f} ms; {told}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # CPU time is the time only on one thread
    torch.manual_seed(0)
    record = {
        "what": "median CPU seconds of one pass, and each contender's time as a multiple of normwise's (median of the "
        "ratios within a round); training is forward and backward; float32; above 1 normwise is faster",
        "command": f"python benchmarks/recurrent.py --rounds {arguments.rounds}",
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "machine": {"machine": platform.machine(), "capability": torch.backends.cpu.get_cpu_capability()},
        "threads": 1,
        "rounds": arguments.rounds,
        "rows": measure(arguments.rounds),
    }
    write_atomic(RESULTS, json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
