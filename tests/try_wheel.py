"""Uses what was installed from a wheel or from the sources: run by `make wheel` where there is no compiler."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import tempfile
from importlib import metadata
from pathlib import Path

import torch

import normwise
from normwise import nn as nnw
from normwise.kernels.cpu import native


def main() -> None:
    assert not any(map(shutil.which, ("c++", "cc", "g++", "gcc", "clang"))), "a compiler is in the path"
    assert Path(normwise.__file__).is_relative_to(sysconfig.get_path("platlib")), normwise.__file__
    kernels = "manylinux" in (metadata.distribution("normwise").read_text("WHEEL") or "")
    assert native.available() == kernels, native.why_not()
    layers_agree()
    command = Path(sys.executable).with_name("normwise")
    subprocess.run([command, "env"], check=True)
    with tempfile.TemporaryDirectory() as folder:
        compared = [command, "compare", "--data", "digits", "--methods", "batch,group", "--quick", "--seeds", "2"]
        subprocess.run([*compared, "--out", folder], check=True)
        assert (Path(folder) / "report.html").stat().st_size > 10_000
    autograd = "in C++" if native.differentiates() else "in Python"
    print(f"It works without a compiler: kernels {kernels}, autograd {autograd}, Python {sys.version.split()[0]}.")


def layers_agree() -> None:
    """Outputs and gradients are torch's."""
    x = torch.randn(8, 6, 5, 5)
    for ours, theirs in (
        (nnw.BatchNorm2d(6), torch.nn.BatchNorm2d(6)),
        (nnw.GroupNorm(3, 6), torch.nn.GroupNorm(3, 6)),
        (nnw.LayerNorm(5), torch.nn.LayerNorm(5)),
    ):
        results = []
        for layer in (ours, theirs):
            leaf = x.clone().requires_grad_()
            y = layer(leaf)
            results.append((
                y.detach(),
                *torch.autograd.grad(y.square().sum() + y[0].sum(), [leaf, *layer.parameters()]),
            ))
        torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-4)


if __name__ == "__main__":
    main()
