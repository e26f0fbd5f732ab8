"""The kernels in Triton without a device: interpreted, compiled for devices, and counted."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from normwise.kernels import native
from normwise.kernels.operators import SCHEMAS
from normwise.kernels.triton import serving

HERE = Path(__file__).parent
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed: pip install --no-deps triton"
)
INTERPRETED = {"NORMWISE_BACKEND": "triton", "TRITON_INTERPRET": "1"}


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


@needs_triton
@pytest.mark.skipif(not native.differentiates(), reason=native.why_not_differentiable() or "")
def test_interpreted():
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "interpreted.py"), **INTERPRETED)
    assert done.returncode == 0, done.stdout


@needs_triton
def test_the_operators_pass_their_own_tests_over_interpreted_kernels():
    """On a few problems, or with ``make grid`` on all, which takes many minutes."""
    files = [str(HERE / f"test_native{name}.py") for name in ("", "_fused")]
    which = "(test_moments or test_apply or test_gradients or test_sample_norm or test_mix_norm) and not errs_no_more"
    few = {} if os.environ.get("EVERY_PROBLEM") else {"ONE_PROBLEM_IN": "8"}
    which += " and not (accurate or lose_nothing or have_the)" if few else ""
    # NumPy's, where a device gives infinity without a word.
    quiet = [f"-Wignore:{what} encountered:RuntimeWarning" for what in ("overflow", "invalid value")]
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", *quiet, "-k", which, *files, **INTERPRETED, **few)
    assert done.returncode == 0, done.stdout


# Of a step, forward and backward. A layer norm over (64, 56, 56) fits no program: its pools are launches of their own.
LAUNCHES = {
    "instance": (1, 2),
    "group": (1, 2),
    "layer": (1, 2),
    "batch": (2, 2),
    "evaluation": (1, 2),
    "switchable": (3, 4),
}


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("layer", LAUNCHES)
def test_launches_of_a_step(layer, columns, dtype):
    from ahead_of_time import launches

    for shape in ((32, 64, 28, 28), (64, 512, 7, 7), (4, 32, 8, 14, 14), (256, 64)):
        assert tuple(map(len, launches(layer, shape, dtype, columns))) == LAUNCHES[layer]
    assert tuple(map(len, launches("layer", (32, 64, 56, 56), dtype, columns))) == (3, 4)


# What covers all kernels, both layouts and 16 bits; results/triton-aot.json has the whole grid.
COMPILED = [
    ("batch", (32, 64, 56, 56), torch.float32, False, 1),
    ("switchable", (32, 64, 56, 56), torch.bfloat16, True, 0),
    ("group", (32, 64, 28, 28), torch.float32, False, 3),
    ("group", (32, 64, 56, 56), torch.bfloat16, False, 0),
    ("cells", (32, 64, 56, 56), torch.float16, False, 0),
]


# Each for AMD's, and for one of NVIDIA's in turn, which take four times as long.
TARGETED = [(*row, target) for i, row in enumerate(COMPILED) for target in (f"sm_{8 + i % 2}0", "gfx942")]


@needs_triton
@pytest.mark.parametrize(("layer", "shape", "dtype", "columns", "code", "target"), TARGETED, ids=str)
def test_compiled_for_devices(layer, shape, dtype, columns, code, target):
    from ahead_of_time import faults, launches

    forward, backward = launches(layer, shape, dtype, columns, code)
    found = {launch.name: faults(launch, launch.compile(target), target) for launch in forward + backward}
    assert {name: wrong for name, wrong in found.items() if wrong} == {}


@pytest.mark.skipif(not native.available(), reason=native.why_not() or "")
@pytest.mark.parametrize("name", SCHEMAS)
def test_the_operators_have_the_schemas_of_the_native_library(name):
    operator = getattr(torch.ops.normwise, name).default
    assert str(operator._schema) == f"normwise::{name}{SCHEMAS[name]}"


def test_without_native_kernels_there_are_the_same_operators():
    code = """if True:
        import torch, normwise
        from normwise.kernels.cpu import native
        assert not native.available()
        x, w = torch.empty(2, 4, 3, 3, device="meta"), torch.empty(4, device="meta")
        y, moments = torch.ops.normwise.sample_norm(x, 2, w, w, 1e-5, 0, 0.01)
        assert moments.shape == (2, 2, 2)
        x = torch.randn(2, 4, 3, 3, requires_grad=True)
        normwise.nn.BatchNorm2d(4)(x).sum().backward()
    """
    done = run("-c", code, NORMWISE_BACKEND="torch")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("choice", "native_kernels", "triton_kernels"),
    [
        ("torch", "NORMWISE_BACKEND=torch asks for others", "NORMWISE_BACKEND=torch asks for others"),
        ("native", None, "NORMWISE_BACKEND=native asks for others"),
        ("auto", None, None),
    ],
)
def test_the_environment_tells_which_kernels_serve(choice, native_kernels, triton_kernels):
    done = run("-m", "normwise", "env", NORMWISE_BACKEND=choice)
    assert native_kernels is None or f"native kernels   {native_kernels}" in done.stdout
    assert triton_kernels is None or f"triton kernels   {triton_kernels}" in done.stdout
    assert torch.cuda.is_available() or choice != "auto" or "there is no CUDA or ROCm device" in done.stdout


def test_an_unknown_choice_is_refused():
    done = run("-m", "normwise", "env", NORMWISE_BACKEND="cuda")
    assert done.returncode == 2
    assert "NORMWISE_BACKEND=cuda: expected one of auto, native, triton, torch" in done.stderr


@pytest.mark.parametrize(
    ("found", "version", "capability", "why"),
    [
        (False, "3.7.1", (9, 0), "Triton is not installed: pip install 'normwise[triton]'"),
        (True, "3.1.0", (9, 0), "Triton 3.1.0 is too old: 3.4 or later is needed"),
        (True, "3.7.1", (7, 5), r"compute capability is (7, 5): Triton needs (8, 0)"),
        (True, "3.10.1", (9, 0), None),
    ],
)
def test_why_these_kernels_do_not_serve(found, version, capability, why, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found or None)
    monkeypatch.setattr(serving.importlib, "import_module", lambda name: type("Triton", (), {"__version__": version}))
    told = serving.why_not.__wrapped__()
    assert told is None if why is None else why in told


def test_nothing_loads_triton_before_a_device_needs_it():
    code = (
        "import sys, torch, normwise; normwise.nn.BatchNorm1d(4)(torch.ones(2, 4)); sys.exit('triton' in sys.modules)"
    )
    assert run("-c", code).returncode == 0


@needs_triton
@pytest.mark.skipif(not native.differentiates(), reason=native.why_not_differentiable() or "")
def test_what_runs_on_a_device_runs_dry(tmp_path):
    # Beside conftest.py, which takes time off the interpreter.
    begin = "import runpy, sys, conftest; sys.argv.pop(0); runpy.run_path(sys.argv[0], run_name='__main__')"
    script = str(HERE.parents[1] / "benchmarks/gpu.py")
    path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = run("-c", begin, script, "--dry", "--out", str(tmp_path / "gpu.json"), PYTHONPATH=path, **INTERPRETED)
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "gpu.json").read_text())
    assert told["finished"]
    for row in told["errors of y, dx and parameters"]:
        assert max(row["normwise"]) < (0.02 if "bfloat16" in row["dtype"] else 1e-5), row
    for row in told["discipline"]:
        assert tuple(row["launches"]) == LAUNCHES[row["layer"]]
    times = told["seconds of a step"]
    assert {row["compiled"] for row in times} == {False, True}
    assert not [row for row in times if isinstance(row.get("normwise"), str) or isinstance(row.get("torch"), str)]
    assert [row["code"] for row in told["compare"]] == [0]


STORED = HERE.parents[1] / "results/triton-aot.json"


def test_what_was_compiled_for_seven_devices_has_no_fault():
    stored = json.loads(STORED.read_text())
    assert [(row["key"], row["faults"]) for row in stored["rows"] if row["faults"]] == []
    targets = {"sm_80", "sm_90", "sm_100", "sm_120", "gfx942", "gfx90a", "gfx1100"}
    assert {row["key"].split()[0] for row in stored["rows"]} == targets
