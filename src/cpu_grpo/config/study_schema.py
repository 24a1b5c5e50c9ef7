"""Every key of a study's configuration, as in schema.py: what is asked, by which runs, and what they may cost."""

from dataclasses import dataclass, field

from cpu_grpo.config.schema import OUTCOMES, option


@dataclass
class Range:
    """Values that a search may try: one of the choices, or what lies between two bounds."""

    low: float = option(0.0, "the least")
    high: float = option(1.0, "the most")
    log: bool = option(False, "whether factors count, not differences")
    choices: list[float] = option([], "these values alone")


@dataclass
class Axis:
    """A quantity by which some arms of a study differ, and what is expected to grow with it."""

    figure: str = option(
        "update_seconds", "what grows, besides peak memory", choices=("update_seconds", "train_seconds")
    )
    arms: dict[str, float] = field(default_factory=dict)  # how much of the quantity each has


@dataclass
class Published:
    """What others have reported of arms of the same names."""

    of: str = option("", "who, of which model and on what machine")
    problems: int = option(0, "how many problems each was evaluated on; 0: nothing was reported", low=0)
    right: dict[str, int] = field(default_factory=dict)  # by arm: how many of them were solved
    completions_per_second: dict[str, float] = field(default_factory=dict)  # by arm
    wall_seconds: dict[str, float] = field(default_factory=dict)  # by arm
    cpu_use: dict[str, float] = field(default_factory=dict)  # by arm: share of the cores' time


@dataclass
class Forgetting:
    """What an arm's later training stages may undo of the first: accuracy on the problems of one difficulty."""

    level: int = option(0, "the difficulty; 0: nothing is asked", low=0)
    before: str = option("", "the arm that stops after the first stages")
    after: str = option("", "the arm that goes on from it")


@dataclass
class Study:
    """A question, and the arms whose comparison answers it."""

    name: str = option("", "the study's name, and its results' folder", form="name")
    question: str = option("", "what it asks, in a sentence")
    method: str = option("", "how it is answered, in two sentences")
    arms: dict[str, list[str]] = field(default_factory=dict)  # by name: keys of conf/train.yaml for each training stage
    common: str = option("", "keys of conf/train.yaml for every stage of every arm")
    task: str = option("", "keys of conf/shared.yaml for every training and evaluation, such as the task's")
    asks: dict[str, str] = field(default_factory=dict)  # by arm: such keys above `task`'s, as for another prompt
    same_problems: bool = option(False, "all seeds answer the same test problems, as where a test split is published")
    extractions: list[str] = option(
        [],
        "ways to find an answer whose accuracies are compared beside each other; empty: the task's own alone",
        choices=("strict", "flexible"),
    )
    reference: str = option("base", "the arm that the others are compared with")
    splits: list[str] = option(["test"], "which problems an arm is evaluated on after its last stage")
    search: dict[str, Range] = field(default_factory=dict)  # by key of conf/train.yaml: each seed is a trial
    axes: dict[str, Axis] = field(default_factory=dict)  # by the quantity's name: costs are fitted over it
    published: Published = field(default_factory=Published)
    forgetting: Forgetting = field(default_factory=Forgetting)
    faster_by_name: list[list[str]] = option([], "arms whose names promise that each is faster than the one before it")
    trials_at_random: int = option(8, "search: trials before the first that learns from others", low=1)
    seeds: list[int] = option(
        [1, 2, 3], "a run of each arm for each, with problems and random numbers of its own", low=0
    )


@dataclass
class Budget:
    """How much a study may cost."""

    name: str = option("", "the budget's name, and its results' folder", form="name")
    seeds: list[int] = option([1], "which seeds are run", low=0)
    training: str = option("", "keys of conf/train.yaml for every stage of every arm, above the study's own")
    problems: int = option(0, "only the first so many problems of an evaluation; 0: all", low=0)


@dataclass
class StudyJob:
    """conf/study.yaml: one arm of a study with one seed, a job of the study's multirun."""

    study: Study = field(default_factory=Study)
    budget: Budget = field(default_factory=Budget)
    arm: str = option("", "which of the study's arms", form="name")
    seed: int = option(1, "of problems, training and evaluation", low=0, high=2**31 - 1)
    results: str = option(OUTCOMES, "where outcomes are kept; what is there is not run again")
    also: str = option("", "further keys of conf/shared.yaml for every training and evaluation, such as a model's")
