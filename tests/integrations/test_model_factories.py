"""Networks of timm and torchvision with the layers of any method."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn

from normwise.errors import InputError

NETWORKS = [
    ("timm", "resnet18", 20),
    ("timm", "efficientnet_b0", 49),  # its norms hold their activation
    ("timm", "mobilenetv3_small_050", 34),  # it takes no norm_layer
    ("timm", "convnext_atto", 17),
    ("torchvision", "resnet18", 20),
    ("torchvision", "mobilenet_v3_small", 34),
    ("torchvision", "shufflenet_v2_x0_5", 56),  # it takes no norm_layer
    ("torchvision", "convnext_tiny", 23),
]
MAKERS = {"timm": "create_model", "torchvision": "get_model"}
# What each module needs, and the pip line that it gives.
NEEDS = {
    "lightning": "pip install lightning",
    "transformers": "pip install transformers accelerate",
    "timm": "pip install timm",
    "torchvision": "pip install torchvision",
}


def integration(package: str):
    if not importlib.util.find_spec(package):
        pytest.skip(f"{package} is not installed: see tests/real-networks.txt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations in their own imports
        return importlib.import_module(f"normwise.integrations.{package}")


@pytest.mark.parametrize(("package", "name", "count"), NETWORKS, ids=[f"{n[0]}-{n[1]}" for n in NETWORKS])
def test_every_norm_is_of_the_method(package: str, name: str, count: int) -> None:
    net = getattr(integration(package), MAKERS[package])(name, "group", num_classes=3)
    ours = [module for module in net.modules() if type(module).__module__.startswith("normwise.")]
    assert len([module for module in ours if isinstance(module, nn.GroupNorm)]) == count
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in net.modules())
    net(torch.randn(2, 3, 64, 64)).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


@pytest.mark.parametrize("package", MAKERS)
def test_what_cannot_be_built_is_said(package: str) -> None:
    make = getattr(integration(package), MAKERS[package])
    with pytest.raises(InputError, match=f"{package} cannot build 'resnet81'"):
        make("resnet81", "group")
    with pytest.raises(InputError, match="unknown method 'gruop'"):
        make("resnet18", "gruop")


@pytest.mark.parametrize("package", NEEDS)
def test_examples_of_the_integrations_run(package: str) -> None:
    """Their modules are left out of the suite's doctests, which would import every package to find them."""
    tried = doctest.testmod(integration(package), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert tried.attempted > 0
    assert not tried.failed


def test_a_package_that_is_missing_is_named_with_the_line_that_installs_it() -> None:
    program = f"""
import importlib, sys
from importlib.abc import MetaPathFinder
class Without(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {{*{list(NEEDS)}, "pytorch_lightning"}}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name.partition(".")[0])
sys.meta_path.insert(0, Without())
import normwise, normwise.integrations
from normwise.errors import MissingDependencyError
for package, line in {NEEDS}.items():
    try:
        importlib.import_module(f"normwise.integrations.{{package}}")
    except MissingDependencyError as error:
        assert str(error).endswith(line), error
    else:
        raise AssertionError(package)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
