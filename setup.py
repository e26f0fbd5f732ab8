"""Builds the optional native kernels; without torch or a compiler the install is pure Python.

The library speaks torch's stable ABI and no Python, so one build serves every Python and every later torch; hence the
plain file name and the wheel tag ``py3-none-<platform>``. A small one beside it is for autograd and for calls from
Python, whose C++ interfaces are no part of the stable ABI: its name holds the torch and the Python that it was built
with, and with others it stays unused.
To build in place: ``python setup.py build_ext --inplace``.
"""

from __future__ import annotations

import importlib.util
import os
import runpy
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

CSRC = Path("src/normwise/ops/csrc")
TORCH_TARGET = "0x020a000000000000"  # the stable ABI of torch 2.10
COMPILE = [
    "-O3",
    "-g0",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fopenmp-simd",
    "-Wno-psabi",
]


def torch_folder() -> Path:
    """The installed torch, found without the seconds that importing it takes."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("torch is not installed where the build runs (pip: use --no-build-isolation)")
    return Path(spec.submodule_search_locations[0])


def torch_version() -> str:
    """What ``torch.__version__`` will be."""
    return runpy.run_path(str(torch_folder() / "version.py"))["__version__"]


class BuildNative(build_ext):
    """Builds the extensions, or says in one line why it did not."""

    built = False

    def run(self) -> None:
        """Build against the installed torch."""
        try:
            torch = torch_folder()
            for extension in self.extensions:
                # As a system's headers, whose warnings are not ours to mend.
                extension.extra_compile_args += ["-isystem", str(torch / "include")]
                extension.library_dirs = [str(torch / "lib")]
            super().run()
            self.built = True
        except Exception as problem:  # whatever failed, the package works without the extensions
            self.extensions = []
            print(f"normwise: native kernels not built, plain torch will be used ({' '.join(str(problem).split())})")

    def build_extension(self, ext: Extension) -> None:
        """Compile the sources side by side: those of the kernels take a minute each."""
        one_by_one = self.compiler.compile

        def compile_all(sources: list[str], **options: Any) -> list[str]:
            with ThreadPoolExecutor(os.cpu_count()) as threads:
                return [*chain(*threads.map(lambda source: one_by_one([source], **options), sources))]

        self.compiler.compile = compile_all
        try:
            super().build_extension(ext)
        finally:
            self.compiler.compile = one_by_one

    def get_ext_filename(self, fullname: str) -> str:
        """Name the library without a Python version, as it is not a Python module; autograd's by what it serves."""
        name = fullname.replace(".", "/")
        if fullname.split(".")[-1] == "_graph":  # setuptools asks with and without the packages
            name += f"-{torch_version()}-{sysconfig.get_config_var('SOABI')}"
        return f"{name}.so"


class PlatformWheel(bdist_wheel):
    """Tags the wheel for any Python, and for the platform only if it holds the extension."""

    def run(self) -> None:
        """Build the extension first, because the tag depends on the outcome."""
        self.run_command("build_ext")
        self.root_is_pure = not self.get_finalized_command("build_ext").built
        if self.root_is_pure:
            self.distribution.ext_modules = []  # or the files would go where a platform's do
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        """Any Python 3; the platform's part as usual."""
        return "py3", "none", "any" if self.root_is_pure else super().get_tag()[2]


def library(name: str, folder: Path, standard: str, torch_libraries: list[str], **options: Any) -> Extension:
    """One of the libraries, from all sources of a folder."""
    return Extension(
        f"normwise.ops.{name}",
        sources=sorted(str(path) for path in folder.glob("*.cpp")),
        depends=sorted(str(path) for path in folder.glob("*.h")),
        extra_compile_args=[f"-std={standard}", *COMPILE],
        libraries=torch_libraries,
        language="c++",
        **options,
    )


setup(
    ext_modules=[
        library("_native", CSRC, "c++17", ["torch_cpu"], define_macros=[("TORCH_TARGET_VERSION", TORCH_TARGET)]),
        # Without this one autograd reaches the kernels from Python. The standard is what torch 2.14's headers want.
        library("_graph", CSRC / "graph", "c++20", ["torch_cpu", "c10", "torch_python"], optional=True),
    ],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": PlatformWheel},
)
