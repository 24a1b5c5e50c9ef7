"""All checks, in the order in which they are told."""

from collections.abc import Iterator

from cpu_grpo.doctor import machine, project, records
from cpu_grpo.doctor.finding import Check


def checks() -> Iterator[tuple[str, Check]]:
    """What is looked at, and what looks at it; the slowest is begun first."""
    status = project.start_status()
    try:
        yield "python", machine.system
        yield "packages", machine.packages
        yield "torch", machine.torch_imports
        yield "compiler", machine.compiler
        yield "kernels", machine.kernels
        yield "CPU", machine.instructions
        yield "cores", machine.cores
        yield "memory", machine.memory
        yield "disk", machine.disk
        yield "cache", machine.cache
        yield "git", project.git
        yield "DVC", project.dvc
        yield "params.yaml", project.params
        yield "checkpoints", project.checkpoints
        yield "MLflow", records.store
        yield "spool", records.spool
        yield "stages", lambda: project.stages(status)
    finally:
        if status and status.poll() is None:
            status.kill()
            status.wait()
