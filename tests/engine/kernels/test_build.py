"""Compiling the kernels: once, into the user's cache directory, and torch instead wherever that is impossible."""

import functools
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from cpu_grpo.engine.kernels import build, fused
from cpu_grpo.engine.kernels.toolchain import compiler_here

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="stands shell scripts in for compilers")
COMPILER = compiler_here()


@pytest.fixture(scope="module")
def wanted():
    """What the passes give before anything is changed."""
    return results()


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """As in a new process: no library loaded, and an empty cache directory, which is returned."""
    forget(monkeypatch)
    monkeypatch.delenv("CPU_GRPO_KERNELS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "cpu-grpo"


def forget(monkeypatch):
    """Nothing is loaded yet; after the test the loaded library is back."""
    monkeypatch.setattr(build, "_all", functools.cache(build._all.__wrapped__))


def runs(monkeypatch):
    """A list that gets every command that is run."""
    commands, right = [], subprocess.run

    def run(command, **options):
        commands.append(command)
        return right(command, **options)

    monkeypatch.setattr(build.subprocess, "run", run)
    return commands


def pretend_compiler(monkeypatch, directory, script):
    """Puts a shell script first on the path as g++; its $out is the file that it is to make."""
    directory.mkdir()
    program = directory / "g++"
    program.write_text(f"#!/bin/sh\nfor out; do :; done\n{script}\n")  # the last argument
    program.chmod(0o755)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", f"{directory}{os.pathsep}{os.environ['PATH']}")


def warning_of_loading():
    """The one warning that asking for kernels gives, and that asking again does not repeat."""
    with pytest.warns(UserWarning) as caught:
        assert build.native(torch.float32) is None
        assert build.native(torch.bfloat16) is None
    assert len(caught) == 1
    message = str(caught[0].message)
    assert "\n" not in message
    assert message.startswith("Slower torch code replaces the compiled kernels: ")
    return message


def results():
    """What the passes make of the same numbers."""
    torch.manual_seed(0)
    x = torch.randn(5, 40)
    normed, scales = fused.add_norm(x.clone(), x, torch.rand(40), 1e-6, torch.float32)
    return normed, scales, fused.swiglu(x), *fused.token_scores(x.clone(), torch.arange(5), 0.7)


def same(found, wanted):
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_without_a_compiler_one_sentence_says_so_and_torch_computes_the_same(wanted, fresh, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert warning_of_loading().endswith(": no C++ compiler (g++ or clang++) was found")
    same(results(), wanted)
    assert not fresh.exists()


def test_kernels_that_are_turned_off_are_not_compiled_and_not_missed(wanted, fresh, monkeypatch):
    monkeypatch.setenv("CPU_GRPO_KERNELS", "0")
    commands = runs(monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert build.native(torch.float32) is None
        same(results(), wanted)
    assert not commands
    assert not fresh.exists()


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler here")
def test_the_library_is_compiled_once_for_all_processes_of_a_user(wanted, fresh, monkeypatch):
    commands = runs(monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert build.native(torch.float32) and build.native(torch.bfloat16)
        assert build.native(torch.float64) is None
    same(results(), wanted)
    assert [command[0] for command in commands] == [COMPILER]
    (library,) = fresh.iterdir()
    assert library.suffix == ".so"
    forget(monkeypatch)
    assert build.native(torch.float32)
    same(results(), wanted)
    assert len(commands) == 1
    assert list(fresh.iterdir()) == [library]


@pytest.mark.slow
def test_clangs_library_computes_the_same(wanted, fresh, monkeypatch):
    clang = shutil.which("clang++")
    trial = [clang, "-fopenmp", "-xc++", "-", "-o", os.devnull]
    if clang is None or subprocess.run(trial, input=b"int main() {}", check=False).returncode:
        pytest.skip("there is no clang++ with OpenMP here")
    monkeypatch.setenv("CXX", clang)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert build.native(torch.float32)
    same(results(), wanted)


def test_another_version_or_machine_gets_a_library_of_its_own(fresh, monkeypatch, tmp_path):
    pretend_compiler(monkeypatch, tmp_path / "bin", 'echo library > "$out"')
    first = build._compiled()
    assert build._compiled() == first
    monkeypatch.setattr(build, "cpu_flags", lambda: ("another",))
    second = build._compiled()
    changed = tmp_path / "changed.cpp"
    changed.write_text(build.SOURCES[0].read_text() + "// changed")
    monkeypatch.setattr(build, "SOURCES", [changed, *build.SOURCES[1:]])
    third = build._compiled()
    assert set(fresh.iterdir()) == {first, second, third}
    assert len({first, second, third}) == 3


@pytest.mark.parametrize("harm", [lambda data: data[: len(data) // 2], lambda data: data[:-1] + b"x", lambda data: b""])
def test_a_damaged_library_is_made_again(fresh, monkeypatch, tmp_path, harm):
    pretend_compiler(monkeypatch, tmp_path / "bin", 'echo library > "$out"')
    first = build._compiled()
    first.write_bytes(harm(first.read_bytes()))
    assert build._compiled() == first
    assert first.read_text() == "library\n"


def test_the_compiler_that_cxx_names_is_taken(fresh, monkeypatch, tmp_path):
    pretend_compiler(monkeypatch, tmp_path / "bin", "echo said by g++ >&2; exit 1")
    mine = tmp_path / "mine"
    mine.write_text("#!/bin/sh\necho said by mine >&2\nexit 1\n")
    mine.chmod(0o755)
    monkeypatch.setenv("CXX", str(mine))
    assert warning_of_loading().endswith(": said by mine")


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ('echo half > "$out"; echo first line >&2; echo the last line >&2; exit 1', "the last line"),
        ('echo half > "$out"; exit 3', "non-zero exit status 3."),
        ('echo half > "$out"; kill -9 $$', "died with <Signals.SIGKILL: 9>."),
    ],
)
def test_a_compiler_that_fails_is_quoted_and_leaves_nothing_behind(wanted, fresh, monkeypatch, tmp_path, script, said):
    pretend_compiler(monkeypatch, tmp_path / "bin", script)
    commands = runs(monkeypatch)
    assert warning_of_loading().endswith(said)
    assert len(commands) == 1
    assert list(fresh.iterdir()) == []
    same(results(), wanted)


def test_an_interrupted_compilation_leaves_nothing_behind(fresh, monkeypatch, tmp_path):
    def interrupted(command, **_):
        Path(command[-1]).write_text("half")
        raise KeyboardInterrupt

    pretend_compiler(monkeypatch, tmp_path / "bin", "exit 0")
    monkeypatch.setattr(build.subprocess, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build.native(torch.float32)
    assert list(fresh.iterdir()) == []


def test_a_library_that_cannot_be_loaded_is_named(wanted, fresh, monkeypatch, tmp_path):
    pretend_compiler(monkeypatch, tmp_path / "bin", 'echo this is no library > "$out"')
    assert str(fresh) in warning_of_loading()
    same(results(), wanted)


def test_a_cache_directory_that_cannot_be_made_is_named(wanted, fresh, monkeypatch, tmp_path):
    pretend_compiler(monkeypatch, tmp_path / "bin", "exit 0")
    (tmp_path / "cache").write_text("a file is in its place")
    assert str(fresh) in warning_of_loading()
    same(results(), wanted)
