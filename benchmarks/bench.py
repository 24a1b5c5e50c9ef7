"""What the rows of the table share: sizes, models, repeats, and the runs made so far."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from floors import Rates, Work
from processes import Json, WorkerFailed, interleaved

from cpu_grpo.engine.shape import Shape

ENGINES = {
    "135m": "SmolLM2-135M",
    "494m": "Qwen2-0.5B shape, random weights",
    "1544m": "Qwen2.5-1.5B shape, random weights",
}
Ask = Callable[[], Json]


@dataclass
class Bench:
    base: str  # the directory of SmolLM2-135M; empty: tiny models instead
    repeats: int  # timed runs of ours
    stock_repeats: int  # of each baseline: stock updates take minutes
    plot: Path
    machine: Json
    runs: dict[str, dict[str, list[Json]]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    @property
    def quick(self) -> bool:
        return not self.base

    @property
    def rates(self) -> Rates:
        return Rates(1e9 * max(self.machine["gemm_gflops"].values()), 1e9 * self.machine["read_gb_per_second"])

    @property
    def best_precision(self) -> str:
        """The precision of fastest products on this machine: the one that makes a baseline look best."""
        return max(self.machine["gemm_gflops"], key=self.machine["gemm_gflops"].get)

    def task(self, model: str) -> Json:
        return {"model": model, "base": self.base, "quick": self.quick}

    def work(self, prompts: int, completion_tokens: int = 128) -> Work:
        """Groups of 8 completions, prompts of 115 tokens; or a sixteenth of that."""
        if self.quick:
            return Work(prompts, 2, 16, completion_tokens // 16)
        return Work(prompts, 8, 115, completion_tokens)

    def work_behind_examples(self) -> Work:
        """Five groups of 8 behind eight worked examples, as GSM8K is asked; or a sixteenth of that."""
        if self.quick:
            return Work(2, 2, 70, 5, shared_tokens=63)
        return Work(5, 8, 1115, 80, shared_tokens=1000)

    def describe_model(self, model: str) -> str:
        return f"tiny stand-in for {model}" if self.quick else ENGINES[model]

    def describe(self, model: str, work: Work) -> str:
        return f"{self.describe_model(model)}, {work.prompts} x {work.completions} x {work.completion_tokens} tokens"

    def measure(self, key: str, engines: dict[str, tuple[int, Ask]]) -> dict[str, list[Json]]:
        """The answers of each engine, asked as often as its count says, in turns; made once and kept under `key`.

        An engine that fails has the answers it gave before, and is not asked again.
        """
        if key in self.runs:
            return self.runs[key]
        answers: dict[str, list[Json]] = {name: [] for name in engines}
        failed = set()
        for name in interleaved({name: count for name, (count, _) in engines.items()}):
            if name in failed:
                continue
            print(f"{key}: {name}, {len(answers[name]) + 1} of {engines[name][0]}", file=sys.stderr, flush=True)
            try:
                answers[name].append(engines[name][1]())
            except WorkerFailed as error:
                failed.add(name)
                self.failures.append(f"{key}, {name}: {error}")
        self.runs[key] = answers
        return answers


def shape_of(answers: list[Json]) -> Shape:
    return Shape(**answers[0]["shape"])
