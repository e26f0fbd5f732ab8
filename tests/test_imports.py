"""The import contract of the design, read off the sources."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import normwise

PACKAGE = Path(normwise.__file__).parent
# Each layer may import the ones before it, and the modules of its own.
LAYERS = [
    {"errors"},
    {"files"},
    {"records"},
    {"results"},
    {"findings", "outcomes"},
    {"advice"},
    {"report"},
    {"ops"},
    {"moments"},
    {"distributed"},
    {"methods"},
    {"composite"},
    {"mixes"},
    {"engine"},
    {"functional"},
    {"nn"},
    {"parametrize"},
    {"surgery"},
    {"probe"},
    {"study"},
    {"claims"},
    {"integrations"},
    {"cli"},
]
# These read records only, so that a report can be redrawn without torch.
RECORDS_ONLY = {"report"}
RECORDS = {"errors", "files", "records", "findings", "outcomes", "advice"}
ROOT = {"__init__", "__main__"}


def layer_of(name: str) -> int:
    for position, names in enumerate(LAYERS):
        if name in names:
            return position
    raise AssertionError(f"{name} stands in no layer of the import contract: put it in one")


def sources() -> list[Path]:
    return [p for p in sorted(PACKAGE.rglob("*.py")) if p.relative_to(PACKAGE).parts[0].removesuffix(".py") not in ROOT]


def imported(path: Path) -> list[str]:
    """Top-level names under ``normwise`` and foreign packages that a file imports anywhere, functions included."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative imports hide the contract"
            names = [alias.name for alias in node.names]
            found += [f"normwise.{n}" for n in names] if node.module == "normwise" else [str(node.module)]
    return found


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_only_leftward(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "normwise" and len(parts) > 1 and not parts[1].startswith("__"):
            other = parts[1]
            allowed = other == own or layer_of(other) < layer_of(own)
            assert allowed, f"{own} must not import {other}"
            assert own not in RECORDS_ONLY or other in {own, *RECORDS}, f"{own} reads records only"
            assert other not in RECORDS_ONLY or own in {other, "study", "claims", "surgery", "probe", "cli"}
        assert own not in RECORDS_ONLY | RECORDS or parts[0] != "torch", f"{own} must not need torch"


@pytest.mark.parametrize(
    "module",
    [
        "normwise",
        "normwise.errors",
        "normwise.records",
        "normwise.findings",
        "normwise.outcomes",
        "normwise.report",
        "normwise.cli",
    ],
)
def test_these_do_not_load_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_records_need_the_standard_library_only() -> None:
    for path in (p for p in sources() if p.relative_to(PACKAGE).parts[0].removesuffix(".py") in RECORDS):
        tops = {n.split(".")[0] for n in imported(path)}
        assert tops <= sys.stdlib_module_names | {"normwise"}
