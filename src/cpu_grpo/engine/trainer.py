"""CPUGRPOTrainer: trl.GRPOTrainer with its two slow seams replaced, and nothing else it can avoid."""

import time
import warnings
from collections import deque
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import torch
from trl import GRPOTrainer

from cpu_grpo.engine.decoder import UnsupportedModel, decoder
from cpu_grpo.engine.learner import Rounded, completion_logps
from cpu_grpo.engine.learner.batches import LOSSES, micro_batches, regrouped, work_of
from cpu_grpo.engine.learner.size import attended_pairs, micro_batch_bytes
from cpu_grpo.engine.rollout import Completion, Request, Sampling, generate, packed
from cpu_grpo.engine.rollout.size import rollout_bytes
from cpu_grpo.engine.schemes.lean import Lean
from cpu_grpo.engine.shape import Shape, of_decoder
from cpu_grpo.hardware import DTYPES, fastest_precision, keep_memory, release_memory
from cpu_grpo.hardware.shortage import Shortage

CHECKED = 48  # tokens of each completion that the self-check looks at
TOLERANCE = {"fp32": 1e-3, "bf16": 0.1}  # mean |difference of log-probs| that it allows; a wrong mask makes over 0.5


@dataclass(frozen=True)
class FastOptions:
    """How the fast engine runs; TRL's own settings say what it computes."""

    precision: str = "auto"  # of matrix products: fp32, bf16, or auto: bf16 if TRL's bf16 is on and it is faster here
    micro_batch_tokens: int = 4096  # tokens whose activations exist at a time in the learner
    rows: int = 128  # completions decoded together, at most
    importance_cap: float = 0.0  # truncated importance weights against the rollout's rounding; 0: none
    share_weights: bool = False  # rollouts read the weights where they lie: no copy, slower from some 16 completions on
    share_prefixes: bool = True  # prompts go through the model once for all that begins with them
    skip_useless: bool = True  # completions without advantage stay out of the learner where they have no gradient
    memory_limit: int = 0  # bytes that this process may hold; 0: as many as are free

    def __post_init__(self) -> None:
        if self.precision not in ("auto", *DTYPES):
            raise ValueError(f"precision is {self.precision!r}: use auto, {' or '.join(DTYPES)}.")
        if self.micro_batch_tokens < 1 or self.rows < 1 or self.importance_cap < 0 or self.memory_limit < 0:
            raise ValueError(
                "micro_batch_tokens and rows must be at least 1, importance_cap and memory_limit at least 0."
            )


class CPUGRPOTrainer(GRPOTrainer):
    """A drop-in for `trl.GRPOTrainer` (TRL 1.16) on CPUs: same arguments, configs, rewards, callbacks and losses.

    Overridden: `_generate_single_turn` (our rollout engine), `_get_per_token_logps_and_entropies` (our learner),
    `_compute_loss` (micro-batches by tokens; completions without advantage cost nothing) and `_prepare_inputs` (groups
    stay together). Where memory runs short, it waits and then takes smaller steps, with the same result; MemoryError is
    raised if not even the smallest has room. What the fast path does not know goes through TRL's own, with one warning
    that says why; so does everything if its results disagree with TRL's on the first batch.
    """

    def __init__(self, *args: Any, fast: FastOptions | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        keep_memory(large=not self.args.gradient_checkpointing)
        self.fast = fast or FastOptions()
        self.shortage = Shortage(self.fast.memory_limit)
        self._tokens, self._rows = (
            self.fast.micro_batch_tokens,
            self.fast.rows,
        )  # at a time; fewer once memory was short
        self._rounded: Rounded | None = None  # the policy's weights while a loss is computed
        self._part: dict[str, Any] | None = None  # the micro-batch that a loss is computed of
        self._doubt: str | None = None  # why the fast path is not taken any more
        self._checked = False
        self._told: set[str] = set()

    @cached_property
    def precision(self) -> str:
        """The precision of the fast path's matrix products."""
        if self.fast.precision != "auto":
            return self.fast.precision
        return fastest_precision() if self.args.bf16 else "fp32"

    @cached_property
    def _sizes(self) -> Shape:
        """The model's."""
        return of_decoder(decoder(self.accelerator.unwrap_model(self.model)))

    @property
    def _plain_precision(self) -> str:
        """What TRL's own path computes in: bf16 also where this CPU is slower with it and we are not."""
        low = self.args.bf16 or self.args.fp16 or next(self.model.parameters()).dtype != torch.float32
        return "bf16" if low else "fp32"

    @cached_property
    def _unsupported(self) -> str | None:
        """Why the fast path cannot serve this run at all, or None."""
        try:
            decoder(self.accelerator.unwrap_model(self.model))
        except UnsupportedModel as error:
            return str(error)
        args = self.args
        reasons = {
            "the loss type": args.loss_type not in LOSSES,
            # An entropy bonus needs differentiable entropies, and a quantile all of a batch's entropies at once.
            "an entropy bonus": args.entropy_coef or args.use_adaptive_entropy,
            "top_entropy_quantile": args.top_entropy_quantile < 1,
            "cast_lm_head_to_fp32": args.cast_lm_head_to_fp32,
            "a router's auxiliary loss": self.aux_loss_enabled,
            "more than one process": self.accelerator.num_processes > 1,
        }
        return next((f"it does not know {name}" for name, present in reasons.items() if present), None)

    @cached_property
    def _unsupported_rollout(self) -> str | None:
        """Why rollouts go through TRL's own path, or None."""
        args = self.args
        reasons = {
            "vLLM": args.use_vllm,
            "transformers' continuous batching": self.use_transformers_continuous_batching,
            "repetition_penalty": args.repetition_penalty not in (None, 1.0),
            "generation_kwargs": bool(args.generation_kwargs),
        }
        return next((f"it does not know {name}" for name, present in reasons.items() if present), None)

    def _takes(self, *reasons: str | None) -> bool:
        """Whether the fast path is taken; if not, says why, once for each reason."""
        reason = next((reason for reason in (self._unsupported, *reasons, self._doubt) if reason), None)
        if reason and reason not in self._told:
            self._told.add(reason)
            warnings.warn(f"TRL's plain path is taken instead of the fast one: {reason}.", stacklevel=3)
        return reason is None

    def _generate_single_turn(
        self,
        prompt_ids: list[list[int]],
        images: list | None,
        multimodal_fields: dict[str, Any],
        num_generations: int,
        has_tool_images: bool = False,
    ) -> tuple[list[list[int]], list[list[float]] | None]:
        start = time.perf_counter()
        self._release()
        inputs = (prompt_ids, images, multimodal_fields, num_generations, has_tool_images)
        if self._takes(self._unsupported_rollout, "it does not know images" if images or multimodal_fields else None):
            completions = self._rollout(prompt_ids)
            if not self._checked:
                self._check(prompt_ids, completions)
        if self._takes(self._unsupported_rollout, "it does not know images" if images or multimodal_fields else None):
            ids = [completion.ids for completion in completions]
            logps = [completion.logps for completion in completions]
            self._log("rollout/entropy", -sum(map(sum, logps)) / max(1, sum(map(len, logps))))
        else:
            ids, logps = super()._generate_single_turn(*inputs)
        seconds = time.perf_counter() - start
        self._log("rollout/tokens_per_second", sum(map(len, ids)) / seconds)
        self._log("rollout/seconds", seconds)
        return ids, logps

    def _rollout(self, prompt_ids: list[list[int]]) -> list[Completion]:
        """One completion for each prompt, equal prompts being one group."""
        rows: dict[tuple[int, ...], list[int]] = {}
        for row, ids in enumerate(prompt_ids):
            rows.setdefault(tuple(ids), []).append(row)
        model = decoder(self.accelerator.unwrap_model(self.model))
        self._fit_rows(prompt_ids, max(map(len, rows.values())))
        # Without sharing each completion is a request of its own.
        sizes = [[len(own)] if self.fast.share_prefixes else [1] * len(own) for own in rows.values()]
        requests = [
            Request(list(prompt), size, sum(own[:place]))
            for prompt, own in zip(rows, sizes, strict=True)
            for place, size in enumerate(own)
        ]
        found = generate(
            packed(model, self.precision, min(self._rows, len(prompt_ids)), self.fast.share_weights),
            requests,
            Sampling(self.temperature, self.args.top_k or 0, self.args.top_p, self.args.min_p or 0.0),
            limit=self.max_completion_length,
            ends=set(self.eos_token_ids),
            seed=int(torch.randint(2**31 - 1, ())),
            rows=self._rows,
            share=self.fast.share_prefixes,
        )
        completions: list[Completion] = [Completion()] * len(prompt_ids)
        in_order = (row for members in rows.values() for row in members)
        for row, completion in zip(in_order, chain.from_iterable(found), strict=True):
            completions[row] = completion
        return completions

    def _fit_rows(self, prompt_ids: list[list[int]], group: int) -> None:
        """Halves the rows of rollouts until there is memory for them; a group stays together.

        Raises:
            MemoryError: there is none for one group.
        """
        held = next(self.model.parameters()).element_size()

        def needed(rows: int) -> int:
            prompts = -(-rows // group)
            longest = max(map(len, prompt_ids))
            compute = DTYPES[self.precision].itemsize
            limit, shared = self.max_completion_length, self.fast.share_weights
            return rollout_bytes(self._sizes, rows, prompts, longest, limit, compute, held, shared)

        rows = max(group, min(self._rows, len(prompt_ids)))
        while rows > group and not self.shortage.room_for(needed(rows)):
            self._rows = rows = max(group, rows // 2)
        self.shortage.require(needed(rows))

    def _prepare_inputs(self, generation_batch: dict[str, Any]) -> dict[str, Any]:
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        batches = self._buffered_inputs
        if self.model.training and batches is not before and len(batches) > 1 and self._takes():
            # Only within an update: which completions an update learns from stays as TRL drew it.
            window = self.args.gradient_accumulation_steps
            windows = [batches[first : first + window] for first in range(0, len(batches), window)]
            self._buffered_inputs = [batch for some in windows for batch in regrouped(some)]
            inputs = self._buffered_inputs[self._step % self.args.steps_per_generation]
        return inputs

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        if not self._takes():
            return super()._compute_loss(model, inputs)
        self._rounded = self._round(model, inputs["completion_mask"])
        try:
            return self._loss_in_parts(model, inputs)
        finally:
            self._rounded = self._part = None

    def _loss_in_parts(self, model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        """The batch's loss, having taken the gradient of all of it but the last part, which the caller takes."""
        # An evaluation reports its loss over all completions; in training those without a gradient cost nothing.
        training = torch.is_grad_enabled()
        skip = training and self.beta == 0 and self.fast.skip_useless
        waiting = deque(micro_batches(inputs, self.loss_type, self._tokens, skip))
        logged = {key: len(values) for key, values in self._metrics[self._mode].items()}
        total, sizes, lean = None, [], self._lean
        if lean:
            lean.within_backward = False
        while waiting:
            if total is not None and training:
                self.accelerator.backward(total[1])
            self._release()
            self._part, weight = self._next_part(waiting)
            loss = super()._compute_loss(model, self._part) * weight
            self._release()
            total = (loss.detach() if total is None else total[0] + loss.detach(), loss)
            sizes.append(self._part["prompt_ids"].size(0))
        self._merge_metrics(logged, sizes)
        if lean and training:
            lean.within_backward = self.accelerator.sync_gradients
        value, last = total
        return last + (value - last.detach())

    def _next_part(self, waiting: deque[tuple[dict[str, Any], float]]) -> tuple[dict[str, Any], float]:
        """Takes the first micro-batch and its weight; where memory is short for it, a smaller one.

        Raises:
            MemoryError: there is none for a single completion.
        """
        while True:
            part, weight = waiting.popleft()
            needed = self._needed(part)
            if len(part["prompt_ids"]) == 1:
                self.shortage.require(needed)
                return part, weight
            if self.shortage.room_for(needed):
                return part, weight
            self._tokens = max(1, min(self._tokens, work_of(part)[1]) // 2)
            halves = micro_batches(part, self.loss_type, self._tokens, skip=False)
            waiting.extendleft(reversed([(half, weight * share) for half, share in halves]))

    def _needed(self, part: dict[str, Any]) -> int:
        """Bytes that a micro-batch takes, about, and what will be there once it has its gradients."""
        completions, length = part["completion_mask"].shape
        prompts, tokens = work_of(part)
        longest, scored = int(part["prompt_mask"].sum(dim=1).max()), int(part["completion_mask"].sum())
        pairs = attended_pairs(longest, completions, length, prompts)
        compute = DTYPES[self.precision].itemsize
        kept = micro_batch_bytes(self._sizes, tokens, scored, pairs, compute, self.args.gradient_checkpointing)
        return kept + (self._coming() if torch.is_grad_enabled() else 0)

    def _coming(self) -> int:
        """Bytes of gradients and optimizer state that the first updates add to what is there."""
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        sizes = [parameter.numel() * parameter.element_size() for parameter in trained]
        working = 2 * max(sizes)  # the largest gradient, before it joins the others
        if self._lean:
            return working
        missing = sum(size for parameter, size in zip(trained, sizes, strict=True) if parameter.grad is None)
        moments = 0 if self.optimizer.state else 2 * sum(sizes)
        return working + missing + moments

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
        pictures = any(value is not None for value in multimodal.values())
        if not self._takes("it does not know images" if pictures else None):
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
        logps, entropies = completion_logps(
            self._rounded or self._round(model, attention_mask[:, -logits_to_keep:]),
            input_ids,
            attention_mask,
            logits_to_keep,
            self.temperature,
            recompute=self.args.gradient_checkpointing,
            share=self.fast.share_prefixes,
        )
        if self._part is not None:
            self._compare_with_rollout(self._part, logps.detach())
        return logps, entropies if compute_entropy else None, None

    @property
    def _lean(self) -> Lean | None:
        """The optimizer, if it can update within backward."""
        inner = getattr(self.optimizer, "optimizer", self.optimizer)  # accelerate wraps it
        return inner if isinstance(inner, Lean) else None

    def _release(self) -> None:
        """Between the phases of an update, where memory is to be saved: what one frees, the next can use in part."""
        if self.args.gradient_checkpointing:
            release_memory()

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: torch.Tensor | float | None = None) -> Any:
        if (lean := self._lean) and lean.within_backward:  # its gradients are used and gone
            return lean.gradient_norm()
        return super()._get_grad_norm(model, grad_norm)

    def _round(self, model: torch.nn.Module, mask: torch.Tensor) -> Rounded:
        """The policy's weights for the completions of a mask (B, T)."""
        return Rounded.of(decoder(self.accelerator.unwrap_model(model)), DTYPES[self.precision], int(mask.sum()))

    def _compare_with_rollout(self, part: dict[str, Any], logps: torch.Tensor) -> None:
        """Logs how far the rollout's log-probs were off, and weighs the advantages by it where asked."""
        sampled = part.get("sampling_per_token_logps")
        if sampled is None:
            return
        policy = part.get("old_per_token_logps", logps)  # (B, T); of the policy that the rollout came from
        real = part["completion_mask"].bool() & sampled.isfinite()
        difference = (policy - sampled).where(real, 0)
        self._log("rollout/logp_difference_mean", float(difference.abs().sum() / real.sum().clamp(min=1)))
        self._log("rollout/logp_difference_max", float(difference.abs().max()))
        if self.fast.importance_cap:
            # TRL reads the advantages after the log-probs, and takes one for each token as well as for each completion.
            weights = difference.exp().clamp(max=self.fast.importance_cap)
            part["advantages"] = part["advantages"].reshape(len(weights), -1) * weights

    def _check(self, prompt_ids: list[list[int]], completions: list[Completion]) -> None:
        """Compares rollout and learner with TRL's own path on the first prompt's first two completions."""
        self._checked = True
        rows = [row for row, ids in enumerate(prompt_ids) if ids == prompt_ids[0]][:2]
        length = min(CHECKED, max(len(completions[row].ids) for row in rows))
        kept = [completions[row].ids[:length] for row in rows]
        prompt = prompt_ids[0]
        ids = torch.tensor([prompt + c + [0] * (length - len(c)) for c in kept])  # (2, P + T)
        mask = torch.tensor([[1] * (len(prompt) + len(c)) + [0] * (length - len(c)) for c in kept])
        real = mask[:, len(prompt) :].bool()
        with torch.no_grad():
            plain, _, _ = super()._get_per_token_logps_and_entropies(self.model, ids, mask, length)
            learned, _ = completion_logps(self._round(self.model, real), ids, mask, length, self.temperature)
        sampled = torch.tensor([(completions[row].logps + [0.0] * length)[:length] for row in rows])
        tolerance = TOLERANCE["fp32" if self.precision == self._plain_precision == "fp32" else "bf16"]
        for name, logps in (("rollout", sampled), ("learner", learned)):
            difference = float((logps - plain).abs()[real].mean())
            if not difference <= tolerance:
                self._doubt = (
                    f"the {name}'s log-probs differ from TRL's by {difference:.3g} on average, more than {tolerance} "
                    f"(ours in {self.precision}, TRL's in {self._plain_precision})"
                )

    @property
    def _mode(self) -> str:
        return "train" if self.model.training else "eval"

    def _log(self, name: str, value: float) -> None:
        self._metrics[self._mode][name].append(value)

    def _merge_metrics(self, before: dict[str, int], sizes: list[int]) -> None:
        """Makes one entry of those that the parts of one batch have logged, weighted by their completions."""
        for key, values in self._metrics[self._mode].items():
            new = values[before.get(key, 0) :]
            if len(new) == len(sizes) > 1:
                combine = max if key.endswith("_max") else min if key.endswith("_min") else None
                merged = combine(new) if combine else sum(v * s for v, s in zip(new, sizes, strict=True)) / sum(sizes)
                values[before.get(key, 0) :] = [merged]
