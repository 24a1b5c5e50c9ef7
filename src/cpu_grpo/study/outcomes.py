"""What is kept of a study's job: small enough to be committed, enough to compute every figure again."""

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from cpu_grpo.config.study_schema import StudyJob
from cpu_grpo.errors import UserError
from cpu_grpo.experiment.statistics import Interval, wilson
from cpu_grpo.files import fingerprint, read_jsonl, read_sealed, sealed, write_text


@dataclass(frozen=True)
class Marks:
    """How each problem of a split came out, in the problems' order."""

    problems: str  # fingerprint of their ids: two arms are paired where it is equal
    levels: list[int]  # the problems' difficulties
    right: str  # 1 or 0 for each
    strict: str = ""  # the same by each extraction; nothing in outcomes of before they were kept
    flexible: str = ""

    @property
    def accuracy(self) -> float:
        return self.right.count("1") / len(self.right)

    @property
    def interval(self) -> Interval:
        """Wilson's, of the accuracy."""
        return wilson(self.right.count("1"), len(self.right))

    def of_level(self, level: int) -> "Marks":
        """The same for problems of one difficulty."""
        places = [place for place, own in enumerate(self.levels) if own == level]
        return Marks(self.problems, [level] * len(places), "".join(self.right[place] for place in places))

    def by(self, extraction: str) -> "Marks":
        """The same where answers are found in that way."""
        return replace(self, right={"strict": self.strict, "flexible": self.flexible}[extraction])

    def first(self, n: int) -> "Marks":
        """The same for the first so many problems."""
        return Marks(self.problems, self.levels[:n], self.right[:n])


@dataclass(frozen=True)
class Outcome:
    """What one arm with one seed came to."""

    study: str
    budget: str
    arm: str
    seed: int
    job: str  # fingerprint of its commands: what other commands came to is not this job's
    commit: str
    hardware: str
    seconds: float  # of the whole job
    marks: dict[str, Marks]  # by split
    figures: dict[str, float] = field(default_factory=dict)  # of all training stages together
    runs: list[str] = field(default_factory=list)  # in MLflow
    values: dict[str, float] = field(default_factory=dict)  # of a search's trial, by key


def outcome_file(config: StudyJob, arm: str, seed: int) -> Path:
    return Path(config.results) / config.study.name / config.budget.name / f"{arm}-{seed}.json"


def read_marks(rows: Path) -> Marks:
    """From results/evaluate/<model>.jsonl."""
    found = read_jsonl(rows)
    return Marks(
        problems=fingerprint([row["id"] for row in found]),
        levels=[row["difficulty"] for row in found],
        **{
            name: "".join("1" if row[key] else "0" for row in found)
            for name, key in (("right", "right"), ("strict", "strict_right"), ("flexible", "flexible_right"))
        },
    )


def write_outcome(path: Path, outcome: Outcome) -> None:
    write_text(path, json.dumps(sealed(asdict(outcome)), ensure_ascii=False) + "\n")


def read_outcome(path: Path) -> Outcome | None:
    """None where there is none.

    Raises:
        UserError: the file is damaged.
    """
    if not path.is_file():
        return None
    try:
        found = read_sealed(path)
        marks = {split: Marks(**value) for split, value in found.pop("marks").items()}
        return Outcome(marks=marks, **found)
    except (UserError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is no outcome of a study ({error}): remove it, and run the study again.") from error


def read_outcomes(config: StudyJob) -> list[Outcome]:
    """What is there of the study's arms and the budget's seeds."""
    pairs = [(arm, seed) for seed in config.budget.seeds for arm in config.study.arms]
    found = (read_outcome(outcome_file(config, arm, seed)) for arm, seed in pairs)
    return [outcome for outcome in found if outcome]
