"""Rows about cores: how speed grows from few of them to all, with a thread a core and no others to run on."""

import os
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from statistics import median

from bench import Bench
from figures import Figure
from floors import Work
from processes import Json, ask

from cpu_grpo.hardware.cores import one_of_each_core

GOAL = 0.7  # of as many times the speed as there are times the cores
TEMPERATURE = 0.9
GROUPS = (1, 8)  # of 8 completions: 8 and 64 rows
ROLLOUTS, UPDATES = ("494m", "135m"), ("494m",)
Rate = Callable[[Json], float]  # an answer's tokens a second


def scaling(bench: Bench) -> list[Figure]:
    """Tokens a second of rollouts and updates on 2, 4, 8 ... and all cores, against 2; from 1 on where there are no 4.

    The goal is for the largest count alone.
    """
    cores = physical_cores()
    counts = core_counts(len(cores))
    works = [bench.work(groups) for groups in GROUPS]
    figures = []
    for model in ROLLOUTS:
        task = bench.task(model) | {"engine": "ours", "groups": [asdict(work) for work in works]}
        task |= {"temperature": TEMPERATURE, "plain_precision": "fp32", "warm_up_tokens": works[0].completion_tokens}
        answers = _measured(bench, f"scaling_rollout_{model}", "rollout", task, cores, counts)
        for place, work in enumerate(works):
            rate = partial(_rollout_rate, work=work, place=place)
            figures += _grown(f"rollout of {work.sequences} rows", bench.describe(model, work), answers, rate)
    for model in UPDATES:
        task = bench.task(model) | {"engine": "ours", "work": asdict(works[0]), "full_warm_ups": 1, "updates": 1}
        answers = _measured(bench, f"scaling_update_{model}", "update", task, cores, counts)
        figures += _grown(
            "whole update", bench.describe(model, works[0]), answers, partial(_update_rate, work=works[0])
        )
    return figures


def core_counts(cores: int) -> list[int]:
    """1, 2, 4 ... and all; from 2 on where there are 4."""
    doubled = [1 << power for power in range(cores.bit_length()) if 1 << power < cores]
    return [count for count in [*doubled, cores] if count > 1 or 0 < cores < 4]


def physical_cores() -> list[int]:
    """A hardware thread of each core that this process may run on; none where the system does not say."""
    return one_of_each_core(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def _measured(
    bench: Bench, key: str, worker: str, task: Json, cores: list[int], counts: list[int]
) -> dict[int, list[Json]]:
    """Answers by the number of cores."""

    def asking(count: int) -> Json:
        pin = partial(os.sched_setaffinity, 0, cores[:count])
        return ask(worker, task, before=pin, OMP_NUM_THREADS=str(count))

    engines = {str(count): (bench.repeats, partial(asking, count)) for count in counts if cores}
    return {int(name): answers for name, answers in bench.measure(key, engines).items()}


def _rollout_rate(answer: Json, work: Work, place: int) -> float:
    return work.scored_tokens / answer["seconds"][place]


def _update_rate(answer: Json, work: Work) -> float:
    return work.scored_tokens / median(answer["seconds"])


def _grown(measure: str, workload: str, answers: dict[int, list[Json]], rate: Rate) -> list[Figure]:
    """A figure for each count but the fewest: its speed beside theirs, as a share of what more cores could bring."""
    rates = {count: median(map(rate, given)) for count, given in answers.items() if given}
    if len(rates) < 2:
        return [Figure(f"{measure} on more cores", workload, missing="not run: one core")]
    fewest, most = min(rates), max(rates)
    figures = []
    for count in sorted(set(rates) - {fewest}):
        busy = [answer["cpu_use"] for answer in answers[count] if "cpu_use" in answer]
        figures.append(
            Figure(
                f"{measure} on {count} cores against {fewest}",
                workload,
                ours=rates[count],
                other=rates[fewest],
                bound=rates[fewest] * count / fewest,
                unit="tokens/s",
                value=rates[count] / rates[fewest] * fewest / count,
                value_unit="%",
                goal=GOAL if count == most else None,
                note=f"cores busy {median(busy):.0%} of the time, the model's start included" if busy else "",
            )
        )
    return figures
