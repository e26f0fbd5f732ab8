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
import shutil
import sysconfig
import zlib
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

import setuptools

if 0 < int(setuptools.__version__.split(".")[0]) < 77:  # 0: unknown
    raise SystemExit(
        f"normwise is built with setuptools 77 or newer, and {setuptools.__version__} is installed: "
        "pip install --upgrade setuptools"
    )

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

CSRC = Path("src/normwise/kernels/cpu/csrc")
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


def not_built(problem: Exception) -> None:
    """One line that says why."""
    print(f"normwise: native kernels not built, plain torch will be used ({' '.join(str(problem).split())})")


def compiled_folder() -> str:
    """Where compiled files stay for the next install, editable or not: one folder a platform and choice of compiler."""
    chosen = [os.environ.get(name) for name in ("CC", "CXX", "CFLAGS", "CXXFLAGS", "CPPFLAGS", "LDFLAGS")]
    return f"build/native-{sysconfig.get_platform()}-{zlib.crc32(repr(chosen).encode()):08x}"


class BuildNative(build_ext):
    """Builds the extensions, or says in one line why it did not."""

    built = False

    def finalize_options(self) -> None:
        """Keep what is compiled, which setuptools would throw away after an editable install."""
        self.build_lib = compiled_folder()
        self.build_temp = f"{self.build_lib}/objects"
        super().finalize_options()

    def run(self) -> None:
        """Build against the installed torch what is older than its sources."""
        try:
            torch = torch_folder()
            for extension in self.extensions:
                # As a system's headers, whose warnings are not ours to mend.
                extension.extra_compile_args += ["-isystem", str(torch / "include")]
                extension.library_dirs = [str(torch / "lib")]
            super().run()
            self.built = bool(self.extensions)
        except Exception as problem:  # whatever failed, the package works without the extensions
            self.extensions = []
            not_built(problem)
        for built in [] if self.inplace else map(Path, self.get_outputs()):
            if built.exists():  # autograd's may be missing
                goal = Path(self.get_finalized_command("build").build_lib) / built.relative_to(self.build_lib)
                self.mkpath(str(goal.parent))
                self.copy_file(str(built), str(goal))

    def build_extensions(self) -> None:
        """Compile the sources of all extensions side by side: those of the kernels take a minute each."""
        one_by_one = self.compiler.compile
        self.parallel = len(self.extensions)
        with ThreadPoolExecutor(os.cpu_count()) as threads:

            def compile_all(sources: list[str], **options: Any) -> list[str]:
                return [*chain(*threads.map(lambda source: one_by_one([source], **options), sources))]

            self.compiler.compile = compile_all
            super().build_extensions()

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
        # A wheel takes in all that lies there, such as modules and libraries of earlier builds.
        shutil.rmtree(self.get_finalized_command("build").build_lib, ignore_errors=True)
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
        f"normwise.kernels.cpu.{name}",
        sources=sorted(str(path) for path in folder.glob("*.cpp")),
        depends=["setup.py", *sorted(str(path) for path in folder.glob("*.h"))],
        extra_compile_args=[f"-std={standard}", *COMPILE],
        libraries=torch_libraries,
        language="c++",
        **options,
    )


def libraries() -> list[Extension]:
    """Both libraries; none where there is no torch to name and build them for, as under pip's build isolation."""
    try:
        torch_version()
    except Exception as problem:
        not_built(problem)
        return []
    return [
        library("_native", CSRC, "c++17", ["torch_cpu"], define_macros=[("TORCH_TARGET_VERSION", TORCH_TARGET)]),
        # Without this one autograd reaches the kernels from Python. The standard is what torch 2.14's headers want.
        library("_graph", CSRC / "graph", "c++20", ["torch_cpu", "c10", "torch_python"], optional=True),
    ]


setup(ext_modules=libraries(), cmdclass={"build_ext": BuildNative, "bdist_wheel": PlatformWheel})
