"""What the fast path knows of TRL's settings, and the switch to TRL's own path for the rest."""

import warnings
from typing import Any

from torch import nn

from cpu_grpo.engine.decoder import UnsupportedModel, decoder
from cpu_grpo.engine.learner.batches import LOSSES


def unsupported(model: nn.Module, args: Any, auxiliary_loss: bool, processes: int) -> str | None:
    """Why the fast path cannot serve a run of this model with these settings (TRL's GRPOConfig) at all, or None.

    Args:
        processes: that learn together; each takes `per_device_train_batch_size` completions, whole groups of them.
    """
    try:
        decoder(model)
    except UnsupportedModel as error:
        return str(error)
    return _first(
        {
            "the loss type": args.loss_type not in LOSSES,
            # An entropy bonus needs differentiable entropies, and a quantile all of a batch's entropies at once.
            "an entropy bonus": args.entropy_coef or args.use_adaptive_entropy,
            "top_entropy_quantile": args.top_entropy_quantile < 1,
            "cast_lm_head_to_fp32": args.cast_lm_head_to_fp32,
            "a router's auxiliary loss": auxiliary_loss,
            "groups that are split over processes (make per_device_train_batch_size a multiple of num_generations)": (
                processes > 1 and args.per_device_train_batch_size % args.num_generations
            ),
        }
    )


def unsupported_rollout(args: Any, continuous_batching: bool) -> str | None:
    """Why rollouts with these settings go through TRL's own path, or None."""
    return _first(
        {
            "vLLM": args.use_vllm,
            "transformers' continuous batching": continuous_batching,
            "repetition_penalty": args.repetition_penalty not in (None, 1.0),
            "generation_kwargs": bool(args.generation_kwargs),
        }
    )


def unsupported_inputs(*multimodal: Any) -> str | None:
    """Why a batch goes through TRL's own path: something in it that is no text; or None."""
    return _first({"images": any(multimodal)})


def _first(reasons: dict[str, Any]) -> str | None:
    return next((f"it does not know {name}" for name, present in reasons.items() if present), None)


class Switch:
    """Between the fast path and TRL's own: says once for each reason why the fast one is not taken.

    Attributes:
        doubt: why the fast path is not taken any more, found on the way; None: it is.
    """

    def __init__(self) -> None:
        self.doubt: str | None = None
        self._told: set[str] = set()

    def fast(self, *reasons: str | None, stacklevel: int = 2) -> bool:
        """Whether the fast path is taken, where each of the reasons speaks against it; warns of the first."""
        reason = next((reason for reason in (*reasons, self.doubt) if reason), None)
        if reason and reason not in self._told:
            self._told.add(reason)
            message = f"TRL's plain path is taken instead of the fast one: {reason}."
            warnings.warn(message, stacklevel=stacklevel + 1)
        return reason is None
