"""GRPO fine-tuning of small language models on ordinary CPUs."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cpu_grpo.engine.options import FastOptions
    from cpu_grpo.engine.schemes.lean import Lean
    from cpu_grpo.engine.trainer import CPUGRPOTrainer

__all__ = ["CPUGRPOTrainer", "FastOptions", "Lean"]


def __getattr__(name: str) -> Any:
    # The trainer pulls in torch and TRL (seconds); config-only commands import this package without paying for them.
    if name == "CPUGRPOTrainer":
        from cpu_grpo.engine.trainer import CPUGRPOTrainer

        return CPUGRPOTrainer
    if name == "FastOptions":
        from cpu_grpo.engine.options import FastOptions

        return FastOptions
    if name == "Lean":
        from cpu_grpo.engine.schemes.lean import Lean

        return Lean
    raise AttributeError(f"module 'cpu_grpo' has no attribute {name!r}")
