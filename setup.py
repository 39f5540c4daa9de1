"""Build the optional native kernels: a plain shared library that is loaded through ctypes.

It uses no symbol of Python, so one library serves every interpreter of a platform. Where no
compiler is found the package installs without it and computes with torch instead.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Distribution, Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

NATIVE = "weightsmith.tensors._native"
# No fused multiply-add and no reassociation: the kernels must give the bits that torch gives.
FLAGS = "-O3 -std=c++17 -fPIC -pthread -ffp-contract=off -fno-math-errno".split()


def find_compiler() -> list[str] | None:
    """The command of $CXX, or the first C++ compiler on the path."""
    if os.environ.get("CXX"):
        return shlex.split(os.environ["CXX"])
    found = next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    return [found] if found else None


def run(command: list[str]) -> None:
    """Show a command and run it."""
    print(shlex.join(command), flush=True)
    subprocess.run(command, check=True)


class BuildNative(build_ext):
    """Compile src/native/*.cpp into weightsmith/tensors/_native.so, or warn and go on."""

    def get_ext_filename(self, fullname: str) -> str:
        """One fixed name without an ABI tag."""
        return os.path.join(*fullname.split(".")) + ".so"

    def build_extension(self, extension: Extension) -> None:
        """Compile the sources side by side, one for each processor at a time, and link them."""
        target = Path(self.get_ext_fullpath(extension.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        compiler = find_compiler()
        if compiler is None:
            self.go_on_without("no C++ compiler was found (set CXX to name one)")
            return
        folder = Path(self.build_temp)
        folder.mkdir(parents=True, exist_ok=True)
        objects = {source: str(folder / f"{Path(source).stem}.o") for source in extension.sources}
        compiling = [[*compiler, *FLAGS, "-c", s, "-o", made] for s, made in objects.items()]
        try:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(run, compiling))
            run([*compiler, *FLAGS, "-shared", *objects.values(), "-o", str(target)])
        except (OSError, subprocess.CalledProcessError) as error:
            target.unlink(missing_ok=True)
            self.go_on_without(f"the compiler failed: {error}")

    def go_on_without(self, reason: str) -> None:
        """Say that the installed package will be slower."""
        print(
            f"warning: weightsmith's native kernels were not built because {reason}; "
            "merges will be computed with torch, which must be installed, and take longer",
            file=sys.stderr,
        )


class PlatformWheel(bdist_wheel):
    """Tag a wheel with its platform only: the library serves every interpreter."""

    def get_tag(self) -> tuple[str, str, str]:
        """`py3-none-<platform>` with the library inside, `py3-none-any` without."""
        interpreter, abi, platform = super().get_tag()
        if self.distribution.has_ext_modules():
            return "py3", "none", platform
        return interpreter, abi, platform


class WeightsmithDistribution(Distribution):
    """A distribution whose one extension is left out on request or when its sources are absent."""

    def has_ext_modules(self) -> bool:
        """Whether there is anything to compile."""
        return bool(self.ext_modules)


def native_extensions() -> list[Extension]:
    """The native library, unless WEIGHTSMITH_NO_NATIVE is set."""
    sources = sorted(str(path) for path in Path("src/native").glob("*.cpp"))
    headers = sorted(str(path) for path in Path("src/native").glob("*.h"))
    if not sources or os.environ.get("WEIGHTSMITH_NO_NATIVE"):
        return []
    return [Extension(NATIVE, sources=sources, depends=headers, optional=True)]


setup(
    distclass=WeightsmithDistribution,
    ext_modules=native_extensions(),
    cmdclass={"build_ext": BuildNative, "bdist_wheel": PlatformWheel},
)
