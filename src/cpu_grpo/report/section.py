"""What the report says of a question, and where it comes from."""

from collections.abc import Callable
from dataclasses import dataclass, field

from cpu_grpo.config.study_schema import StudyJob
from cpu_grpo.report.plots import Plot
from cpu_grpo.report.tables import Cell, Link, Table
from cpu_grpo.report.text import NOTHING
from cpu_grpo.study.machine import job_count
from cpu_grpo.study.outcomes import Outcome, outcome_file


@dataclass(frozen=True)
class Section:
    """What the report says of a question."""

    name: str  # the study's, if one answers it
    question: str
    answers: list[str]
    table: Table
    plots: list[Plot]
    method: str
    sources: Table = field(default_factory=lambda: Table("", [], []))

    @property
    def heading(self) -> str:
        """The name leads: readers look for it."""
        return f"{self.name.replace('_', ' ').capitalize()}: {self.question[0].lower()}{self.question[1:]}"


def notices(config: StudyJob, outcomes: list[Outcome]) -> list[str]:
    """What keeps a reader from believing too much."""
    said = []
    if config.budget.name != "full":
        said.append(
            f"Run with budget={config.budget.name} only, to see that it works: take nothing from these figures."
        )
    jobs = job_count(config, outcomes)
    if len(outcomes) < jobs:
        said.append(f"{len(outcomes)} of {jobs} jobs are done; the others are not run yet.")
    return said


def sources(config: StudyJob, outcomes: list[Outcome]) -> str:
    """Where the figures can be looked up."""
    commits = ", ".join(sorted({outcome.commit[:7] for outcome in outcomes}))
    machines = ", ".join(sorted({outcome.hardware for outcome in outcomes}))
    return (
        f"Every job's outcome, problem by problem, is in {config.results}/{config.study.name}/{config.budget.name} and "
        f"its runs in MLflow's experiment study-{config.study.name}; commits {commits}, on {machines}."
    )


def sources_table(config: StudyJob, outcomes: list[Outcome], address: Callable[[str], str]) -> Table:
    """Each arm's files, and its MLflow runs where they are known here.

    Args:
        address: of an MLflow run, by its id; empty for one that was recorded elsewhere.
    """
    body: list[list[Cell]] = []
    for arm in config.study.arms:
        own = [outcome for outcome in outcomes if outcome.arm == arm]
        files = (Link(f"seed {one.seed}", f"../{outcome_file(config, arm, one.seed).as_posix()}") for one in own)
        runs = (Link(run[:8], address(run)) for one in own for run in one.runs)
        if own:
            body.append([(arm,), tuple(files), tuple(runs) or (NOTHING,)])
    return Table("What every figure comes from.", ["Arm", "Outcomes, problem by problem", "MLflow runs"], body)
