"""DVC's report stage: compares the models in tables, plots and a page to read."""

from pathlib import Path

from cpu_grpo.config import Pipeline, launch
from cpu_grpo.experiment import tracking
from cpu_grpo.report.render import write_report


def report(config: Pipeline, root: Path, pipeline_id: str) -> None:
    files = write_report(root, config, tracking.run_address(config.tracking))
    tracking.log_report(config, root, pipeline_id, files)
    print(f"The report is {root / 'reports' / 'report.html'}.")


if __name__ == "__main__":
    launch(report)
