"""Names and instruction sets, as Linux tells them on x86 and on arm64, and as torch does elsewhere."""

import platform

import pytest
import torch

from cpu_grpo.hardware import cpu_flags, cpu_name, instructions

X86 = """processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
flags\t\t: fpu sse2 avx avx2 avx512f avx512bw avx_vnni avx512_bf16 amx_bf16 avx512_vnni amx_tile amx_int8

processor\t: 1
model name\t: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
flags\t\t: fpu"""
NEOVERSE = """processor\t: 0
BogoMIPS\t: 2100.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm jscvt fcma lrcpc dcpop sha3 \
sm3 sm4 asimddp sha512 sve asimdfhm dit uscat ilrcpc flagm ssbs paca pacg dcpodp svei8mm svebf16 i8mm bf16 dgh rng
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x1
CPU part\t: 0xd40
CPU revision\t: 1"""
SMALL_ARM = "processor\t: 0\nFeatures\t: fp asimd evtstrm crc32 cpuid\nCPU implementer\t: 0x41\nCPU part\t: 0xd08"


@pytest.mark.parametrize(
    ("text", "name", "sets"),
    [
        (
            X86,
            "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz",
            ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
        ),
        (NEOVERSE, "implementer 0x41, part 0xd40", ("asimd", "asimddp", "bf16", "i8mm", "sve", "svebf16")),
        (SMALL_ARM, "implementer 0x41, part 0xd08", ("asimd",)),
    ],
)
def test_linux_tells_name_and_instruction_sets(system, text, name, sets):
    root = system([0], {"proc/cpuinfo": text})
    assert cpu_name(root).endswith(name)
    assert instructions(root) == sets


def test_elsewhere_torch_tells_the_instruction_sets_by_other_names(tmp_path, monkeypatch):
    told = {"architecture": "arm64", "neon": True, "dot": True, "bf16": False, "i8mm": True, "sve_max_length": 1}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: told)
    assert instructions(tmp_path) == ("asimd", "asimddp", "i8mm")
    assert cpu_name(tmp_path)


@pytest.mark.skipif(platform.system() != "Linux", reason="only Linux tells it in two ways")
def test_linux_and_torch_agree_about_this_cpu(tmp_path):
    assert cpu_flags()
    assert set(instructions()) == set(instructions(tmp_path))
