"""Worker: seconds from the start of its process until a trained model reaches an accuracy on held-out problems.

A task has: base, model, problems (a problems.jsonl), seed, accuracy, most_updates (0: only the start model's accuracy)
and started (time.time() as the process was launched). In the clock: Python's start, imports, model load, compilation,
training. Out of it, and told apart: evaluations. One follows every update, so the first to reach the accuracy ends the
run; the interval beside it says what a single evaluation is worth.
"""

import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean
from typing import Any

from processes import ROOT, Json, serve

from cpu_grpo.config.schema import Task

PROMPTS, COMPLETIONS, TOKENS = 8, 8, 28  # the recipe ultra_fast's, as is the learning rate
LEARNING_RATE = 1e-5


def measure(task: Json) -> Json:
    from transformers import PrinterCallback
    from workloads import load, shape, use_all_cores

    from cpu_grpo.tasks.problems import of_split, read_problems
    from cpu_grpo.tasks.prompts import prompt

    use_all_cores()
    model, tokenizer = load(task)
    problems, sums = read_problems(Path(task["problems"])), one_digit_sums()
    exam = Exam(model, tokenizer, of_split(problems, "validation"), sums, task)
    rows = [{"prompt": prompt(p, sums, tokenizer), "accepted": p.accepted} for p in of_split(problems, "train")]
    with tempfile.TemporaryDirectory() as scratch:
        trainer = _trainer(task, model, tokenizer, rows, scratch, exam.callback())
        trainer.remove_callback(PrinterCallback)
        exam.precision = trainer.precision
        if task["most_updates"]:
            trainer.train()
        else:
            exam.sit()
    lengths = [row["completions/mean_length"] for row in trainer.state.log_history if "reward" in row]
    return {
        "seconds": exam.training_seconds[-1] if exam.passed else None,
        "updates": trainer.state.global_step,
        "right": exam.right,  # after each update
        "training_seconds": exam.training_seconds,
        "evaluation_seconds": exam.evaluation_seconds,
        "n": len(exam.problems),
        "prompt_tokens": mean(exam.prompt_tokens),
        "completion_tokens": mean(lengths) if lengths else 0,
        "shape": asdict(shape(model)),
    }


class Exam:
    """Greedy answers to the held-out problems by our rollout engine, and the clock."""

    def __init__(self, model: Any, tokenizer: Any, problems: list[Any], sums: Task, task: Json) -> None:
        from cpu_grpo.experiment.candidate import end_tokens

        self.model, self.tokenizer, self.problems, self.sums = model, tokenizer, problems, sums
        self.accuracy, self.started = task["accuracy"], task["started"]
        self.ends = end_tokens(model, tokenizer)
        self.right: list[int] = []
        self.training_seconds: list[float] = []  # on the clock after each update, without evaluations
        self.evaluation_seconds = 0.0

    @property
    def passed(self) -> bool:
        return self.right[-1] >= self.accuracy * len(self.problems)

    def sit(self) -> None:
        """Counts the right answers of the model as it is now."""
        from cpu_grpo.engine.decoder import decoder
        from cpu_grpo.engine.prefix import common_prefix
        from cpu_grpo.engine.rollout import Request, Sampling, generate, packed
        from cpu_grpo.tasks.answers.grader import Grader
        from cpu_grpo.tasks.prompts import prompt, prompt_ids

        start = time.time()
        self.training_seconds.append(start - self.started - self.evaluation_seconds)
        asked = [prompt_ids(prompt(p, self.sums, self.tokenizer), self.tokenizer) for p in self.problems]
        shared = common_prefix(asked)  # computed once an update, not once a prompt
        self.prompt_tokens = [len(ids) - shared + shared / PROMPTS for ids in asked]
        ready = packed(decoder(self.model), self.precision, 128)
        groups = generate(ready, [Request(ids) for ids in asked], Sampling(temperature=0), TOKENS, self.ends, seed=0)
        texts = [self.tokenizer.decode(group[0].ids, skip_special_tokens=True) for group in groups]
        grader, graded = Grader(), zip(texts, self.problems, strict=True)
        self.right.append(sum(grader.same(grader.flexible(text), problem.accepted) for text, problem in graded))
        self.evaluation_seconds += time.time() - start

    def callback(self) -> Any:
        """An evaluation after every update; training stops when it is passed."""
        from transformers import TrainerCallback

        exam = self

        class SitAfterUpdates(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                exam.sit()
                control.should_training_stop = exam.passed

        return SitAfterUpdates()


def _trainer(task: Json, model: Any, tokenizer: Any, rows: list[Json], scratch: str, callback: Any) -> Any:
    from datasets import Dataset
    from trl import GRPOConfig
    from workloads import TRAINING

    from cpu_grpo import CPUGRPOTrainer
    from cpu_grpo.config.schema import Rewards
    from cpu_grpo.tasks.rewards import reward_functions

    functions, weights = reward_functions(Rewards(correct=1.0))
    return CPUGRPOTrainer(
        model=model,
        reward_funcs=functions,
        args=GRPOConfig(
            output_dir=scratch,
            reward_weights=weights,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            temperature=1.0,
            scale_rewards="none",
            per_device_train_batch_size=PROMPTS * COMPLETIONS,
            num_generations=COMPLETIONS,
            max_completion_length=TOKENS,
            max_steps=max(1, task["most_updates"]),
            seed=task["seed"],
            **TRAINING,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[callback],
    )


def one_digit_sums() -> Task:
    """The default job's task without two-digit numbers: the accuracy to reach was measured without them."""
    from cpu_grpo.config.compose import load_params

    return replace(load_params(ROOT / "params.yaml").task, levels=[1, 2])


def write_sums(target: Path, quick: bool) -> None:
    """Problems of two or three one-digit numbers, no two alike, with their splits."""
    from cpu_grpo.tasks.problems import write_problems
    from cpu_grpo.tasks.splits import draw

    sizes = {"train": 20, "validation": 8, "test": 2} if quick else {"train": 160, "validation": 200, "test": 2}
    task = replace(one_digit_sums(), **sizes)
    write_problems(target, draw(task, seed=42, prompt_length=lambda problem: 0).problems)


if __name__ == "__main__":
    serve(measure)
