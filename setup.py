"""Builds the optional native kernels; without torch or a compiler the install is pure Python.

The library speaks torch's stable ABI and no Python, so one build serves every Python and every later torch; hence the
plain file name and the wheel tag ``py3-none-<platform>``. To build in place: ``python setup.py build_ext --inplace``.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

CSRC = Path("src/normwise/ops/csrc")
TORCH_TARGET = "0x020a000000000000"  # the stable ABI of torch 2.10
COMPILE = [
    "-std=c++17",
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


class BuildNative(build_ext):
    """Builds the extension, or says in one line why it did not."""

    built = False

    def run(self) -> None:
        """Build against the installed torch."""
        try:
            torch = torch_folder()
            for extension in self.extensions:
                extension.include_dirs = [str(torch / "include")]
                extension.library_dirs = [str(torch / "lib")]
            super().run()
            self.built = True
        except Exception as problem:  # whatever failed, the package works without the extension
            self.extensions = []
            print(f"normwise: native kernels not built, plain torch will be used ({' '.join(str(problem).split())})")

    def get_ext_filename(self, fullname: str) -> str:
        """Name the library without a Python version: it is not a Python module."""
        return fullname.replace(".", "/") + ".so"


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


setup(
    ext_modules=[
        Extension(
            "normwise.ops._native",
            sources=sorted(str(path) for path in CSRC.glob("*.cpp")),
            depends=sorted(str(path) for path in CSRC.glob("*.h")),
            define_macros=[("TORCH_TARGET_VERSION", TORCH_TARGET)],
            extra_compile_args=COMPILE,
            libraries=["torch_cpu"],
            language="c++",
        )
    ],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": PlatformWheel},
)
