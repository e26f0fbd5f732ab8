"""What several test packages need before their imports."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

import pytest
import torch

from normwise.kernels.cpu import native

# torchvision, which timm imports, registers Python halves of operators whose compiled halves do not exist beside the
# CPU build of torch: the names suffice. The library object must outlive the tests.
_TORCHVISION = torch.library.Library("torchvision", "DEF")
_BACKWARD = ("roi_align", "ps_roi_align", "roi_pool", "ps_roi_pool", "deform_conv2d")
for _name in ("nms", "qnms", *_BACKWARD, *(f"_{name}_backward" for name in _BACKWARD)):
    _TORCHVISION.define(f"{_name}(Tensor a) -> Tensor")

# It holds no doctests, and where a folder before it in the alphabet has a conftest.py, pytest takes that for this one.
collect_ignore = ["conftest.py"]

LONG = "LONG" in os.environ


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave the tests that train or wait long to ``make long``, and say so."""
    for item in items:
        if not LONG and item.get_closest_marker("long"):
            item.add_marker(pytest.mark.skip(reason="takes long, and others prove most of it: make long"))


FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="module")
def browser():
    """The machine's Chromium, or the one that ``playwright install chromium`` brought."""
    from playwright.sync_api import Error, sync_playwright

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        try:
            running = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        except Error as problem:
            if chromium:
                raise
            why = next(line for line in problem.message.splitlines() if line.strip())
            pytest.skip(
                f"no Chromium on this machine ({why}): apt-get install chromium, or playwright install chromium"
            )
        yield running
        running.close()


@pytest.fixture(params=["C++", "Python"])
def autograd(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whence autograd reaches the native kernels."""
    if request.param == "Python":
        monkeypatch.setattr(native, "_graph_problem", "not wanted")
        monkeypatch.setattr(native, "CALLS", {})
    elif not native.differentiates():
        pytest.skip(native.why_not_differentiable() or "")
    return str(request.param)


@pytest.fixture
def leave_kernels_out(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From when it is called on, plain torch computes."""

    def leave() -> None:
        monkeypatch.setattr(native, "supports", lambda x: False)
        monkeypatch.setattr(native, "CALLS", {})

    return leave
