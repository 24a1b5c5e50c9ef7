"""Rows about an update's two parts: the rollout against other engines, and the learner against the GEMM peak."""

import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median

import floors
from bench import Bench, shape_of
from figures import Figure, ratio
from floors import Work
from processes import Json, ask

TEMPERATURE = 0.9
GROUPS = (1, 8)  # of 8 completions: 8 and 64 sequences
# By default vLLM keeps one core for its scheduler, half of a machine with two: it is measured both ways, and compared
# with at its better one. Its documentation advises Intel's OpenMP, which its requirements install.
VLLM = {"vllm": {}, "vllm, all cores": {"VLLM_CPU_NUM_OF_RESERVED_CPU": "0"}}
IN_8_BITS = {"bf16": 1.5, "fp32": 2.5}  # times as fast as exact rollouts; with bf16 where rows are few
MICRO_BATCH = 3  # groups that the trainer's default of 4096 tokens holds


def rollout(bench: Bench, model: str) -> list[Figure]:
    """Tokens a second at 8 and 64 sequences, against vLLM's CPU build where there is one, and against transformers."""
    works = [bench.work(prompts) for prompts in GROUPS]
    task = bench.task(model) | {"groups": [asdict(work) for work in works], "temperature": TEMPERATURE}
    task |= {"plain_precision": bench.best_precision}

    def asking(engine: str, warm_up_tokens: int) -> Callable[[], Json]:
        return lambda: ask("rollout", task | {"engine": engine, "warm_up_tokens": warm_up_tokens})

    with tempfile.TemporaryDirectory() as scratch:
        engines = {
            "ours": (bench.repeats, asking("ours", works[0].completion_tokens)),
            "transformers": (bench.stock_repeats, asking("transformers", 4)),
        }
        if python := os.environ.get("VLLM_PYTHON"):
            saved = task | {"directory": scratch}
            for name, environment in VLLM.items():
                engines[name] = (bench.stock_repeats, partial(_ask_vllm, saved, python, environment))
        runs = bench.measure(f"rollout_{model}", engines)
    figures = []
    for place, work in enumerate(works):
        rates = {
            name: [work.scored_tokens / answer["seconds"][place] for answer in runs.get(name, [])]
            for name in ("ours", "transformers", *VLLM)
        }
        vllm = max((name for name in VLLM if rates[name]), key=lambda name: median(rates[name]), default="vllm")
        bound = None
        if runs["ours"]:
            bound = work.scored_tokens / floors.rollout_seconds(shape_of(runs["ours"]), work, bench.rates)
        for other, title, goal in (
            (vllm, "vLLM", 2),
            ("transformers", f"transformers.generate {bench.best_precision}", 5),
        ):
            figures.append(
                Figure(
                    f"rollout against {title}",
                    bench.describe(model, work),
                    **ratio(rates["ours"], rates[other], rates=True),
                    bound=bound,
                    unit="tokens/s",
                    goal=goal,
                    note=_vllm_note(rates) if other == vllm else "",
                )
            )
    return figures


def rollout_in_8_bits(bench: Bench, model: str) -> list[Figure]:
    """Tokens a second at 8 and 64 sequences with weights in 8 bits, against the same in the fastest exact precision."""
    works = [bench.work(prompts) for prompts in GROUPS]
    task = bench.task(model) | {"groups": [asdict(work) for work in works], "temperature": TEMPERATURE}
    task |= {"plain_precision": bench.best_precision, "warm_up_tokens": works[0].completion_tokens}
    engines = ("ours int8", "ours")
    asking = {name: (bench.repeats, partial(ask, "rollout", task | {"engine": name})) for name in engines}
    runs = bench.measure(f"int8_{model}", asking)
    figures = []
    for place, work in enumerate(works):
        ours, exact = ([work.scored_tokens / answer["seconds"][place] for answer in runs[name]] for name in engines)
        figures.append(
            Figure(
                f"rollout in 8 bits against {bench.best_precision}",
                bench.describe(model, work),
                **ratio(ours, exact, rates=True),
                unit="tokens/s",
                goal=IN_8_BITS[bench.best_precision] if work is works[0] or bench.best_precision == "fp32" else None,
            )
        )
    return figures


def _vllm_note(rates: dict[str, list[float]]) -> str:
    """What each of vLLM's settings came to."""
    told = [f"{name} {median(rates[name]):.0f} tokens/s" for name in VLLM if rates[name]]
    return "; ".join(told) or "VLLM_PYTHON names no python with vLLM, or it failed"


def _ask_vllm(task: Json, python: str, environment: dict[str, str]) -> Json:
    """Saves the model, as vLLM loads from a directory, and has it measured in vLLM's environment."""
    openmp = Path(python).parents[1] / "lib" / "libiomp5.so"
    if environment and openmp.is_file():
        environment = environment | {"LD_PRELOAD": str(openmp)}
    saved = ask("saved_model", task)
    asked = {"directory": task["directory"], "temperature": TEMPERATURE, "groups": saved["groups"]}
    asked |= {"plain_precision": task["plain_precision"]}
    return ask("vllm_rollout", asked, python, **environment)


def learner(bench: Bench, model: str) -> list[Figure]:
    """Of one group, and of as many as a micro-batch holds."""
    return _learner(bench, f"learner_{model}", model, [bench.work(groups) for groups in (1, MICRO_BATCH)], goal=0.7)


def learner_behind_examples(bench: Bench, model: str) -> list[Figure]:
    """Of the groups of an update that have a spread of reward, behind worked examples, by `lean`."""
    return _learner(bench, f"learner_{model}_shared", model, [bench.work_behind_examples()], goal=0.65, lean=True)


def learner_in_8_bits(bench: Bench, model: str) -> list[Figure]:
    """Of adapters on frozen weights, whose products are in 8 bits, against the same in the fastest exact precision."""
    works = [bench.work(groups) for groups in (1, MICRO_BATCH)]
    task = _learner_task(bench, model, works) | {"lora": True}
    asking = {
        name: (1, partial(ask, "learner", task | {"narrow": narrow}))
        for name, narrow in (("ours int8", True), ("ours", False))
    }
    runs = bench.measure(f"learner_int8_{model}", asking)
    figures = []
    for place, work in enumerate(works):
        ours, exact = ([second for answer in runs[name] for second in answer["seconds"][place]] for name in asking)
        measure = f"learner of adapters in 8 bits against {bench.best_precision}, {work.prompts} groups at a time"
        figures.append(Figure(measure, bench.describe(model, work), **ratio(ours, exact), unit="s"))
    return figures


def _learner_task(bench: Bench, model: str, works: list[Work]) -> Json:
    given = {"work": [asdict(work) for work in works], "times": bench.repeats}
    return bench.task(model) | given | dict.fromkeys(("lean", "lora", "narrow"), False)


def _learner(bench: Bench, key: str, model: str, works: list[Work], goal: float, lean: bool = False) -> list[Figure]:
    """Achieved FLOP/s, of operations that have to be done, over the GEMM peak measured beside them."""
    task = _learner_task(bench, model, works) | {"lean": lean}
    answers = bench.measure(key, {"ours": (1, lambda: ask("learner", task))})["ours"]
    figures = []
    for place, work in enumerate(works):
        measure = f"learner, {work.prompts} group{'s' * (work.prompts > 1)} at a time"
        measure += f", layers computed twice, behind {work.shared_tokens} shared tokens" if lean else ""
        if not answers:
            figures.append(Figure(measure, bench.describe(model, work)))
            continue
        operations = floors.learner_operations(shape_of(answers), work, recompute=lean)
        achieved, peak = operations / median(answers[0]["seconds"][place]) / 1e9, max(answers[0]["gemm_gflops"])
        figures.append(
            Figure(
                measure,
                bench.describe(model, work),
                ours=achieved,
                bound=peak,
                unit="GFLOP/s",
                value=achieved / peak,
                value_unit="%",
                goal=goal,
                note=f"{operations / 1e12:.3g} TFLOP for {work.packed_tokens} packed and {work.scored_tokens} "
                f"scored tokens, in {answers[0]['precision']}",
            )
        )
    return figures
