"""Scripts that no test runs, as they take hours or a device, still name what exists."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(path for place in ("benchmarks", "examples", "docs") for path in (ROOT / place).rglob("*.py"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_a_script_imports_from_normwise_exists(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "normwise":
            module = importlib.import_module(node.module)
            missing = [
                name.name
                for name in node.names
                if not hasattr(module, name.name) and not _loads(node.module, name.name)
            ]
            assert not missing, f"line {node.lineno}: {node.module} has no {', '.join(missing)}"


def _loads(module: str, name: str) -> bool:
    try:
        importlib.import_module(f"{module}.{name}")
    except ImportError:
        return False
    return True
