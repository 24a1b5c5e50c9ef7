"""The row about a hard limit: an update of all parameters where the system kills what takes more."""

from bench import Bench
from control_groups import NoGroup, memory_group
from figures import Figure, absolute
from processes import ask

from rows.updates import update_task


def hard_limit(bench: Bench, model: str, most: float) -> list[Figure]:
    """Updates of the lean scheme in a control group of `most` GB, its pages of files included."""
    work, peak, missing = bench.work(1), None, "killed"
    try:
        with memory_group(round(most * 1e9)) as group:
            task = update_task(bench, model, work, "ours lean")
            run = {"ours lean": (1, lambda: ask("update", task, before=group.enter))}
            if bench.measure(f"limit_{model}", run)["ours lean"]:
                peak, missing = group.peak and group.peak / 1e9, "finished; no peak is told here"
    except NoGroup as error:
        missing = str(error)
    return [
        absolute(
            f"updates of all parameters under a hard limit of {most:g} GB",
            bench.describe(model, work),
            peak,
            "GB",
            goal=most,
            at_most=True,
            missing=missing,
            note="memory=lean; the most that its control group held, with pages of files that the system may drop",
        )
    ]
