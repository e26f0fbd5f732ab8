"""Compile the kernels in Triton for devices that need not be there, and read what came out: ``make triton-all``.

Goes on where it stopped, and writes results/triton-aot.json after each kernel. Takes an hour on one core.
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import product
from pathlib import Path
from typing import Any

import torch
import triton
from ahead_of_time import LAYERS, TARGETS, Launch, faults, launches
from problems import pairwise

from normwise.files import write_atomic

STORED = Path(__file__).parents[1] / "results/triton-aot.json"
SHAPES = [(32, 64, 56, 56), (64, 512, 7, 7), (8, 32, 16, 28, 28), (32, 24, 31, 31)]
# Types and whether channels come last. Those of 16 bits compile alike: each stands for both in one layout.
TENSORS = [(torch.float32, False), (torch.float32, True), (torch.bfloat16, False), (torch.float16, True)]
CODES = [0, 3]  # of no activation, and of silu, which takes the most registers


def jobs() -> dict[str, tuple[Launch, str, dict[str, Any]]]:
    """What is to be compiled for which device, once each: of every problem for all devices before the next.

    Problems are any two values together: every layer in every type, every layer at every shape, and so on.
    """
    found = {}
    for layer, (dtype, columns), shape, code in pairwise(LAYERS, TENSORS, SHAPES, CODES):
        forward, backward = launches(layer, shape, dtype, columns, code)
        told = {"layer": layer, "shape": [*shape], "channels last": columns, "activation": code}
        told["dtype"] = str(dtype).removeprefix("torch.")
        for launch, target in product(forward + backward, TARGETS):
            found.setdefault(f"{target} {launch.key}", (launch, target, told))
    return found


def main() -> None:
    """Compile what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=600.0, help="when to stop")
    until = time.monotonic() + 60 * parser.parse_args().minutes
    known = json.loads(STORED.read_text()) if STORED.exists() else {}
    versions = {"command": "make triton-all", "triton": triton.__version__, "torch": torch.__version__}
    wanted = jobs()
    rows = [row for row in known.get("rows", []) if row["key"] in wanted and known["triton"] == triton.__version__]
    done = {row["key"] for row in rows}
    for key, (launch, target, told) in wanted.items():
        if key in done:
            continue
        if time.monotonic() > until:
            break
        figures = launch.compile(target)
        rows.append({"key": key, **told, **figures, "faults": faults(launch, figures, target)})
        text = json.dumps({**versions, "wanted": len(wanted), "rows": rows})
        write_atomic(STORED, text.replace('{"key"', '\n{"key"') + "\n")
    print(f"{len(rows)} of {len(wanted)} are compiled, {sum(bool(row['faults']) for row in rows)} with faults")


if __name__ == "__main__":
    main()
