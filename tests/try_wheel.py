"""Uses an installed wheel: run by `make wheel` in an environment without a compiler."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import torch

import normwise
from normwise import nn as nnw
from normwise.kernels.cpu import native


def main() -> None:
    assert not any(map(shutil.which, ("c++", "cc", "g++", "gcc", "clang"))), "a compiler is in the path"
    assert Path(normwise.__file__).is_relative_to(sysconfig.get_path("platlib")), normwise.__file__
    assert native.available(), native.why_not()
    assert native.differentiates(), native.why_not_differentiable()
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
    subprocess.run([Path(sys.executable).with_name("normwise"), "env"], check=True)
    print("The wheel works without a compiler.")


if __name__ == "__main__":
    main()
