"""Threads and precision, and the sentence behind each."""

import pytest
import torch

from cpu_grpo.config.schema import Hardware
from cpu_grpo.hardware import Cores, count_cores, decide, decisions, fastest_precision, setup
from machines import machine


@pytest.mark.parametrize(("bf16", "wanted"), [(300.0, "bf16"), (120.0, "fp32"), (20.0, "fp32")])
def test_bf16_is_chosen_only_where_it_is_measured_faster(monkeypatch, bf16, wanted):
    monkeypatch.setattr(decisions, "probe", lambda threads: machine(bf16=bf16, threads=threads))
    found = setup(Hardware(precision="auto", threads=1))
    assert (found.precision, found.fp32_rate, found.bf16_rate) == (wanted, 100.0, bf16)
    assert found.reasons[1].startswith(f"precision {wanted}: ")
    assert f"100 GFLOP/s in fp32 and {bf16:.0f} in bf16" in found.reasons[1] and "2026-11-25" in found.reasons[1]
    assert fastest_precision() == wanted


def test_what_was_measured_beside_busy_programs_is_said_so():
    found = decide(Hardware(), Cores(2, 2, 2), [machine(cpu_share=0.6)])
    assert "60%" in found.reasons[1]


def test_threads_default_to_the_usable_cores(monkeypatch):
    monkeypatch.setattr(decisions, "count_cores", lambda: Cores(8, 8, 4, quota=2.5))
    monkeypatch.setattr(decisions, "probe", None)  # nothing is measured where nothing is open
    found = setup(Hardware(precision="fp32"))
    assert found.threads == 2 == torch.get_num_threads()
    assert (found.fp32_rate, found.bf16_rate) == (0, 0)
    assert found.reasons[0].startswith("threads 2: ")
    assert all(part in found.reasons[0] for part in ("8 hardware threads", "physical cores among them 4", "quota 2.5"))
    assert found.reasons[1] == "precision fp32: set by hardware.precision"


def test_threads_that_were_asked_for_are_taken(monkeypatch):
    monkeypatch.setattr(decisions, "probe", None)
    found = setup(Hardware(precision="bf16", threads=3))
    assert found.threads == 3 == torch.get_num_threads()
    assert found.reasons[0].startswith("threads 3: set by hardware.threads")


@pytest.mark.parametrize(("fast", "everything", "threads"), [(200.0, 180.0, 2), (200.0, 300.0, 6)])
@pytest.mark.parametrize("precision", ["auto", "fp32"])
def test_with_two_kinds_of_cores_the_faster_number_of_threads_is_taken(
    monkeypatch, fast, everything, threads, precision
):
    rates = {2: fast, 6: everything}
    monkeypatch.setattr(decisions, "count_cores", lambda: Cores(8, 8, 6, efficient=4))
    monkeypatch.setattr(decisions, "probe", lambda count: machine(fp32=rates[count], bf16=1.0, threads=count))
    found = setup(Hardware(precision=precision))
    assert (found.threads, found.precision) == (threads, "fp32")
    assert torch.get_num_threads() == threads
    assert f"{fast:.0f} with 2, {everything:.0f} with 6" in found.reasons[0]
    assert "2 fast + 4 efficient" in found.reasons[0]


def test_this_machine_is_told_in_words():
    cores = count_cores()
    found = decide(Hardware(), cores, [machine(threads=cores.usable)])
    assert f"of {cores.hardware_threads} hardware threads" in found.reasons[0]


def test_onednn_is_off_where_asked_and_on_otherwise():
    try:
        setup(Hardware(precision="fp32", onednn=False))
        assert not torch.backends.mkldnn.enabled
    finally:
        setup(Hardware(precision="fp32"))
    assert torch.backends.mkldnn.enabled
