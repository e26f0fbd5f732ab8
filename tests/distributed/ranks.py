"""Real processes for tests: each rank is a child with a time limit, judged by what it saved before it tears down.

Single-rank gloo teardown has deadlocked after the work was done, so a rank writes its results first and then leaves
without the interpreter's exit.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent


def run_ranks(scenario: Callable[..., Any], world_size: int, *args: Any, seconds: float = 900) -> list[Any]:
    """Run ``scenario(rank, world_size, *args)`` on every rank, and give what each returned."""
    with tempfile.TemporaryDirectory() as folder:
        job = Path(folder) / "job.pt"
        torch.save({"module": scenario.__module__, "name": scenario.__name__, "args": args}, job)
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        command = [sys.executable, __file__, str(job), str(world_size), str(port)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
        children = [
            subprocess.Popen(
                [*command, str(rank)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            for rank in range(world_size)
        ]
        try:
            return _judge(children, Path(folder), time.monotonic() + seconds)
        finally:
            for child in children:
                child.kill()
                child.communicate()


def _judge(children: list[subprocess.Popen], folder: Path, deadline: float) -> list[Any]:
    results = [folder / f"rank{rank}.pt" for rank in range(len(children))]
    while not all(r.exists() for r in results):
        failed = [c for c, r in zip(children, results, strict=True) if c.poll() is not None and not r.exists()]
        late = time.monotonic() > deadline
        if failed or late:
            for child in children:
                child.kill()
            said = "\n".join(f"rank {k}:\n{c.communicate()[0]}" for k, c in enumerate(children))
            raise AssertionError(f"{'a rank failed' if failed else 'the ranks are stuck'}\n{said}")
        time.sleep(0.02)
    return [torch.load(r, weights_only=False) for r in results]


def _main(job: str, world_size: int, port: str, rank: int) -> None:
    import datetime
    import importlib

    import torch.distributed as dist

    torch.set_num_threads(1)
    what = torch.load(job, weights_only=False)
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=world_size,
        timeout=datetime.timedelta(seconds=900),
    )
    result = getattr(importlib.import_module(what["module"]), what["name"])(rank, world_size, *what["args"])
    target = Path(job).parent / f"rank{rank}.pt"
    torch.save(result, target.with_suffix(".part"))
    target.with_suffix(".part").rename(target)
    dist.barrier()
    os._exit(0)


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
