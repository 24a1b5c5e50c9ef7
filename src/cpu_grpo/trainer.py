"""CPUGRPOTrainer: trl.GRPOTrainer with its two slow seams replaced or measured, and nothing else it can avoid."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from trl import GRPOTrainer

from cpu_grpo.learner import completion_logps, shares_prompts


class CPUGRPOTrainer(GRPOTrainer):
    """A drop-in for `trl.GRPOTrainer` (TRL 1.16) on CPUs: same arguments, configs, rewards, callbacks and losses.

    Overridden: `_generate_single_turn` (timed, so that rollout throughput is logged) and
    `_get_per_token_logps_and_entropies` (each distinct prompt forwarded once; only completions projected). Text models
    with plain full attention take the fast way; others, adapters, gradient checkpointing and entropy bonuses take
    TRL's own.
    """

    def _generate_single_turn(
        self,
        prompt_ids: list[list[int]],
        images: list | None,
        multimodal_fields: dict[str, Any],
        num_generations: int,
        has_tool_images: bool = False,
    ) -> tuple[list[list[int]], list[list[float]] | None]:
        start = time.perf_counter()
        with weights_in(torch.bfloat16 if self.args.bf16 else None, self.model):
            completion_ids, logprobs = super()._generate_single_turn(
                prompt_ids, images, multimodal_fields, num_generations, has_tool_images
            )
        seconds = time.perf_counter() - start
        mode = "train" if self.model.training else "eval"
        tokens = sum(len(ids) for ids in completion_ids)
        self._metrics[mode]["rollout/tokens_per_second"].append(tokens / seconds)
        self._metrics[mode]["rollout/seconds"].append(seconds)
        return completion_ids, logprobs

    def _get_per_token_logps_and_entropies(
        self,
        model: torch.nn.Module,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **multimodal: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        if not self._fast_way(compute_aux_loss, multimodal):
            return super()._get_per_token_logps_and_entropies(
                model,
                input_ids,
                attention_mask,
                logits_to_keep,
                batch_size,
                compute_entropy,
                compute_aux_loss,
                **multimodal,
            )
        plain = self.accelerator.unwrap_model(model)
        logps, entropies = completion_logps(
            plain, input_ids, attention_mask, logits_to_keep, self.temperature, self.accelerator.autocast()
        )
        return logps, entropies if compute_entropy else None, None

    def _fast_way(self, compute_aux_loss: bool, multimodal: dict[str, Any]) -> bool:
        return (
            not compute_aux_loss
            and not self.args.gradient_checkpointing
            and not self.args.entropy_coef  # an entropy bonus needs differentiable entropies, which ours are not
            and not self.args.use_adaptive_entropy
            and not self.args.cast_lm_head_to_fp32
            and not any(value is not None for value in multimodal.values())
            and not hasattr(self.model, "peft_config")
            and shares_prompts(self.model)
        )


@contextmanager
def weights_in(dtype: torch.dtype | None, model: torch.nn.Module) -> Iterator[None]:
    """Lets `model` hold its floating-point weights in `dtype` for the block; None leaves them alone.

    Autocast rounds the weights anew at every decoding step, which reads and writes the whole model each time; this does
    it once a rollout. The original tensors come back untouched, so the optimizer's master weights lose nothing.
    """
    originals = [(p, p.data) for p in model.parameters() if dtype and p.is_floating_point() and p.dtype != dtype]
    try:
        for parameter, data in originals:
            parameter.data = data.to(dtype)
        yield
    finally:
        for parameter, data in originals:
            parameter.data = data
