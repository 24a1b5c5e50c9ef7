"""The kernels without a CPU of x86: nothing of it is left in them, and a compiler for arm64 takes them."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from cpu_grpo.engine.kernels import build

COMPILER = next(filter(shutil.which, (os.environ.get("CXX", ""), "g++", "clang++")), None)
ARM64 = shutil.which("aarch64-linux-gnu-g++")
X86 = re.compile(r"\b(_mm\d*_|__m(128|256|512)|__mmask|_tile_|__builtin_ia32)\w*")


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


@pytest.mark.skipif(ARM64 is None, reason="there is no compiler for arm64 here (aarch64-linux-gnu-g++)")
@pytest.mark.parametrize("source", build.SOURCES, ids=named)
def test_a_compiler_for_arm64_takes_the_kernels(source):
    flags = build.FLAGS.replace("-march=native", "-march=armv8-a").split()
    command = [ARM64, *flags, "-fsyntax-only", str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_source_is_compiled():
    assert {path for path in Path(build.__file__).parent.glob("*.cpp")} == set(build.SOURCES)
