"""Python and its packages, compiler and kernels, CPU, memory and disk."""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
import tomllib
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import Requirement

from cpu_grpo.config.compose import CONF, PARAMS, load_params, one_variant
from cpu_grpo.doctor.finding import INSTALL, Finding, fail, ok, told, warn
from cpu_grpo.errors import UserError
from cpu_grpo.files import cache_directory
from cpu_grpo.units import gigabytes
from cpu_grpo.workspace.layout import CACHE

PROJECT = CONF.parent / "pyproject.toml"
LITTLE_MEMORY, LITTLE_DISK = 10**9, 10**9  # bytes that no run gets by with
PLAN = "python -m cpu_grpo.plan --memory-only"
COMPILERS = {"darwin": "xcode-select --install", "win32": "winget install BrechtSanders.WinLibs.POSIX.UCRT"}
APT = "sudo apt-get install g++"

# What of a CPU decides its speed: the first that it has counts.
SPEED = {
    "amx_bf16": "bf16 on matrix tiles is many times as fast as fp32, so runs compute in bf16",
    "avx512_bf16": "bf16 is about twice as fast as fp32, so runs compute in bf16",
    "avx512f": "runs compute in fp32, with the widest vectors",
    "avx2": "runs compute in fp32, with vectors half as wide as AVX-512's",
    "svebf16": "bf16 is faster than fp32, so runs compute in bf16",
    "bf16": "bf16 is faster than fp32, so runs compute in bf16",
    "asimd": "runs compute in fp32",
}
BYTES = ("amx_int8", "avx512_vnni", "avx_vnni", "i8mm", "asimddp")  # that multiply 8 bits


def packages() -> Finding:
    """Whether what pyproject.toml names is installed, in the versions that it names."""
    named = map(Requirement, tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["dependencies"])
    wrong, count = [], 0
    for requirement in named:
        count += 1
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
        else:
            if not requirement.specifier.contains(found, prereleases=True):
                wrong.append(f"{requirement.name} is {found} and not {requirement.specifier}")
    if wrong:
        return fail(", ".join(wrong), INSTALL)
    return ok(f"all {count} that the project names are installed, in the versions that it names")


def torch_imports() -> Finding:
    """Whether torch can be imported at all."""
    import torch

    return ok(f"{torch.__version__} can be imported")


def compiler() -> Finding:
    """Whether there is one for C++."""
    from cpu_grpo.engine.kernels.toolchain import compiler_here

    found = compiler_here()
    if found is None:
        return warn("there is none, so torch computes what kernels would, a few times slower", install_compiler())
    said = subprocess.run([found, "--version"], capture_output=True, text=True, check=False, timeout=20).stdout
    return ok(next(iter(said.splitlines()), found))


def install_compiler() -> str:
    """The command that brings one."""
    return COMPILERS.get(sys.platform, APT)


def kernels() -> Finding:
    """Whether they load; they are compiled for it, where they have not been."""
    if os.environ.get("CPU_GRPO_KERNELS") == "0":
        return warn("CPU_GRPO_KERNELS=0 turns them off, so torch computes the same, slower", "unset CPU_GRPO_KERNELS")
    from cpu_grpo.engine.kernels import build

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = build._all()
    if not found:
        reason = f" ({told(said[-1].message)})" if said and isinstance(said[-1].message, Warning) else ""
        return warn(f"they do not load{reason}", install_compiler())
    return ok(f"they load, for {len(found)} pairs of number formats")


def instructions() -> Finding:
    """What the CPU's mean for speed."""
    from cpu_grpo.hardware import cpu_name
    from cpu_grpo.hardware import instructions as sets

    has = sets()
    speed = next((phrase for name, phrase in SPEED.items() if name in has), "")
    if not speed:
        return warn(f"{cpu_name()} has no AVX2, so all is slow", PLAN.replace(" --memory-only", ""))
    in_bytes = "; 8 bits may be faster in rollouts (engine.rollout=auto)" * any(name in has for name in BYTES)
    return ok(f"{cpu_name()} has {', '.join(has)}: {speed}{in_bytes}")


def cores() -> Finding:
    """Of which a run may use how many."""
    from cpu_grpo.hardware import count_cores

    found = count_cores()
    quota = f", control groups allow {found.quota:g} CPUs' worth of time" if found.quota else ""
    said = f"{found.usable} can be kept busy ({found.physical} cores by affinity{quota})"
    if found.quota and found.quota < found.physical:
        return warn(f"{said}, so some stay idle", f"docker update --cpus {found.physical} CONTAINER")
    if found.usable < 2:
        return warn(f"{said}, so a run takes long", PLAN.replace(" --memory-only", ""))
    return ok(said)


def memory() -> Finding:
    """Whether the pipeline's variants fit into what is free."""
    from cpu_grpo.plan.choice import budget

    free = budget("").bytes
    if free < LITTLE_MEMORY:
        return fail(f"{gigabytes(free)} are free, which is too little for any model", "ps aux --sort=-rss | head")
    try:
        needed = needs()
    except UserError as error:
        return warn(str(error).rstrip("."), PLAN)
    most = max(needed, default=None)
    planned = f"; the pipeline's largest training takes {gigabytes(most[0])}" if most else ""
    return ok(f"{gigabytes(free)} are free{planned}")


def disk() -> Finding:
    """Whether checkout and cache have room for what the pipeline makes."""
    try:
        needed = needs()
    except UserError:  # told of memory
        needed = []
    wanted = sum(model for _, model, _ in needed) + max((checkpoints for *_, checkpoints in needed), default=0)
    rooms = {"the checkout": shutil.disk_usage(Path()).free}
    if (cache := existing(cache_directory())) is not None:
        rooms["the user's cache"] = shutil.disk_usage(cache).free
    said = ", ".join(f"{gigabytes(free)} are free for {where}" for where, free in rooms.items())
    if min(rooms.values()) < LITTLE_DISK:
        return fail(f"{said}, which is too little", "dvc gc --workspace")
    if rooms["the checkout"] < wanted:
        return warn(f"{said}; the pipeline's trainings take up to {gigabytes(wanted)}", "dvc gc --workspace")
    return ok(said + (f"; the pipeline's trainings take up to {gigabytes(wanted)}" if wanted else ""))


def needs() -> list[tuple[int, int, int]]:
    """Bytes that each of the pipeline's variants takes: memory, disk for its model, and for its checkpoints.

    Empty where nothing says how large the model is.

    Raises:
        UserError: a variant does not fit into memory, or the configuration is wrong.
    """
    from cpu_grpo.hardware import Setup
    from cpu_grpo.plan.choice import budget, settle
    from cpu_grpo.plan.foresight import known_of
    from cpu_grpo.plan.saving import saving

    if not PARAMS.is_file():
        return []
    pipeline, found = load_params(PARAMS), []
    if pipeline.model.source == "hub":  # whose sizes would have to be fetched
        return []
    for name in pipeline.variants:
        config = one_variant(pipeline, name)
        if known := known_of(config, Setup("fp32", 1, 0.0, 0.0, ())):
            option = settle(config, known, budget(config.memory.limit))
            kept = saving(known.shape, option.scheme, option.config)
            found.append((option.peak.total, kept.model, kept.with_checkpoints - kept.model))
    return found


def existing(directory: Path) -> Path | None:
    """The directory, or the nearest above it that is there."""
    return next((path for path in (directory, *directory.parents) if path.is_dir()), None)


def cache() -> Finding:
    """Whether the cache directories can be written: the user's, and the checkout's."""
    try:
        own = cache_directory()
    except RuntimeError:
        return warn("there is no home directory, so nothing that was measured is kept", "export HOME=$PWD/cache/home")
    for directory, fix in ((own, "export XDG_CACHE_HOME=$HOME/.cache"), (CACHE, f"chmod u+rwx {CACHE}")):
        try:
            directory.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=directory):
                pass
        except OSError as error:
            said = f"{directory} cannot be written ({error.strerror})"
            if directory == own:
                return warn(f"{said}, so each run measures and compiles anew", fix)
            return fail(said, fix)
    return ok(f"{own} and {CACHE} can be written")


def system() -> Finding:
    """Which Python this is."""
    return ok(f"{platform.python_version()} on {platform.system()} {platform.machine()}")
