"""What the report says of a study, and where it comes from."""

from dataclasses import dataclass

from cpu_grpo.config.schema import StudyJob
from cpu_grpo.report.plots import Plot
from cpu_grpo.report.tables import Table
from cpu_grpo.study.outcomes import Outcome


@dataclass(frozen=True)
class Section:
    """What the report says of a study."""

    name: str
    question: str
    answers: list[str]
    table: Table
    plots: list[Plot]
    method: str


def notices(config: StudyJob, outcomes: list[Outcome]) -> list[str]:
    """What keeps a reader from believing too much."""
    said = []
    if config.budget.name != "full":
        said.append(
            f"Run with budget={config.budget.name} only, to see that it works: take nothing from these figures."
        )
    jobs = len(config.study.arms) * len(config.budget.seeds)
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
