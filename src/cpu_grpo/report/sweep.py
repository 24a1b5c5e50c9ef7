"""One table for the jobs of a multirun."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from cpu_grpo.files import write_text

if TYPE_CHECKING:
    from cpu_grpo.report.results import Training

HEADER = [
    "job",
    "overrides",
    "variant",
    "updates",
    "reward",
    "completions/s",
    "tokens/s",
    "peak",
    "CPU",
    "load",
    "wall",
]
HEADER += ["MLflow run"]


class SweepSummary(Callback):
    """Writes summary.md into the sweep's directory after each job, and prints it after the last.

    After each job too, because Hydra does not come to the end of a multirun in which a job failed.
    """

    def on_job_end(self, config: DictConfig, **kwargs: Any) -> None:
        if config.hydra.mode == RunMode.MULTIRUN:
            directory = Path(config.hydra.runtime.cwd) / config.hydra.sweep.dir
            write_text(directory / "summary.md", summarise(directory, "failed or unfinished"))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        print_summary(Path(config.hydra.sweep.dir))


def print_summary(directory: Path) -> None:
    """Prints the sweep's table and writes it as summary.md."""
    text = summarise(directory)
    write_text(directory / "summary.md", text)
    print(f"{text}\nThis table is in {directory / 'summary.md'}.")


def summarise(directory: Path, without_results: str = "failed") -> str:
    """A Markdown table, aligned so that it reads well in a terminal: a row for each training run of each job."""
    # Imported here, because Hydra imports this module in every job, and the statistics take a while to load.
    from cpu_grpo.report.results import read_trainings
    from cpu_grpo.report.tables import Cell, Table, markdown

    rows: list[list[Cell]] = []
    for job in _jobs(directory):
        trainings = read_trainings(job / "results" / "train").values()
        told = [_cells(training) for training in trainings] or [[without_results] + [""] * (len(HEADER) - 3)]
        for cells in told:
            rows.append([(text,) for text in (job.name, _overrides(job), *cells)])
    return markdown(Table("", HEADER, rows)) + "\n"


def _cells(found: "Training") -> list[str]:
    from cpu_grpo.report.tables import cost_texts
    from cpu_grpo.report.text import NOTHING, number

    reward = f"{number(found.reward_first, 3)} -> {number(found.reward_last, 3)}"
    return [found.variant, number(found.updates, 0), reward, *cost_texts(found), found.mlflow_run_id or NOTHING]


def _jobs(directory: Path) -> list[Path]:
    """The jobs' directories in the order of their numbers (10 after 9)."""
    found = [path for path in directory.iterdir() if path.is_dir() and path.name.isdecimal()]
    return sorted(found, key=lambda path: int(path.name))


def _overrides(job: Path) -> str:
    path = job / ".hydra" / "overrides.yaml"
    return " ".join(str(item) for item in OmegaConf.load(path)) if path.is_file() else ""
