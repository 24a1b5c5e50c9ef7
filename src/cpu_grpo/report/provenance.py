"""Where the report's numbers come from."""

import platform
from importlib.metadata import PackageNotFoundError, version

from cpu_grpo.config.schema import Pipeline
from cpu_grpo.hardware import cpu_name
from cpu_grpo.report.findings import Row
from cpu_grpo.report.results import Results
from cpu_grpo.report.tables import Table
from cpu_grpo.report.text import NOT_RUN, NOTHING
from cpu_grpo.tracking import git_commit

PACKAGES = ("torch", "transformers", "trl")


def provenance_table(rows: list[Row], results: Results, config: Pipeline) -> Table:
    """Model, seed, runs, versions and machine."""
    lines = [
        ("Base model", f"{config.model.name}, from {results.source.get('origin', NOTHING)}"),
        ("Revision", str(results.source.get("revision") or NOTHING)),
        *((f"SHA-256 of {name}", digest) for name, digest in _weights(results)),
        ("Seed", str(config.seed)),
        *((f"MLflow runs of {row.name}", _runs(row)) for row in rows),
        *((f"Numerics of {row.name}", _numerics(row)) for row in rows if row.training),
        (
            "Versions",
            ", ".join(f"{name} {_version(name)}" for name in PACKAGES) + f", Python {platform.python_version()}",
        ),
        ("CPU where this report was made", cpu_name() or NOTHING),
        ("Git commit (+: with changes)", git_commit()),
    ]
    return Table("Where the numbers come from.", ["What", "Value"], [[(name,), (value,)] for name, value in lines])


def _weights(results: Results) -> list[tuple[str, str]]:
    hashes = results.source.get("sha256", {})
    return [(name, str(digest)) for name, digest in hashes.items() if name.endswith(".safetensors")]


def _runs(row: Row) -> str:
    stages = [("training", row.training), ("evaluation", row.evaluation)]
    told = [f"{stage} {found.mlflow_run_id or NOTHING}" for stage, found in stages if found]
    return ", ".join(told) or NOT_RUN


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
