"""The self-check: on the first batch, the fast path's log-probs beside those of TRL's own path."""

from dataclasses import dataclass

import torch

from cpu_grpo.engine.rollout import Completion

CHECKED = 48  # tokens of each completion that are looked at
# Mean |difference of log-probs| that is allowed; a wrong mask makes over 0.5.
TOLERANCE = {"fp32": 1e-3, "bf16": 0.1, "int8": 0.3}


@dataclass(frozen=True)
class Trial:
    """Some completions of one prompt, as a learner takes them, and what the rollout said of them."""

    ids: torch.Tensor  # (n, P + T)
    mask: torch.Tensor  # (n, P + T), 1 for real tokens
    sampled: torch.Tensor  # (n, T), the rollout's log-probs
    length: int  # T

    @property
    def real(self) -> torch.Tensor:
        """Which of the completions' tokens are no padding, (n, T)."""
        return self.mask[:, -self.length :].bool()


def trial_of(prompt_ids: list[list[int]], completions: list[Completion]) -> Trial:
    """The beginnings of the first prompt's first two completions."""
    prompt = prompt_ids[0]
    chosen = [completions[row] for row, ids in enumerate(prompt_ids) if ids == prompt][:2]
    length = min(CHECKED, max(len(completion.ids) for completion in chosen))
    kept = [completion.ids[:length] for completion in chosen]
    return Trial(
        ids=torch.tensor([prompt + ids + [0] * (length - len(ids)) for ids in kept]),
        mask=torch.tensor([[1] * (len(prompt) + len(ids)) + [0] * (length - len(ids)) for ids in kept]),
        sampled=torch.tensor([(completion.logps + [0.0] * length)[:length] for completion in chosen]),
        length=length,
    )


def disagreement(
    trial: Trial,
    learned: torch.Tensor,
    plain: torch.Tensor,
    learned_in: str,
    plain_precision: str,
    sampled_in: str | None = None,
) -> str | None:
    """How the rollout's or the learner's log-probs differ from TRL's by more than rounding explains; None: they do not.

    Args:
        learned: our learner's log-probs, (n, T).
        plain: TRL's, (n, T).
        learned_in: the precision of our learner's products: fp32, bf16 or int8.
        plain_precision: of TRL's.
        sampled_in: of the rollout's; None: the learner's.
    """
    for name, logps, ours in (("learner", learned, learned_in), ("rollout", trial.sampled, sampled_in or learned_in)):
        tolerance = max(TOLERANCE[ours], TOLERANCE[plain_precision])
        difference = float((logps - plain).abs()[trial.real].mean())
        if not difference <= tolerance:  # a NaN is no agreement either
            return (
                f"the {name}'s log-probs differ from TRL's by {difference:.3g} on average, more than {tolerance} "
                f"(ours in {ours}, TRL's in {plain_precision})"
            )
    return None
