"""Whether rollouts, and the learner where weights are frozen, multiply in 8 bits: where asked or faster, while that
changes little.

The learner's gradient of adapters is off by a hundredth then, where that of a batch of completions is nearly all noise.
"""

from collections.abc import Callable

import torch

from cpu_grpo.engine.kernels.products import LEARNT, int8_available, int8_pays, storage

BOUND = 0.1  # mean |difference of log-probs| of an update, beyond which rollouts are exact; 0.02 to 0.04 is usual
CAP = 2.0  # of importance weights, where none is given
NO_BYTES = "but this CPU multiplies no bytes or has no C++ compiler"


class Rounding:
    """A run's choice.

    Attributes:
        current: whether the newest completions came from such a rollout.
        refused: whether some were too far off.
    """

    def __init__(self, rollout: str, cap: float) -> None:
        """See FastOptions.

        Raises:
            ValueError: 8 bits are asked for, and this machine has no products of them.
        """
        if rollout == "int8" and not int8_available():
            raise ValueError(f"rollout is int8, {NO_BYTES}: use auto.")
        self.rollout, self.current, self.refused = rollout, False, False
        self._cap, self._sum, self._count = cap, 0.0, 0

    def taken(self, weight: torch.Tensor, dtype: torch.dtype, rows: int) -> bool:
        """Whether the next rollout, of so many rows, rounds weights like this one for products in `dtype`."""
        self.current = _wanted(self.rollout, weight, dtype, rows) and not self.refused
        return self.current

    @property
    def cap(self) -> float:
        """Of the newest completions' importance weights; 0: none."""
        return self._cap or (CAP if self.current else 0.0)

    def see(self, difference: torch.Tensor, count: int) -> None:
        """Counts differences of log-probs, 0 where there are none, of so many tokens."""
        self._sum, self._count = self._sum + float(difference.abs().sum()), self._count + count

    def share(self, total: Callable[[float], float]) -> None:
        """Makes of what was seen in this update what all processes have seen; `total` sums a number of each."""
        self._sum, self._count = total(self._sum), int(total(self._count))

    def close(self) -> str | None:
        """Ends an update; returns what there is to say if rollouts are exact from now on."""
        mean, self._sum, self._count = self._sum / max(1, self._count), 0.0, 0
        if self.refused or not self.current or mean <= BOUND:
            return None
        self.refused = True
        off = f"{mean:.2g} in log-probs on average, more than {BOUND}"
        return f"Rollouts in 8 bits are off by {off}: from now on they are exact."


def learns_in_8_bits(learner: str, weight: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether the learner rounds frozen weights, of which this is one if any is, for products in `dtype`.

    Args:
        learner: as FastOptions has it.
    """
    return not weight.requires_grad and _wanted(learner, weight, dtype, LEARNT)


def _wanted(choice: str, weight: torch.Tensor, dtype: torch.dtype, rows: int) -> bool:
    """Whether 8 bits are: asked for, or left open and faster for so many rows."""
    return choice == "int8" or (choice == "auto" and int8_pays(dtype, storage([weight], dtype), rows))


def require_frozen(model: torch.nn.Module) -> None:
    """For a learner in 8 bits.

    Raises:
        ValueError: this machine has no products of them, or all of the model's weights learn.
    """
    if not int8_available():
        raise ValueError(f"learner is int8, {NO_BYTES}: use auto.")
    if all(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("learner is int8, but all weights learn: train adapters (peft_config), or use auto.")
