"""Builds the compiled engine and coder with CMake; everything else about the package is in pyproject.toml."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """Without CMake or a C++ compiler an extension is left out: torch runs packed networks, Python reads files."""

    def build_extension(self, ext: Extension) -> None:
        folder = Path(self.build_temp).resolve() / "native"
        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        folder.mkdir(parents=True, exist_ok=True)
        configure = [
            "cmake", "-S", str(ROOT), "-B", str(folder), "-G", "Ninja",
            f"-DPython_EXECUTABLE={sys.executable}", f"-DSPARSIGN_OUTPUT={target}",
        ]  # fmt: skip
        try:
            subprocess.run(configure, check=True)
            subprocess.run(["cmake", "--build", str(folder), "--target", ext.name.split(".")[-1]], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise CompileError(f"{ext.name} is left out, slower code takes its place: {error}") from None


EXTENSIONS = ("sparsign.kernels._native", "sparsign.packing._coder")
setup(
    ext_modules=[Extension(name, [], optional=True) for name in EXTENSIONS],
    cmdclass={"build_ext": CMakeBuild},
)
