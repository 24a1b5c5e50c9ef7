"""Which compiler makes the kernels on a system, and with which options."""

import os
import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

# Sums may be taken in any order, and results are finite: without these, loops with sums or exps do not vectorise.
MATHEMATICS = ("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math", "-ffinite-math-only")
COMPILERS = {"darwin": ("clang++",)}  # where g++ is another name of clang++; elsewhere:
USUAL = ("g++", "clang++")
# Torch's own OpenMP, for compilers that bring none: one runtime for both, as threads of a second one wait by spinning.
RUNTIMES = {"darwin": "libomp.dylib", "win32": "libiomp5md.lib"}


@dataclass(frozen=True)
class Toolchain:
    """A C++ compiler and what it is told."""

    compiler: str
    options: tuple[str, ...]
    libraries: tuple[str, ...] = ()

    def command(self, sources: list[Path], library: Path) -> list[str]:
        """What compiles the sources to a shared library."""
        return [self.compiler, *self.options, *map(str, sources), *self.libraries, "-o", str(library)]


def toolchain(
    system: str = sys.platform, machine: str | None = None, compiler: str | None = None, cpu: str = "native"
) -> Toolchain:
    """This machine's, or what another one's would be.

    Args:
        system: as `sys.platform` has it.
        machine: as `platform.machine` has it.
        compiler: the program; left out, the first there is of CXX, g++ and clang++.
        cpu: whose instructions to use, by the compiler's names.

    Raises:
        OSError: there is no compiler.
    """
    names = COMPILERS.get(system, USUAL)
    compiler = compiler or next(filter(shutil.which, (os.environ.get("CXX", ""), *names)), None)
    if compiler is None:
        raise OSError(f"no C++ compiler ({' or '.join(names)}) was found")
    arm = (machine or platform.machine()).lower() in ("arm64", "aarch64")
    options = ["-std=c++17", "-O3", f"-{'mcpu' if arm else 'march'}={cpu}", *MATHEMATICS, "-shared"]
    libraries: list[str] = []
    if system in RUNTIMES and "clang" in Path(compiler).name:
        runtime = Path(torch.__file__).parent / "lib" / RUNTIMES[system]
        options += ["-Xclang", "-fopenmp"]
        libraries += [str(runtime), *([f"-Wl,-rpath,{runtime.parent}"] if system == "darwin" else [])]
    else:
        options.append("-fopenmp")
    if system != "win32":
        options.append("-fPIC")
    elif (
        not libraries
    ):  # MinGW's, whose own libraries Windows would not find, and whose stack is aligned to 16 bytes only
        options += ["-static", "-Wa,-muse-unaligned-vector-move"]  # gcc's bug 54412
    return Toolchain(compiler, tuple(options), tuple(libraries))
