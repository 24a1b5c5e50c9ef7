"""Where the report's numbers come from."""

import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from cpu_grpo.config.schema import Pipeline
from cpu_grpo.experiment.tracking import git_commit
from cpu_grpo.hardware import cpu_name
from cpu_grpo.report.findings import Row
from cpu_grpo.report.results import Results
from cpu_grpo.report.tables import Cell, Link, Table, nowhere
from cpu_grpo.report.text import NOT_RUN, NOTHING

PACKAGES = ("torch", "transformers", "trl")


def provenance_table(
    rows: list[Row], results: Results, config: Pipeline, address: Callable[[str], str] = nowhere
) -> Table:
    """Model, seed, files, runs, versions and machine.

    Args:
        address: of an MLflow run, by its id; empty where it is not known.
    """
    lines: list[tuple[str, str | Cell]] = [
        ("Base model", f"{config.model.name}, from {results.source.get('origin', NOTHING)}"),
        ("Revision", str(results.source.get("revision") or NOTHING)),
        *((f"SHA-256 of {name}", digest) for name, digest in _weights(results)),
        ("Seed", str(config.seed)),
        *((f"Files of {row.name}", _files(row)) for row in rows),
        *((f"MLflow runs of {row.name}", _runs(row, address)) for row in rows),
        *((f"Numerics of {row.name}", _numerics(row)) for row in rows if row.training),
        (
            "Versions",
            ", ".join(f"{name} {_version(name)}" for name in PACKAGES) + f", Python {platform.python_version()}",
        ),
        ("CPU where this report was made", cpu_name() or NOTHING),
        ("Git commit (+: with changes)", git_commit()),
    ]
    return Table("Where the numbers come from.", ["What", "Value"], [[(name,), _cell(value)] for name, value in lines])


def _cell(value: str | Cell) -> Cell:
    return (value,) if isinstance(value, str) else value


def _weights(results: Results) -> list[tuple[str, str]]:
    hashes = results.source.get("sha256", {})
    return [(name, str(digest)) for name, digest in hashes.items() if name.endswith(".safetensors")]


def _files(row: Row) -> Cell:
    files = [f"results/train/{row.name}{end}" for end in (".json", ".csv", ".samples.jsonl") if row.training]
    files += [f"results/evaluate/{Path(row.name).name}{end}" for end in (".json", ".jsonl") if row.evaluation]
    return tuple(Link(file, f"../{file}") for file in files) or (NOT_RUN,)


def _runs(row: Row, address: Callable[[str], str]) -> Cell:
    stages = [("training", row.training), ("evaluation", row.evaluation)]
    ids = [(stage, found.mlflow_run_id) for stage, found in stages if found]
    return tuple(Link(f"{stage} {run or NOTHING}", address(run) if run else "") for stage, run in ids) or (NOT_RUN,)


def _numerics(row: Row) -> str:
    found = row.training
    if found is None:
        return NOT_RUN
    parts = [("", found.precision), ("threads ", found.threads), ("seed ", found.seed)]
    return ", ".join(f"{name}{value}" for name, value in parts if value is not None) or NOTHING


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
