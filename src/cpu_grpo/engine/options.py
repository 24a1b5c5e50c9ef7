"""How the fast engine runs; TRL's own settings say what it computes."""

from dataclasses import dataclass

from cpu_grpo.hardware import DTYPES


@dataclass(frozen=True)
class FastOptions:
    """What `CPUGRPOTrainer` takes as `fast`.

    Raises:
        ValueError: a precision that is none, or a number out of its bounds.
    """

    precision: str = "auto"  # of matrix products: fp32, bf16, or auto: bf16 if TRL's bf16 is on and it is faster here
    micro_batch_tokens: int = 4096  # tokens whose activations exist at a time in the learner
    rows: int = 128  # completions decoded together, at most
    importance_cap: float = 0.0  # of importance weights against the rollout's rounding; 0: 2 with int8, else none
    share_weights: bool = False  # rollouts read the weights where they lie: no copy, slower from some 16 completions on
    share_prefixes: bool = True  # prompts go through the model once for all that begins with them
    skip_useless: bool = True  # completions without advantage stay out of the learner where they have no gradient
    memory_limit: int = 0  # bytes that this process may hold; 0: as many as are free
    learn_from: int = 0  # completions of a group that the learner takes, a fair share of better and worse; 0: all
    learn_better: bool = False  # it takes only those that are better than their group's mean
    rollout: str = "exact"  # weights of rollouts: exact, int8 (8 bits), or auto: 8 bits if that is faster here
    learner: str = "exact"  # products with frozen weights (LoRA's) in the learner: exact, int8 or auto, likewise

    def __post_init__(self) -> None:
        if self.precision not in ("auto", *DTYPES):
            raise ValueError(f"precision is {self.precision!r}: use auto, {' or '.join(DTYPES)}.")
        for name in ("rollout", "learner"):
            if (value := getattr(self, name)) not in ("auto", "exact", "int8"):
                raise ValueError(f"{name} is {value!r}: use auto, exact or int8.")
        if min(self.micro_batch_tokens, self.rows) < 1:
            raise ValueError("micro_batch_tokens and rows must be at least 1.")
        if min(self.importance_cap, self.learn_from, self.memory_limit) < 0:
            raise ValueError("importance_cap, learn_from and memory_limit must be at least 0.")
