"""Runs a study, job by job: results/studies/<study>/<budget>/<arm>-<seed>.json. What is there is not run again."""

from pathlib import Path

from cpu_grpo.config import StudyJob, launch
from cpu_grpo.study.jobs import run_job
from cpu_grpo.study.machine import job_count, runnable
from cpu_grpo.study.outcomes import Outcome, read_outcomes
from cpu_grpo.units import duration


def study(config: StudyJob, root: Path, pipeline_id: str) -> None:
    if config.arm not in runnable(config.study):
        print(f"{config.study.name}: {config.arm} is left out, as this machine has no more cores than it has threads")
        return
    outcome = run_job(config, root)
    done = read_outcomes(config)
    jobs = job_count(config, done)
    left = (jobs - len(done)) * sum(other.seconds for other in done) / max(1, len(done))
    remaining = f", about {duration(left)} left" if left else ""
    print(f"{told(outcome)}; {len(done)} of {jobs} jobs done{remaining}")


def told(outcome: Outcome) -> str:
    """In a line."""
    job = f"{outcome.study}: {outcome.arm} with seed {outcome.seed}"
    if not outcome.marks:
        return f"{job} took {duration(outcome.seconds)}"
    accuracies = []
    for split, marks in outcome.marks.items():
        low, high = marks.interval
        accuracies.append(f"{marks.accuracy:.1%} [{low:.1%}, {high:.1%}] of {len(marks.right)} {split} problems")
    return f"{job} solves {' and '.join(accuracies)}"


if __name__ == "__main__":
    launch(study, "study")
