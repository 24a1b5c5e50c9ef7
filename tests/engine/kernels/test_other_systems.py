"""The kernels for systems and CPUs that are not at hand: their compilers take them, as the toolchain calls them."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from cpu_grpo.engine.kernels import build
from cpu_grpo.engine.kernels.toolchain import compiler_here, toolchain

COMPILER = compiler_here()
X86 = re.compile(r"\b(_mm\d*_|__m(128|256|512)|__mmask|_tile_|__builtin_ia32)\w*")
OTHERS = {  # system, machine, CPU, and what makes libraries for them here
    "Windows": ("win32", "AMD64", "haswell", "x86_64-w64-mingw32-g++"),
    "Windows, AVX-512": ("win32", "AMD64", "cooperlake", "x86_64-w64-mingw32-g++"),
    "arm64": ("linux", "aarch64", "generic", "aarch64-linux-gnu-g++"),
    "arm64, dot products": ("linux", "aarch64", "neoverse-n1", "aarch64-linux-gnu-g++"),
}


def named(path):
    return path.name


@pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler here")
@pytest.mark.parametrize("source", build.SOURCES, ids=named)
def test_without_avx_no_intrinsic_of_x86_is_left(source, tmp_path):
    # What the system's headers say is not ours to judge.
    ours = re.sub(r"#include <.*", "", source.read_text())
    for header in build.HEADERS:
        (tmp_path / header.name).write_text(re.sub(r"#include <.*", "", header.read_text()))
    (tmp_path / source.name).write_text(ours)
    undefined = ["-U__AVX__", "-U__AVX2__", "-U__AVX512F__", "-U__AVX512BF16__", "-U__SSE__", "-U__x86_64__"]
    command = [COMPILER, "-E", *undefined, str(tmp_path / source.name)]
    left = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "namespace" in left
    assert not X86.search(left)


@pytest.mark.slow
@pytest.mark.parametrize("other", OTHERS)
def test_a_library_for_another_system_has_every_kernel(other, tmp_path):
    system, machine, cpu, compiler = OTHERS[other]
    if not shutil.which(compiler):
        pytest.skip(f"there is no {compiler} here")
    library = tmp_path / "kernels.so"
    command = toolchain(system, machine, compiler, cpu).command(build.SOURCES, library)
    done = subprocess.run([*command, "-O1"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    content = library.read_bytes()
    for pair in build.PRODUCTS:
        wanted = [name for name, _ in build.exports(*(build.SUFFIXES[dtype] for dtype in pair)).values()]
        assert [name for name in wanted if name.encode() + b"\0" not in content] == []


@pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler here")
@pytest.mark.parametrize("source", build.SOURCES, ids=named)
def test_a_compiler_without_openmp_takes_the_kernels(source):
    command = [COMPILER, "-std=c++17", "-march=native", "-Wall", "-Wno-unknown-pragmas", "-fsyntax-only", str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_clang_on_macos_and_windows_shares_torchs_openmp():
    for system, machine, runtime in (("darwin", "arm64", "libomp.dylib"), ("win32", "AMD64", "libiomp5md.lib")):
        command = toolchain(system, machine, "clang++").command(build.SOURCES, Path("kernels"))
        assert command[command.index("-fopenmp") - 1] == "-Xclang"
        assert str(Path(torch.__file__).parent / "lib" / runtime) in command


def test_every_source_is_compiled():
    assert {path for path in Path(build.__file__).parent.glob("*.cpp")} == set(build.SOURCES)
