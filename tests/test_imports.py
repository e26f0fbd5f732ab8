"""The import contract of CONTRIBUTING.md, read off the sources: imports inside functions and for types count."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import normwise

PACKAGE = Path(normwise.__file__).parent
CONTRACT = Path(__file__).parents[1] / "CONTRIBUTING.md"
# Lines of a module.
LONGEST = 400
# The package's root hands out names of all its parts; nothing below may ask it for one.
ROOT = {"__init__", "__main__"}
# These need the standard library only, and ``report`` reads nothing but them: it is drawn anew without torch.
RECORDS = {"_lazy", "_version", "errors", "files", "pools", "records", "results", "findings", "outcomes", "advice"}
# What records import beside the standard library: pandas by its name, where somebody wants a data frame.
ASKED_FOR = {"normwise", "pandas"}
# A result draws its own page, which is asked for by name where somebody wants one.
DRAWS = {("results", "report")}
# What may hand its records on to be advised upon and drawn.
CONSUMERS = {"report", "surgery", "probe", "study", "claims", "cli"}


def layers() -> list[set[str]]:
    """The contract's line: each layer may import the ones before it, and the modules of its own."""
    (line,) = re.findall(r"^ {4}(\S.* ← .*)$", CONTRACT.read_text(encoding="utf-8"), re.MULTILINE)
    return [set(part.split(", ")) for part in line.split(" ← ")]


LAYERS = layers()


def own_name(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def sources() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if own_name(path) not in ROOT]


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in sources()}


def layer_of(name: str) -> int:
    for position, names in enumerate(LAYERS):
        if name in names:
            return position
    raise AssertionError(f"{name} stands in no layer of the import contract: put it in one")


def imported(path: Path) -> set[str]:
    """What a file imports anywhere, by name as well: modules of the package, its root as ``normwise``, foreign ones."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative imports hide the contract"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in {"importlib.import_module", "import_module"}:
            names = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
        else:
            continue
        for name in names:
            while name.startswith("normwise.") and name not in MODULES:
                name = name.rpartition(".")[0]
            found.add(name)
    return found


def test_the_contract_names_every_module() -> None:
    named = [name for names in LAYERS for name in names]
    assert sorted(named) == sorted({own_name(path) for path in sources()})


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_only_leftward(path: Path) -> None:
    own = own_name(path)
    for name in imported(path):
        top, _, rest = name.partition(".")
        assert name != "normwise", f"{own} must not import the package's root, which imports it"
        if top == "normwise":
            other = rest.partition(".")[0]
            if (own, other) in DRAWS:
                continue
            assert other == own or layer_of(other) < layer_of(own), f"{own} must not import {other}"
            assert own != "report" or other in {own, *RECORDS}, f"{own} reads records only"
            assert other not in {"report", "advice"} - {own} or own in CONSUMERS, f"{own} computes, and reports nothing"
        assert own not in {"report", *RECORDS} or top != "torch", f"{own} must not need torch"


def test_there_are_no_circles() -> None:
    """Not even within a package, nor by way of an import inside a function."""
    drawn = {f"normwise.{other}" for _, other in DRAWS}
    needs = {name: (imported(path) & MODULES.keys()) - {name} for name, path in MODULES.items()}
    needs["normwise.results"] -= drawn
    graphlib.TopologicalSorter(needs).prepare()  # raises CycleError, which names the modules


def test_files_are_short() -> None:
    """A module has one reason to exist; what is longer than this has two."""
    lengths = {str(path.relative_to(PACKAGE)): path.read_text("utf-8").count("\n") for path in PACKAGE.rglob("*.py")}
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}


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
    for path in (p for p in sources() if own_name(p) in RECORDS):
        assert {name.partition(".")[0] for name in imported(path)} <= sys.stdlib_module_names | ASKED_FOR
