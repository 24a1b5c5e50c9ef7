"""Rows about memory: the peak of whole updates in fresh processes, by scheme, and what a scheme costs in speed."""

from statistics import median

from bench import Bench
from figures import Figure
from update_rows import asking
from worker import Json

SCHEMES = {
    "ours": "full: fp32, AdamW",
    "ours lean": "lean: bf16, updated within backward",
    "ours lora": "LoRA of rank 16 on bf16",
}


def memory(bench: Bench, model: str, goals: dict[str, float | None], speed: float | None = None) -> list[Figure]:
    """Peak memory of updates of one prompt by each scheme, and the lean scheme's speed as a share of the full one's.

    Args:
        goals: GB at most, of the schemes to be measured.
        speed: the share that the lean scheme should reach; None: the full one is not measured.
    """
    work = bench.work(1)
    engines = {name: (bench.repeats, asking(bench, model, work, name)) for name in goals}
    runs = bench.measure(f"memory_{model}", engines)
    figures = [_peak(bench, model, name, runs[name], goal) for name, goal in goals.items()]
    if speed is None:
        return figures
    seconds = {name: [second for answer in answers for second in answer["seconds"]] for name, answers in runs.items()}
    lean, full = (median(seconds[name]) if seconds[name] else None for name in ("ours lean", "ours"))
    share = full / lean if lean and full else None
    workload = bench.describe(model, work)
    return [
        *figures,
        Figure("speed, lean by full", workload, ours=lean, other=full, value=share, value_unit="%", goal=speed),
    ]


def _peak(bench: Bench, model: str, engine: str, answers: list[Json], goal: float | None) -> Figure:
    most = max((answer["peak_rss_bytes"] / 1e9 for answer in answers), default=None)
    return Figure(
        f"peak memory of an update, {SCHEMES[engine]}",
        bench.describe(model, bench.work(1)),
        ours=most,
        unit="GB",
        value=most,
        value_unit="GB",
        goal=goal,
        at_most=True,
        note="of the whole process, its libraries included",
    )
