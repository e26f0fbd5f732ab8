"""The engine against torch's layers, the plain formulas and the limit: ``make bench``. What is measured: README.md."""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from bench_accuracy import measure_accuracy
from bench_contenders import DTYPES, GROUPS, LAYOUTS, METHODS, SHAPES, Row, compiled_formula, contenders, limit
from bench_layers import measure_layers
from bench_memory import measure_memory
from bench_report import chart, summarize, table
from bench_timing import microseconds, take_turns, times_ours

from normwise.files import write_atomic
from normwise.kernels import describe_environment

QUICK_SHAPES = ((2, 256, 56, 56), (64, 32, 8, 8))


def rows(shapes: Sequence[tuple[int, ...]], wanted: str) -> list[Row]:
    """All rows, those on one thread first; with ``wanted``, those whose name holds each of its words."""
    cases = itertools.product((1, 2), METHODS, DTYPES, LAYOUTS, shapes)
    found = [Row(method, dtype, layout, shape, threads) for threads, method, dtype, layout, shape in cases]
    return [row for row in found if all(word in str(row).split() for word in wanted.split())]


def shape(text: str) -> tuple[int, ...]:
    """Read ``2x32x4x4``."""
    sizes = tuple(int(size) for size in text.split("x"))
    if len(sizes) != 4 or min(sizes) < 1 or sizes[1] % GROUPS:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected NxCxHxW with a C that {GROUPS} divides")
    return sizes


def keep_pages() -> None:
    """Let glibc keep freed memory: a fresh page costs more than its copying, and who pays is chance."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return
    most, trim, no_mmap = 2**31 - 1, -1, -4
    mallopt(no_mmap, 0)
    mallopt(trim, most)


def compiles(row: Row) -> bool:
    """Rows in which torch.compile takes part: compiling all of them would take an hour."""
    return row.threads == 1 and row.dtype == "float32" and row.layout == "NCHW" and row.shape in SHAPES[1:3]


def measure(row: Row, seconds: float, compile_too: bool) -> dict[str, Any]:
    """Time the row's contenders in turns, for about ``seconds`` but at least three rounds."""
    torch.set_num_threads(row.threads)
    compiled, note = None, None
    if compile_too and compiles(row):
        try:
            compiled = compiled_formula(row)
            runs = contenders(row, compiled)
            runs["compiled"]()
        except Exception as problem:  # without a compiler that inductor can use the row is measured without it
            compiled, note = None, f"torch.compile: {type(problem).__name__}"
    runs = contenders(row, compiled)
    return evaluate(row, take_turns(runs, seconds), note)


def evaluate(row: Row, rounds: list[dict[str, float]], note: str | None) -> dict[str, Any]:
    """Medians, and medians of the ratios within a round."""
    for times in rounds:
        times["limit"] = limit(row, times["clone"], times["copy"])
    others = [name for name in rounds[0] if name not in ("ours", "clone", "copy")]
    result = {
        **{"method": row.method, "dtype": row.dtype, "layout": row.layout},
        **{"shape": list(row.shape), "threads": row.threads, "megabytes": round(row.megabytes, 2)},
        "rounds": len(rounds),
        "microseconds": {name: microseconds(rounds, name) for name in rounds[0]},
        "times_ours": {name: times_ours(rounds, name) for name in others},
    }
    return result if note is None else {**result, "note": note}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two shapes, little time a row, no torch.compile")
    parser.add_argument("--rows", default="", help='words that rows must hold, such as "group bfloat16 1t"')
    parser.add_argument("--shape", type=shape, help="this one in the place of the stored ones, such as 2x32x4x4")
    parser.add_argument("--seconds", type=float, help="time a row (default 2.5; 0.2 with --quick)")
    parser.add_argument("--out", type=Path, help="folder for JSON, table and plot (default results/ for a full run)")
    given = parser.parse_args()
    narrowed = bool(given.rows or given.shape)
    if given.out is None and not given.quick and not narrowed:
        given.out = Path(__file__).parents[1] / "results"
    seconds = given.seconds or (0.2 if given.quick else 2.5)
    shapes = [given.shape] if given.shape else QUICK_SHAPES if given.quick else SHAPES
    chosen = rows(shapes, given.rows)
    if not chosen:
        parser.error(f"no row holds all of the words {given.rows!r}; a row is named like {rows(shapes, '')[0]}")
    settings = {"seconds_a_row": seconds, "rows": len(chosen), "started": time.strftime("%Y-%m-%d")}
    command = shlex.join(["python", "benchmarks/bench.py", *sys.argv[1:]])
    header = {"command": command, "environment": describe_environment(), "settings": settings}
    print("  ".join(f"{name}: {value}" for name, value in header["environment"].items()), flush=True)
    keep_pages()
    speed = []
    for row in chosen:
        speed.append(measure(row, seconds, not given.quick))
        shown = "  ".join(f"{name} {ratio:.2f}" for name, ratio in speed[-1]["times_ours"].items())
        print(f"{row!s:<52} as a multiple of ours: {shown}", flush=True)
    layers = [] if narrowed else measure_layers(min(1.0, seconds))
    memory = [] if narrowed else measure_memory(SHAPES[2] if given.quick else SHAPES[0])
    accuracy = [] if narrowed else measure_accuracy()
    text = table(header, speed, layers, memory, accuracy)
    print("\n" + summarize(speed, layers, accuracy))
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        for name, found in (("speed", speed), ("layers", layers), ("memory", memory), ("accuracy", accuracy)):
            if found:
                write_atomic(given.out / f"bench-{name}.json", json.dumps({**header, "rows": found}, indent=1) + "\n")
        write_atomic(given.out / "bench.md", text)
        write_atomic(given.out / "bench.svg", chart(speed))


if __name__ == "__main__":
    main()
