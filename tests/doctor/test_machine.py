"""Every check of the machine, passing and failing."""

import shutil

import pytest

from cpu_grpo import hardware
from cpu_grpo.doctor import machine
from cpu_grpo.doctor.finding import INSTALL
from cpu_grpo.engine.kernels import build, toolchain
from cpu_grpo.hardware import Cores
from cpu_grpo.plan import choice

GB = 10**9


def test_packages_as_named(monkeypatch):
    assert machine.packages().state == "ok"
    right = machine.version
    monkeypatch.setattr(machine, "version", lambda name: "1.0" if name == "torch" else right(name))
    found = machine.packages()
    assert (found.state, found.said, found.fix) == ("FAIL", "torch is 1.0 and not ==2.13.0", INSTALL)


def test_a_package_that_is_missing(monkeypatch):
    def missing(name):
        raise machine.PackageNotFoundError(name)

    monkeypatch.setattr(machine, "version", missing)
    found = machine.packages()
    assert found.state == "FAIL" and "torch is missing, transformers is missing" in found.said


def test_a_compiler_and_none(monkeypatch):
    found = machine.compiler()
    assert found.state == ("ok" if toolchain.compiler_here() else "warn")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    found = machine.compiler()
    assert found.state == "warn" and found.fix == machine.install_compiler()


def test_kernels_that_load_that_do_not_and_that_are_off(monkeypatch):
    if build._all():
        assert machine.kernels().state == "ok"

    def broken():
        raise OSError("compiler: out of order")

    monkeypatch.setattr(build, "_all", build._all.__wrapped__)
    monkeypatch.setattr(build, "_compiled", broken)
    found = machine.kernels()
    assert found.state == "warn" and "out of order" in found.said and found.fix
    monkeypatch.setenv("CPU_GRPO_KERNELS", "0")
    assert machine.kernels().fix == "unset CPU_GRPO_KERNELS"


@pytest.mark.parametrize(
    ("sets", "state", "phrase"),
    [
        (("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16"), "ok", "matrix tiles"),
        (("avx2", "avx512f", "avx512_bf16"), "ok", "twice as fast as fp32"),
        (("avx2", "avx512f", "avx512_vnni"), "ok", "widest vectors; 8 bits may be faster"),
        (("avx2",), "ok", "half as wide"),
        (("asimd", "asimddp", "bf16"), "ok", "bf16 is faster"),
        ((), "warn", "no AVX2"),
    ],
)
def test_what_instructions_mean(monkeypatch, sets, state, phrase):
    monkeypatch.setattr(hardware, "instructions", lambda: sets)
    found = machine.instructions()
    assert found.state == state and phrase in found.said
    assert ("8 bits" in found.said) == bool({"avx512_vnni", "asimddp"} & set(sets))


@pytest.mark.parametrize(
    ("cores", "state", "said"),
    [
        (Cores(8, 8, 4), "ok", "4 can be kept busy (4 cores by affinity)"),
        (Cores(8, 8, 4, quota=2.5), "warn", "2 can be kept busy (4 cores by affinity, control groups allow 2.5 CPUs'"),
        (Cores(1, 1, 1), "warn", "1 can be kept busy (1 cores by affinity), so a run takes long"),
    ],
)
def test_cores_and_the_limits_of_control_groups(monkeypatch, cores, state, said):
    monkeypatch.setattr(hardware, "count_cores", lambda: cores)
    found = machine.cores()
    assert found.state == state and found.said.startswith(said)
    assert bool(found.fix) == (state == "warn")


@pytest.mark.parametrize(("free", "state"), [(500 * GB, "ok"), (2 * GB, "warn"), (GB // 2, "FAIL")])
def test_memory_for_the_pipelines_trainings(project, monkeypatch, free, state):
    monkeypatch.setattr(choice, "available_memory", lambda: free)
    monkeypatch.setattr(choice.psutil.Process, "memory_info", lambda self: type("Info", (), {"rss": 0}))
    found = machine.memory()
    assert found.state == state
    told = {"ok": "largest training takes", "warn": "memory.scheme=full needs", "FAIL": "too little for any model"}
    assert told[state] in found.said


@pytest.mark.parametrize(("free", "state"), [(500 * GB, "ok"), (2 * GB, "warn"), (GB // 2, "FAIL")])
def test_disk_for_the_pipelines_trainings(project, monkeypatch, free, state):
    monkeypatch.setattr(choice, "available_memory", lambda: 500 * GB)
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: type("Usage", (), {"free": free}))
    found = machine.disk()
    assert found.state == state and "for the checkout" in found.said
    assert found.fix == ("dvc gc --workspace" if state != "ok" else "")


def test_a_model_on_the_hub_is_not_looked_up(set_params, monkeypatch):
    from cpu_grpo.plan import foresight

    monkeypatch.setattr(foresight, "_of_source", lambda model: pytest.fail("it was"))
    set_params(model={"name": "x", "source": "hub", "repo": "a/b"})
    assert machine.needs() == []


def test_cache_directories_that_can_be_written_and_that_cannot(project, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(project / "own"))
    assert machine.cache().state == "ok"
    (project / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(project / "file"))
    found = machine.cache()
    assert found.state == "warn" and "measures and compiles anew" in found.said and "XDG_CACHE_HOME" in found.fix
    monkeypatch.setenv("XDG_CACHE_HOME", str(project / "own"))
    (project / "cache").rmdir()
    (project / "cache").write_text("")
    assert machine.cache().state == "FAIL"


def test_no_home_directory(project, monkeypatch):
    def none():
        raise RuntimeError("no home")

    monkeypatch.setattr(machine, "cache_directory", none)
    found = machine.cache()
    assert found.state == "warn" and "no home directory" in found.said
