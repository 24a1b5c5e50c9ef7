"""The probe: measured once for the same conditions, anew for others, and never taken from what is damaged."""

import json
import math

import pytest
import torch

from cpu_grpo import files
from cpu_grpo.hardware import __main__ as command
from cpu_grpo.hardware import machine as module
from cpu_grpo.hardware import probe
from cpu_grpo.hardware.machine import products
from machines import machine


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """The conditions that were measured, at once and with made-up figures, and the directory of the cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    asked = []

    def measure(threads, cores):
        asked.append(threads)
        figures = machine(fp32=100.0 + len(asked), cpu_share=share[0])
        names = ("rates", "read_gb_per_second", "cpu_share", "measured")
        return {name: getattr(figures, name) for name in names}

    share = [1.0]
    monkeypatch.setattr(module, "_measure", measure)
    measure.asked, measure.share, measure.cache = asked, share, tmp_path / "cache" / "cpu-grpo"
    return measure


def test_a_machine_is_measured_once(measured):
    first = probe(2)
    assert probe(2) == first
    assert measured.asked == [2]
    (file,) = measured.cache.iterdir()
    assert json.loads(file.read_text())["cpu"] == first.cpu


def test_it_is_measured_anew_on_demand_and_that_is_kept(measured):
    first, second = probe(2), probe(2, fresh=True)
    assert first.rate("fp32") != second.rate("fp32")
    assert probe(2) == second


@pytest.mark.parametrize("name", ["ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "DNNL_MAX_CPU_ISA"])
def test_other_instructions_are_measured_by_themselves(measured, monkeypatch, name):
    monkeypatch.delenv(name, raising=False)
    first = probe(2)
    monkeypatch.setenv(name, "avx2")
    assert probe(2) != first
    monkeypatch.delenv(name)
    assert probe(2) == first
    assert len(measured.asked) == 2


def test_other_threads_versions_and_limits_are_measured_by_themselves(measured, monkeypatch, system):
    quota = {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "250000 100000", "proc/cpuinfo": "flags: avx2"}
    root = system([0, 1, 2, 3], quota)
    assert probe(root=root).threads == 2
    assert probe(1, root=root).threads == 1
    system([0, 1], {})
    assert probe(root=root).cores.allowed == 2
    system([0, 1], {"sys/fs/cgroup/cpu.max": "150000 100000"})
    assert probe(root=root).threads == 1
    system([0, 1], {"proc/cpuinfo": "flags: avx2 avx512f"})
    assert probe(root=root).instructions == ("avx2", "avx512f")
    monkeypatch.setattr(torch, "__version__", "0.0")
    probe(root=root)
    monkeypatch.setattr(module, "VERSION", module.VERSION + 1)
    probe(root=root)
    assert measured.asked == [2, 1, 2, 1, 1, 1, 1]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[:100],
        lambda text: "[]",
        lambda text: "\0\0\0",
        lambda text: json.dumps(json.loads(text) | {"rates": []}),
        lambda text: json.dumps(json.loads(text) | {"rates": [{"rows": 8}]}),
        lambda text: json.dumps(json.loads(text) | {"read_gb_per_second": 0}),
        lambda text: json.dumps(json.loads(text) | {"cpu_share": "all"}),
        lambda text: text.replace('"gflops": 300.0', '"gflops": null', 1),
        lambda text: text.replace('"cpu_share"', '"other"'),
    ],
)
def test_a_damaged_file_is_measured_anew_and_replaced(measured, damage):
    probe(2)
    (file,) = measured.cache.iterdir()
    file.write_text(damage(file.read_text()))
    again = probe(2)
    assert len(measured.asked) == 2
    assert probe(2) == again
    assert len(measured.asked) == 2


def test_what_was_measured_beside_busy_programs_is_not_kept(measured):
    measured.share[0] = 0.6
    assert "60%" in probe(2).when
    measured.share[0] = 1.0
    assert probe(2).when == "2026-11-25"
    assert len(measured.asked) == 2


def test_without_a_home_directory_it_is_just_measured(measured, monkeypatch, tmp_path):
    def nowhere():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(files, "cache_directory", nowhere)
    assert probe(2).rate("bf16") == 300
    assert len(measured.asked) == 1
    assert not measured.cache.exists()


def test_where_the_cache_cannot_be_written_it_is_just_measured(measured):
    measured.cache.parent.write_text("a file is in its place")
    assert probe(2).rate("bf16") == 300


@pytest.mark.slow
def test_figures_are_really_measured_and_change_nothing_else(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "SIZES", (256, 512))  # quick
    monkeypatch.setattr(module, "READ", 2**20)
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    found = probe(1)
    assert [(rate.precision, rate.rows, rate.size) for rate in found.rates] == products()
    figures = [found.read_gb_per_second, *(rate.gflops for rate in found.rates)]
    assert all(0 < figure < math.inf for figure in figures)
    assert 0 < found.cpu_share <= 1
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)  # a cached figure must not make another run of it


def test_the_command_tells_what_was_found_and_decided(measured, capsys):
    assert command.main([]) == command.main([]) == 0
    printed = capsys.readouterr().out
    counts = len(measured.asked)
    assert "1024 rows x 4096 x 4096: 101.0 GFLOP/s in fp32, 300.0 GFLOP/s in bf16" in printed
    assert "\nthreads " in printed and "\nprecision bf16: " in printed
    assert command.main(["--fresh"]) == 0
    assert len(measured.asked) == 2 * counts
