"""The plan as a table for the terminal."""

from cpu_grpo.config.schema import Train
from cpu_grpo.hardware import Setup
from cpu_grpo.plan.choice import Budget, Known, Option
from cpu_grpo.plan.foresight import foresee
from cpu_grpo.plan.job import Job
from cpu_grpo.units import duration, gigabytes

COLUMNS = ("", "peak memory", "weights", "optimizer", "rollout", "learner", "fits", "an update", "the run")


def heading(config: Train, job: Job, known: Known, room: Budget) -> str:
    """What the plan is of."""
    return (
        f"{config.model.name}, {known.shape.parameters / 1e6:,.0f} million parameters; {config.name}: {job.updates} "
        f"updates of {job.prompts} prompts x {job.group} completions, prompts of up to {job.prompt_tokens} tokens "
        f"({job.shared_tokens} of them common), completions of up to {job.completion_tokens}; {room.reason}"
    )


def table(options: list[Option], room: Budget, hardware: Setup | None = None) -> str:
    """A line for each option; with `hardware`, times are measured on it where they fit."""
    lines: list[tuple[str, ...]] = [COLUMNS if hardware else COLUMNS[:-2]]
    for option in options:
        needs = option.peak
        fits = needs.total <= room.bytes
        parts = (needs.total, needs.weights, needs.optimizer, needs.rollout, needs.learner)
        cells = [" ".join(option.changes), *map(gigabytes, parts), "yes" if fits else "no"]
        if hardware and fits and (seen := foresee(option, hardware)):
            cells += [f"{seen.seconds.update:.1f} s", duration(seen.whole)]
        lines.append((*cells, *[""] * (len(lines[0]) - len(cells))))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    rows = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    return "\n".join(row.rstrip() for row in rows)
