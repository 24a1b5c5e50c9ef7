"""What kind of CPU this is: its name and its instruction sets."""

import platform
import subprocess
import sys
from pathlib import Path

import torch

# Instruction sets that products of matrices gain from, by Linux's names: of x86, and of arm64.
INSTRUCTIONS = (
    *("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "bf16", "i8mm", "sve", "svebf16"),
)
# Of what torch names otherwise.
LINUX_NAMES = {
    "avx512_f": "avx512f",
    "neon": "asimd",
    "dot": "asimddp",
    "sve_bf16": "svebf16",
}


def cpu_name(root: Path = Path("/")) -> str:
    """The processor's marketing name where the system tells it, else its maker's numbers or its architecture.

    Args:
        root: where the system's `proc` is.
    """
    lines = _cpuinfo(root)
    if name := _field(lines, "model name"):  # platform.processor() is empty or "x86_64" on Linux
        return name
    if part := _field(lines, "CPU part"):  # arm64
        return f"{platform.machine()}, implementer {_field(lines, 'CPU implementer')}, part {part}"
    return sysctl("machdep.cpu.brand_string") or platform.processor() or platform.machine()


def instructions(root: Path = Path("/")) -> tuple[str, ...]:
    """Those instruction sets of `INSTRUCTIONS` that the CPU has, whatever environment variables forbid."""
    flags = set(cpu_flags(root))
    return tuple(name for name in INSTRUCTIONS if name in flags)


def cpu_flags(root: Path = Path("/")) -> tuple[str, ...]:
    """Everything that the CPU can do, by Linux's names; as far as torch tells on other systems."""
    lines = _cpuinfo(root)
    if told := _field(lines, "flags") or _field(lines, "Features"):  # x86, arm64
        return tuple(told.split())
    return tuple(LINUX_NAMES.get(name, name) for name, has in torch.cpu.get_capabilities().items() if has is True)


def sysctl(name: str) -> str:
    """What macOS tells of this name; empty where it tells nothing, and on other systems."""
    if sys.platform != "darwin":
        return ""
    return subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, check=False).stdout.strip()


def _cpuinfo(root: Path) -> list[str]:
    try:
        return (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _field(lines: list[str], name: str) -> str:
    """The first value of this name; empty without one."""
    found = (value.strip() for key, _, value in (line.partition(":") for line in lines) if key.strip() == name)
    return next(found, "")
