"""The folders that stages write to and read from."""

from dataclasses import dataclass
from pathlib import Path

CACHE = Path("cache")  # models and problems made for runs outside the pipeline, by fingerprint of their configuration


@dataclass(frozen=True)
class Layout:
    """The folders below a root: the project's for the pipeline, a job's own directory otherwise."""

    root: Path

    def model(self, name: str) -> Path:
        return self.root / "models" / name

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def training(self) -> Path:
        return self.root / "results" / "train"

    @property
    def evaluation(self) -> Path:
        return self.root / "results" / "evaluate"

    def reward_faults(self, name: str) -> Path:
        return self.root / "reward_faults" / f"{name}.jsonl"
