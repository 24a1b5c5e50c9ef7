"""GRPO fine-tuning of small language models on ordinary CPUs."""


def __getattr__(name: str):
    # The trainer pulls in torch and TRL (seconds); config-only commands import this package without paying for them.
    if name == "CPUGRPOTrainer":
        from cpu_grpo.engine.trainer import CPUGRPOTrainer

        return CPUGRPOTrainer
    raise AttributeError(f"module 'cpu_grpo' has no attribute {name!r}")


__all__ = ["CPUGRPOTrainer"]
