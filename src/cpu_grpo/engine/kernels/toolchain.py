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


def compiler_here(system: str = sys.platform) -> str | None:
    """The first there is of the program that CXX names, g++ and clang++; None without any."""
    return next(filter(shutil.which, (os.environ.get("CXX", ""), *COMPILERS.get(system, USUAL))), None)


def toolchain(
    system: str = sys.platform, machine: str | None = None, compiler: str | None = None, cpu: str = "native"
) -> Toolchain:
    """This machine's, or what another one's would be.

    Args:
        system: as `sys.platform` has it.
        machine: as `platform.machine` has it.
        compiler: the program; left out, `compiler_here`.
        cpu: whose instructions to use, by the compiler's names.

    Raises:
        OSError: there is no compiler.
    """
    compiler = compiler or compiler_here(system)
    if compiler is None:
        raise OSError(f"no C++ compiler ({' or '.join(COMPILERS.get(system, USUAL))}) was found")
    arm = (machine or platform.machine()).lower() in ("arm64", "aarch64")
    options = ["-std=c++17", "-O3", f"-{'mcpu' if arm else 'march'}={cpu}", *MATHEMATICS, "-shared"]
    options += [] if system == "win32" else ["-fPIC"]
    if system not in RUNTIMES or "clang" not in Path(compiler).name:
        # MinGW's libraries Windows would not find, and its stack is aligned to 16 bytes only (gcc's bug 54412).
        options += ["-fopenmp", *(["-static", "-Wa,-muse-unaligned-vector-move"] if system == "win32" else [])]
        return Toolchain(compiler, tuple(options))
    runtime = Path(torch.__file__).parent / "lib" / RUNTIMES[system]
    found_at_run_time = (f"-Wl,-rpath,{runtime.parent}",) if system == "darwin" else ()
    return Toolchain(compiler, (*options, "-Xclang", "-fopenmp"), (str(runtime), *found_at_run_time))
