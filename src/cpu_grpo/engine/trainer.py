"""CPUGRPOTrainer: trl.GRPOTrainer with its two slow seams replaced, and nothing else it can avoid."""

import shutil
import time
import warnings
from collections import deque
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from trl import GRPOTrainer

from cpu_grpo.engine.checkpoint import (
    Interrupted,
    RandomStates,
    damage,
    exact_file,
    exact_state,
    newest_whole,
    prune,
    random_states,
    restore,
    seal,
    set_random_states,
)
from cpu_grpo.engine.decoder import Decoder, decoder
from cpu_grpo.engine.learner import Rounded, completion_logps
from cpu_grpo.engine.learner.batches import Inputs, micro_batches, regrouped
from cpu_grpo.engine.metrics import counts, merge_parts, merge_ranks, rollout_difference, weigh_advantages
from cpu_grpo.engine.options import FastOptions
from cpu_grpo.engine.ranks import agreed, apart, mean_gradients, rank, together, total
from cpu_grpo.engine.rollout import (
    Completion,
    NoDistribution,
    Sampling,
    generate,
    in_order,
    members_of,
    packed,
    requests_of,
)
from cpu_grpo.engine.rounding import Rounding, learns_in_8_bits, require_frozen
from cpu_grpo.engine.schemes.lean import Lean
from cpu_grpo.engine.selection import better, fair_share
from cpu_grpo.engine.selfcheck import disagreement, trial_of
from cpu_grpo.engine.shape import Shape, of_decoder
from cpu_grpo.engine.soundness import Diverged, Soundness
from cpu_grpo.engine.step_sizes import StepSizes, bytes_of_part, bytes_of_rollout, bytes_to_come
from cpu_grpo.engine.support import Switch, unsupported, unsupported_inputs, unsupported_rollout
from cpu_grpo.hardware import DTYPES, fastest_precision, keep_memory, release_memory
from cpu_grpo.hardware.shortage import Shortage


class CPUGRPOTrainer(GRPOTrainer):
    """A drop-in for `trl.GRPOTrainer` (TRL 1.16) on CPUs: same arguments, configs, rewards, callbacks and losses.

    Overridden: `_generate_single_turn` (our rollout engine), `_get_per_token_logps_and_entropies` (our learner),
    `_generate_and_score_completions` (fewer completions for the learner, where asked),
    `_compute_loss` (micro-batches by tokens; completions without advantage cost nothing), `_prepare_inputs` (groups
    stay together) and `_get_grad_norm` (of gradients that are gone, or that must not be used). Where memory runs short,
    it waits and then takes smaller steps, with the same result; MemoryError is raised if not even the smallest has
    room. What the fast path does not know goes through TRL's own, with one warning that says why; so does everything if
    its results disagree with TRL's on the first batch. An update whose loss or gradient is not finite is skipped with a
    warning, its batch kept in `bad_batches`; three in a row raise Diverged.

    A run that goes on from a checkpoint (`train(resume_from_checkpoint=...)`) ends as one that was never interrupted,
    to the last bit, on the same machine with the same threads: checkpoints hold what transformers' leave out, and are
    sealed with checksums; those that are damaged are passed over.
    """

    _buffered_inputs: list[Inputs] | None  # TRL's: the micro-batches that a rollout's completions are learnt in

    def __init__(self, *args: Any, fast: FastOptions | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        keep_memory(large=self._roomy)
        self.fast = fast or FastOptions()
        if self.fast.learner == "int8":
            require_frozen(self.model)
        self.shortage = Shortage(self.fast.memory_limit)
        self.step_sizes = StepSizes(self.fast.rows, self.fast.micro_batch_tokens)
        self._switch = Switch()
        self._checked = False  # whether the first batch has been compared with TRL's path
        self._rounded: Rounded | None = None  # the policy's weights while a loss is computed
        self._part: Inputs | None = None  # the micro-batch that a loss is computed of
        self.rounding = Rounding(self.fast.rollout, self.fast.importance_cap)
        self.numbers = Soundness()
        own = f"-{rank()}" if rank() else ""
        self.bad_batches = Path(self.args.output_dir) / f"bad_batches{own}"  # where those of skipped updates are kept
        self.stop_asked: Callable[[], bool] = lambda: False  # asked between micro-batches; training then ends there
        self.after_update: Callable[[], None] = lambda: None  # called once an update has been logged
        self.add_to_checkpoint: Callable[[Path], None] = lambda directory: None  # puts more files into one
        self.checkpoint_seconds = 0.0  # that the last checkpoint took
        self._closed = 0  # the update that was last logged
        self._boundary: tuple[dict[str, Any], RandomStates] | None = None  # as the last update left things

    # ---- TRL's methods ---------------------------------------------------------------------------------------------

    def _generate_single_turn(
        self,
        prompt_ids: list[list[int]],
        images: list[Any] | None,
        multimodal_fields: dict[str, Any],
        num_generations: int,
        has_tool_images: bool = False,
    ) -> tuple[list[list[int]], list[list[float]] | None]:
        start = time.perf_counter()
        self._release()
        reasons = (self._unsupported_rollout, unsupported_inputs(images, multimodal_fields))
        logps: list[list[float]] | None
        if self._fast(*reasons):
            completions = self._rollout(prompt_ids)
            if not self._checked:
                self._check(prompt_ids, completions)
        if self._fast(*reasons):
            ids = [completion.ids for completion in completions]
            logps = [completion.logps for completion in completions]
            self._log("rollout/entropy", -sum(map(sum, logps)) / max(1, sum(map(len, logps))))
        else:
            inputs = (prompt_ids, images, multimodal_fields, num_generations, has_tool_images)
            ids, logps = super()._generate_single_turn(*inputs)
        seconds = time.perf_counter() - start
        self._log("rollout/tokens_per_second", total(sum(map(len, ids)) / seconds))
        self._log("rollout/seconds", seconds)
        return ids, logps

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        output = super()._generate_and_score_completions(inputs)
        if self.model.training and self.fast.learn_better:
            output["advantages"] = better(output["advantages"])
        if self.model.training and 0 < self.fast.learn_from < self.num_generations:
            output["advantages"] = fair_share(output["advantages"], self.num_generations, self.fast.learn_from)
        return output

    def _prepare_inputs(self, generation_batch: dict[str, Any]) -> dict[str, Any]:
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        batches = self._buffered_inputs
        if self.model.training and batches and batches is not before and len(batches) > 1 and self._fast():
            # Only within an update: which completions an update learns from stays as TRL drew it.
            window = self.args.gradient_accumulation_steps
            windows = [batches[first : first + window] for first in range(0, len(batches), window)]
            self._buffered_inputs = [batch for some in windows for batch in regrouped(some)]
            inputs = self._buffered_inputs[self._step % self.args.steps_per_generation]
        return inputs

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        if together() and self.accelerator.sync_gradients and self._fast():
            mean_gradients(self._trained, sound=not self.numbers.reason)
        return loss

    def _compute_loss(self, model: torch.nn.Module, inputs: Inputs) -> torch.Tensor:
        if not self._fast():
            return super()._compute_loss(model, inputs)
        self._rounded = self._round(inputs["completion_mask"])
        try:
            return self._loss_in_parts(model, inputs)
        finally:
            self._rounded = self._part = None

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
        if not self._fast(unsupported_inputs(*(value is not None for value in multimodal.values()))):
            wanted = (logits_to_keep, batch_size, compute_entropy, compute_aux_loss)
            return super()._get_per_token_logps_and_entropies(model, input_ids, attention_mask, *wanted, **multimodal)
        logps, entropies = completion_logps(
            self._rounded or self._round(attention_mask[:, -logits_to_keep:], model),
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

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: torch.Tensor | float | None = None) -> Any:
        if (lean := self._lean) and lean.within_backward:  # its gradients are used and gone
            norm: Any = lean.gradient_norm()
        else:
            norm = super()._get_grad_norm(model, grad_norm)
        if not self.numbers.see("gradient", norm):
            for parameter in model.parameters():  # the optimizer passes over those that have none
                parameter.grad = None
        self._log("update/skipped", float(bool(self.numbers.reason)))
        self.rounding.share(total)
        for told in (self.numbers.close(self.state.global_step + 1, self.bad_batches), self.rounding.close()):
            if told:
                warnings.warn(told, stacklevel=2)
        return norm

    # ---- checkpoints -----------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As TRL's.

        Raises:
            ValueError: the checkpoint that was named is damaged, or none of those in `output_dir` is whole.
        """
        chosen = resume_from_checkpoint
        if chosen is True:
            found, passed_over = newest_whole(Path(self.args.output_dir))
            for sentence in passed_over:
                warnings.warn(sentence, stacklevel=2)
            if found is None:
                raise ValueError(f"There is no whole checkpoint in {self.args.output_dir}: start without one.")
            chosen = str(found)
        elif chosen and (reason := damage(Path(chosen))):
            raise ValueError(f"The checkpoint {chosen} {reason}: choose another.")
        return super().train(chosen, *args, **kwargs)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Nothing where a run goes on from its very end: transformers would make one more update."""
        if self.control.should_training_stop or self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        super()._maybe_log_save_evaluate(*args, **kwargs)
        self._close_update()

    def _close_update(self) -> None:
        """Once an update has been logged, and before a checkpoint of it is made."""
        if self._closed != self.state.global_step:
            self._closed = self.state.global_step
            self._boundary = exact_state(self), random_states()
            self.after_update()

    def save_last_update(self) -> Path | None:
        """A checkpoint of how things were after the last whole update; None before the first.

        For use once `train` has raised `Interrupted`: up to then a started update has changed no weights.
        """
        if self._boundary is None or together():  # a rank that waits for another cannot be asked to stop
            return None
        state, randoms = self._boundary
        set_random_states(randoms)
        return self._checkpoint(state, None)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        self._close_update()
        try:
            self._checkpoint(exact_state(self), trial)
        except (OSError, RuntimeError, SafetensorError) as error:  # a full disk, as Python, torch and Rust tell it
            message = f"No checkpoint was made of update {self.state.global_step} ({error}); training goes on."
            warnings.warn(message, stacklevel=2)

    def _checkpoint(self, state: dict[str, Any], trial: Any) -> Path:
        start = time.perf_counter()
        root = Path(self._get_output_dir(trial=trial))
        directory = root / f"checkpoint-{self.state.global_step}"
        limit, self.args.save_total_limit = self.args.save_total_limit, None  # older ones go once this one is sealed
        try:
            self._all_or_none(directory, partial(self._write_checkpoint, directory, state, trial))
            self._all_or_none(directory, partial(self._seal_checkpoint, root, directory, limit))
        finally:
            self.args.save_total_limit = limit
        self.checkpoint_seconds = time.perf_counter() - start
        return directory

    def _write_checkpoint(self, directory: Path, state: dict[str, Any], trial: Any) -> None:
        super()._save_checkpoint(self.model, trial)
        torch.save(state, exact_file(directory))
        if not rank():
            self.add_to_checkpoint(directory)

    def _seal_checkpoint(self, root: Path, directory: Path, limit: int | None) -> None:
        if not rank():
            seal(directory)
            prune(root, limit, self.state.best_model_checkpoint)

    def _all_or_none(self, directory: Path, work: Callable[[], None]) -> None:
        """Does a part of a checkpoint on all ranks; if one cannot, the checkpoint is gone and all of them raise."""
        problem: BaseException | None = None
        try:
            work()
        except BaseException as error:
            problem = error
        if told := agreed(None if problem is None else f"{type(problem).__name__}: {problem}"):
            shutil.rmtree(directory, ignore_errors=True)
            raise problem or OSError(f"another process: {told}")

    def _heed(self, finished: int = 0) -> None:
        """Ends the training here if that was asked for; also called as completions finish."""
        if self.stop_asked():
            raise Interrupted

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """No warning of weights that a checkpoint has under their other name."""
        tied = set(getattr(self.accelerator.unwrap_model(self.model), "_tied_weights_keys", None) or ())
        load_result.missing_keys[:] = [name for name in load_result.missing_keys if name not in tied]
        super()._issue_warnings_after_load(load_result)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            # The sampler shuffles once a pass over the data, from a generator that begins anew with the trainer.
            for _ in range(int(self.state.epoch or 0)):
                torch.randperm(self._sampler.num_samples, generator=self._sampler.generator)

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        self._sampler = super()._get_train_sampler(dataset)
        return self._sampler

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Called when all else is ready for the first update: what belongs to it is restored here too."""
        super()._load_rng_state(checkpoint)
        if checkpoint is not None:
            restore(self, Path(checkpoint))

    # ---- rollout ---------------------------------------------------------------------------------------------------

    def _rollout(self, prompt_ids: list[list[int]]) -> list[Completion]:
        """One completion for each prompt, equal prompts being one group."""
        members = members_of(prompt_ids)
        policy, rows = self._decoder(), min(self.step_sizes.rows, len(prompt_ids))
        weight, dtype = policy.layers[0].down.weight, DTYPES[self.precision]
        rounded = self.model.training and self.rounding.taken(weight, dtype, rows)
        self._fit_rows(prompt_ids, max(map(len, members.values())), rounded)
        rows = self.step_sizes.rows
        try:
            found = generate(
                packed(policy, self.precision, min(rows, len(prompt_ids)), self.fast.share_weights, rounded),
                requests_of(members, self.fast.share_prefixes),
                Sampling(self.temperature, self.args.top_k or 0, self.args.top_p, self.args.min_p or 0.0),
                limit=self.max_completion_length,
                ends=set(self.eos_token_ids),
                seed=int(torch.randint(2**31 - 1, ())),
                rows=rows,
                finished=self._heed,
                share=self.fast.share_prefixes,
            )
        except NoDistribution as error:
            raise Diverged("The model's scores hold no numbers to draw a token by: training has diverged") from error
        return in_order(found, members)

    def _fit_rows(self, prompt_ids: list[list[int]], group: int, rounded: bool) -> None:
        """Lets the rollout take as many rows as there is memory for; MemoryError if there is none for a group."""
        held, compute = next(self.model.parameters()).element_size(), DTYPES[self.precision].itemsize
        limit, shared = self.max_completion_length, self.fast.share_weights
        needed = bytes_of_rollout(self._sizes, prompt_ids, group, limit, compute, held, shared, rounded)
        self.step_sizes.fit_rows(self.shortage, len(prompt_ids), group, needed)

    def _check(self, prompt_ids: list[list[int]], completions: list[Completion]) -> None:
        """Compares rollout and learner with TRL's own path; where they disagree, that one is taken from now on."""
        self._checked = True
        trial = trial_of(prompt_ids, completions)
        inputs = (trial.ids, trial.mask, trial.length)
        with torch.no_grad():
            plain, _, _ = super()._get_per_token_logps_and_entropies(self.model, *inputs)
            learned, _ = completion_logps(self._round(trial.real), *inputs, self.temperature)
        learned_in = "int8" if self._narrow else self.precision
        sampled_in = "int8" if self.rounding.current else self.precision
        found = disagreement(trial, learned, plain, learned_in, self._plain_precision, sampled_in)
        self._switch.doubt = agreed(found)

    # ---- learner ---------------------------------------------------------------------------------------------------

    def _loss_in_parts(self, model: torch.nn.Module, inputs: Inputs) -> torch.Tensor:
        """The batch's loss, having taken the gradient of all of it but the last part, which the caller takes."""
        # An evaluation reports its loss over all completions; in training those without a gradient cost nothing.
        training = torch.is_grad_enabled()
        skip = training and self.beta == 0 and self.fast.skip_useless
        waiting = deque(micro_batches(inputs, self.loss_type, self.step_sizes.tokens, skip))
        logged, lean = counts(self._metrics[self._mode]), self._lean
        losses: list[torch.Tensor] = []
        sizes: list[int] = []
        if lean:
            lean.within_backward = False
        while True:
            self._heed()
            self._release()
            self._part, weight = self.step_sizes.next_part(self.shortage, waiting, self.loss_type, self._needed)
            with apart(self.accelerator):
                last = super()._compute_loss(model, self._part) * weight
            if training and not self.numbers.see("loss", last.detach(), self._part):
                last = torch.zeros((), requires_grad=True)  # of which no weight has a gradient
            self._release()
            losses.append(last.detach())
            sizes.append(len(self._part["prompt_ids"]))
            if not waiting:
                break
            if training:
                self.accelerator.backward(last)
        merge_parts(self._metrics[self._mode], logged, sizes)
        if together():
            merge_ranks(self._metrics[self._mode], logged, sum(sizes))
        if lean and training:  # other ranks' gradients are waited for
            lean.within_backward = self.accelerator.sync_gradients and not together()
        return last + (sum(losses) - losses[-1])

    def _needed(self, part: Inputs) -> int:
        """Bytes that a micro-batch takes, about, and what will be there once it has its gradients."""
        compute, recompute = DTYPES[self.precision].itemsize, self.args.gradient_checkpointing
        kept = bytes_of_part(self._sizes, part, compute, recompute)
        if not torch.is_grad_enabled():
            return kept
        within_backward = self._lean is not None and not together()
        return kept + bytes_to_come(self._trained, within_backward, bool(self.optimizer.state))

    def _compare_with_rollout(self, part: Inputs, logps: torch.Tensor) -> None:
        """Logs how far the rollout's log-probs were off, and weighs the advantages by it where asked."""
        if found := rollout_difference(part, logps):
            difference, count = found
            self._log("rollout/logp_difference_mean", float(difference.abs().sum() / max(1, count)))
            self._log("rollout/logp_difference_max", float(difference.abs().max()))
            self.rounding.see(difference, count)
            if cap := self.rounding.cap:
                weigh_advantages(part, difference, cap)

    # ---- what both need --------------------------------------------------------------------------------------------

    def _fast(self, *reasons: str | None) -> bool:
        """Whether the fast path is taken; if not, says why, once for each reason."""
        return self._switch.fast(self._unsupported, *reasons, stacklevel=3)

    @cached_property
    def _unsupported(self) -> str | None:
        """Why the fast path cannot serve this run at all, or None."""
        model = self.accelerator.unwrap_model(self.model)
        return unsupported(model, self.args, self.aux_loss_enabled, self.accelerator.num_processes)

    @cached_property
    def _unsupported_rollout(self) -> str | None:
        """Why rollouts go through TRL's own path, or None."""
        return unsupported_rollout(self.args, self.use_transformers_continuous_batching)

    @cached_property
    def precision(self) -> str:
        """The precision of the fast path's matrix products."""
        if self.fast.precision != "auto":
            return self.fast.precision
        return fastest_precision() if self.args.bf16 else "fp32"

    @property
    def _plain_precision(self) -> str:
        """What TRL's own path computes in: bf16 also where this CPU is slower with it and we are not."""
        low = self.args.bf16 or self.args.fp16 or next(self.model.parameters()).dtype != torch.float32
        return "bf16" if low else "fp32"

    def _decoder(self, model: torch.nn.Module | None = None) -> Decoder:
        """The tensors of a model, the policy unless told otherwise."""
        return decoder(self.accelerator.unwrap_model(self.model if model is None else model))

    @cached_property
    def _sizes(self) -> Shape:
        """The model's."""
        return of_decoder(self._decoder())

    def _round(self, mask: torch.Tensor, model: torch.nn.Module | None = None) -> Rounded:
        """A model's weights, the policy's unless told otherwise, for the completions of a mask (B, T)."""
        return Rounded.of(self._decoder(model), DTYPES[self.precision], int(mask.sum()), self._narrow)

    @cached_property
    def _narrow(self) -> bool:
        """Whether the learner multiplies by frozen weights in 8 bits."""
        return learns_in_8_bits(self.fast.learner, self._decoder().layers[0].down.weight, DTYPES[self.precision])

    @property
    def _trained(self) -> list[torch.nn.Parameter]:
        """The parameters that learn."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    @property
    def _lean(self) -> Lean | None:
        """The optimizer, if it can update within backward."""
        inner = getattr(self.optimizer, "optimizer", self.optimizer)  # accelerate wraps it
        return inner if isinstance(inner, Lean) else None

    def _release(self) -> None:
        """Between the phases of an update, where memory is to be saved: what one frees, the next can use in part."""
        if not self._roomy:
            release_memory()

    @property
    def _roomy(self) -> bool:
        """Whether freed memory is kept for speed: not where layers are computed twice, or weights are not in fp32."""
        return not self.args.gradient_checkpointing and next(self.model.parameters()).dtype == torch.float32

    @property
    def _mode(self) -> str:
        return "train" if self.model.training else "eval"

    def _log(self, name: str, value: float) -> None:
        self._metrics[self._mode][name].append(value)
