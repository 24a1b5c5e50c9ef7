"""Rows about whole updates: against stock TRL, absolute, in proportion to the work, and what fresh weights cost."""

from collections.abc import Callable
from dataclasses import asdict
from statistics import median

import floors
from bench import Bench, shape_of
from figures import Figure, absolute, ratio
from floors import Work
from linearity import fit, plot
from processes import Json, ask


def update(
    bench: Bench, key: str, model: str, prompts: int, goal: float, best_goal: float | None = None
) -> list[Figure]:
    """Seconds of an update beside those of stock TRL in fp32, and in its best precision here if that has a goal too."""
    work = bench.work(prompts)
    goals = [("trl fp32", goal, "TRL in fp32")]
    if best_goal is not None:
        goals.append((f"trl {bench.best_precision}", best_goal, f"TRL at its best here, {bench.best_precision}"))
    runs = _runs(bench, key, model, work, tuple(engine for engine, _, _ in goals))
    return [
        Figure(
            f"whole update against {title}",
            bench.describe(model, work),
            **ratio(_seconds(runs["ours"]), _seconds(runs[engine])),
            bound=_bound(bench, runs["ours"], work),
            goal=goal,
            note=f"peak memory {_peak(runs['ours'])} against {_peak(runs[engine])}",
        )
        for engine, goal, title in goals
    ]


def throughput(bench: Bench, key: str, model: str, prompts: int, goal: float | None = None) -> Figure:
    """Completions a second of the updates that were run under `key`."""
    work, answers = bench.work(prompts), bench.runs[key]["ours"]
    seconds, bound = _seconds(answers), _bound(bench, answers, work)
    rate = work.sequences / median(seconds) if seconds else None
    return absolute(
        "whole update, absolute",
        bench.describe(model, work),
        rate,
        "completions/s",
        bound=work.sequences / bound if bound else None,
        goal=goal,
    )


def linear(bench: Bench) -> list[Figure]:
    """Updates of 1, 2, 4 and 8 prompts, and the line through their seconds."""
    works = {f"x{prompts}": bench.work(prompts, completion_tokens=64) for prompts in (1, 2, 4, 8)}
    engines = {name: (bench.repeats, asking(bench, "135m", work, "ours")) for name, work in works.items()}
    runs = bench.measure("linearity", engines)
    samples = {works[name].scored_tokens: _seconds(answers) for name, answers in runs.items() if answers}
    measure, workload = "cost against work", bench.describe("135m", works["x8"]).replace("8 x", "1, 2, 4, 8 x", 1)
    if len(samples) < 3:
        return [Figure(measure, workload)]
    points = [(tokens, second) for tokens, seconds in samples.items() for second in seconds]
    line = fit([tokens for tokens, _ in points], [second for _, second in points])
    plot(bench.plot, samples, line, workload)
    return [
        Figure(
            measure,
            workload,
            ours=median(_seconds(runs["x8"])) if runs["x8"] else None,
            bound=_bound(bench, runs["x8"], works["x8"]),
            value=line.r_squared,
            value_unit="R^2",
            goal=0.99,
            note=f"{line.intercept:.2f} s + {1000 * line.slope:.2f} s for 1000 completion tokens; {bench.plot.name}",
        )
    ]


def weight_refresh(bench: Bench) -> list[Figure]:
    """Laying the weights out for the rollout, and rounding them for the learner, as shares of an update."""
    work = bench.work(8)
    answers = _runs(bench, "update_135m", "135m", work, ())["ours"]
    if not answers:
        return [Figure("fresh weights for the rollout", bench.describe("135m", work))]
    shape, update_seconds = shape_of(answers), median(_seconds(answers))
    bound = floors.rounding_seconds(shape, bench.rates)
    figures = []
    for measure, name, goal in (
        ("fresh weights for the rollout", "pack_seconds", 0.02),
        ("rounded weights for the learner, once a micro-batch", "round_seconds", None),
    ):
        seconds = median(second for answer in answers for second in answer[name])
        share = seconds / update_seconds
        figures.append(
            Figure(
                measure,
                "share of the update: " + bench.describe("135m", work),
                ours=seconds,
                bound=bound,
                value=share,
                value_unit="%",
                goal=goal,
                at_most=True,
            )
        )
    return figures


def _runs(bench: Bench, key: str, model: str, work: Work, others: tuple[str, ...]) -> dict[str, list[Json]]:
    counts = {"ours": bench.repeats} | dict.fromkeys(others, bench.stock_repeats)
    return bench.measure(key, {name: (count, asking(bench, model, work, name)) for name, count in counts.items()})


def asking(bench: Bench, model: str, work: Work, engine: str) -> Callable[[], Json]:
    task = update_task(bench, model, work, engine)
    return lambda: ask("update", task)


def update_task(bench: Bench, model: str, work: Work, engine: str) -> Json:
    """One timed update. Only ours warms up at full size: a stock update takes minutes."""
    warm_ups = int(engine.startswith("ours"))
    return bench.task(model) | {"engine": engine, "work": asdict(work), "updates": 1, "full_warm_ups": warm_ups}


def _bound(bench: Bench, answers: list[Json], work: Work) -> float | None:
    return floors.update_seconds(shape_of(answers), work, bench.rates) if answers else None


def _seconds(answers: list[Json]) -> list[float]:
    return [seconds for answer in answers for seconds in answer["seconds"]]


def _peak(answers: list[Json]) -> str:
    return f"{max(answer['peak_rss_bytes'] for answer in answers) / 1e9:.1f} GB" if answers else "none"
