"""Worker: seconds of whole updates (rollout, rewards, learner, optimizer) by one engine's trainer, and its peak memory.

A task has: engine, model, base, work (prompts, completions, prompt_tokens, completion_tokens), full_warm_ups, updates.
"""

import tempfile
import time
import warnings
from dataclasses import asdict
from typing import Any

import torch
from floors import Work
from processes import Json, serve
from transformers import PrinterCallback, TrainerCallback
from workloads import NEVER, TRAINING, load, prompts, shape, use_all_cores

from cpu_grpo.hardware import ResourceMonitor

HELD_IN_BF16 = ("ours lean", "ours lora")
# Tokens of a micro-batch: all of an update, as lean holds no gradients then, and for LoRA, half of a group.
LEAN_TOKENS, LORA_TOKENS = 8192, 640
SMALL = {"prompt_tokens": 16, "completion_tokens": 8}  # of the first warm-up


def measure(task: Json) -> Json:
    """Warm-up updates, then timed ones, all by one trainer."""
    use_all_cores()
    warnings.filterwarnings("error", message="TRL's plain path")  # not to be timed as the fast one
    work = Work(**task["work"])
    small = Work(work.prompts, work.completions, **SMALL)
    plan = [small] + [work] * (task["full_warm_ups"] + task["updates"])
    with ResourceMonitor() as monitor, tempfile.TemporaryDirectory() as scratch:
        model, tokenizer = load(task, torch.bfloat16 if task["engine"] in HELD_IN_BF16 else torch.float32)
        clock = Clock(plan)
        trainer = _trainer(task["engine"], model, tokenizer, plan, scratch, clock)
        clock.watch(trainer)
        trainer.train()
    _check(trainer.state.log_history, plan)
    timed = slice(1 + task["full_warm_ups"], None)
    answer = {
        "seconds": clock.seconds[timed],
        "rollout_seconds": clock.rollout_seconds[timed],
        "warm_up": f"one update of {small.prompt_tokens} + {small.completion_tokens} tokens, "
        f"{task['full_warm_ups']} of full size",
        "peak_rss_bytes": monitor.peak_rss,
        "cpu_use": monitor.cpu_use,
        "threads": torch.get_num_threads(),
        "shape": asdict(shape(model)),
    }
    return answer | (_refresh(model, trainer.precision, work.sequences) if task["engine"] == "ours" else {})


class Clock(TrainerCallback):
    """Times each update from its start to the end of the optimizer's step, and sets its completions' length."""

    def __init__(self, plan: list[Work]) -> None:
        self.plan = plan
        self.seconds: list[float] = []
        self.rollout_seconds: list[float] = []

    def watch(self, trainer: Any) -> None:
        """Takes hold of the trainer: no completion ends early, and its rollouts are timed."""
        self.trainer = trainer
        trainer.eos_token_ids = [NEVER]
        trainer.generation_config.eos_token_id = trainer.generation_kwargs["eos_token_id"] = [NEVER]
        rollout = trainer._generate_single_turn

        def timed_rollout(*inputs: Any, **options: Any) -> Any:
            start = time.perf_counter()
            completions = rollout(*inputs, **options)
            self.rollout_seconds.append(time.perf_counter() - start)
            return completions

        trainer._generate_single_turn = timed_rollout

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        length = self.plan[state.global_step].completion_tokens
        self.trainer.max_completion_length = self.trainer.generation_config.max_new_tokens = length
        self._start = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.seconds.append(time.perf_counter() - self._start)


def alternating(completions: list[Any], **columns: Any) -> list[float]:
    """Rewards 0 and 1 in turn: every completion of a group (of an even size) gets an advantage."""
    return [float(place % 2) for place in range(len(completions))]


def _trainer(engine: str, model: Any, tokenizer: Any, plan: list[Work], scratch: str, clock: Clock) -> Any:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    from cpu_grpo import CPUGRPOTrainer

    work = plan[-1]
    texts = [
        text for step, part in enumerate(plan) for text in prompts(tokenizer, part.prompts, part.prompt_tokens, step)
    ]
    trainer = (CPUGRPOTrainer if engine.startswith("ours") else GRPOTrainer)(
        model=model,
        reward_funcs=alternating,
        args=GRPOConfig(
            output_dir=scratch,
            # One group at a time where memory grows with it: stock runs out of it otherwise.
            per_device_train_batch_size=work.sequences if engine in HELD_IN_BF16 else work.completions,
            gradient_accumulation_steps=1 if engine in HELD_IN_BF16 else work.prompts,
            num_generations=work.completions,
            max_completion_length=work.completion_tokens,
            max_steps=len(plan),
            shuffle_dataset=False,  # each update takes the next prompts
            **TRAINING | {"gradient_checkpointing": engine in HELD_IN_BF16},
            bf16=engine != "trl fp32",
        ),
        train_dataset=Dataset.from_list([{"prompt": text} for text in texts]),
        processing_class=tokenizer,
        callbacks=[clock],
        **_scheme(engine, model),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _scheme(engine: str, model: Any) -> dict[str, Any]:
    """What the trainer of a memory scheme is given besides."""
    from cpu_grpo.engine.schemes.lean import Lean
    from cpu_grpo.engine.schemes.lora import adapters
    from cpu_grpo.engine.trainer import FastOptions

    if engine == "ours lean":
        optimizer = Lean(model.parameters(), lr=1e-6)
        return {"optimizers": (optimizer, None), "fast": FastOptions(micro_batch_tokens=LEAN_TOKENS)}
    if engine == "ours lora":
        return {
            "peft_config": adapters(rank=16, alpha=32),
            "fast": FastOptions(micro_batch_tokens=LORA_TOKENS, share_weights=True),
        }
    return {}


def _check(log: list[Json], plan: list[Work]) -> None:
    """Raises ValueError unless every update had exactly the planned tokens, and gradients from all of them."""
    rows = [row for row in log if "reward" in row]
    seen = 0
    for step, (row, work) in enumerate(zip(rows, plan, strict=True)):
        tokens = work.sequences * (work.prompt_tokens + work.completion_tokens)
        lengths = (row["completions/min_length"], row["completions/max_length"])
        if lengths != (work.completion_tokens,) * 2 or row["num_tokens"] - seen != tokens:
            raise ValueError(f"update {step}: completions of {lengths} tokens, {row['num_tokens'] - seen} in all")
        if row["frac_reward_zero_std"] or not row["grad_norm"] > 0:
            raise ValueError(f"update {step}: groups without advantage, or no gradient")
        seen = row["num_tokens"]


def _refresh(model: Any, precision: str, rows: int, times: int = 5) -> Json:
    """Seconds to lay the weights out anew: for the rollout, and for the learner."""
    from cpu_grpo.engine.decoder import decoder
    from cpu_grpo.engine.learner import Rounded
    from cpu_grpo.engine.learner.forward import MANY
    from cpu_grpo.engine.rollout import packed
    from cpu_grpo.hardware import DTYPES

    parts = decoder(model)
    makers = {
        "pack": lambda: packed(parts, precision, rows),
        "round": lambda: Rounded.of(parts, DTYPES[precision], MANY),
    }
    seconds: Json = {name: [] for name in makers}
    for _ in range(times + 1):
        for name, make in makers.items():
            start = time.perf_counter()
            made = make()
            seconds[name].append(time.perf_counter() - start)
            del made
    return {f"{name}_seconds": values[1:] for name, values in seconds.items()}


if __name__ == "__main__":
    serve(measure)
