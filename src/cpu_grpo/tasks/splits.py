"""Drawing the train, validation and test problems of a task: seeded, within the prompt budget, sharing nothing."""

import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from cpu_grpo.config.schema import Example, Task
from cpu_grpo.errors import UserError
from cpu_grpo.tasks import sources
from cpu_grpo.tasks.problems import SPLITS, Problem
from cpu_grpo.text import shown

PromptLength = Callable[[Problem], int]  # a problem's prompt, in tokens
LONGEST_TOKEN = 1000  # characters: a question that no tokenizer could make short enough is not even given to one
TRIES_PER_PROBLEM = 60  # draws without a new problem, for each wanted, before a level counts as exhausted


@dataclass
class Drawn:
    """The problems of all splits, and how many were left out on the way."""

    problems: list[Problem] = field(default_factory=list)
    too_long: int = 0
    duplicates: int = 0


def draw(task: Task, seed: int, prompt_length: PromptLength) -> Drawn:
    """Draws `task.train`, `task.validation` and `task.test` problems, none of them a worked example of the prompt.

    Raises:
        UserError: a split cannot be filled, a level does not exist, or the file is at fault.
    """
    drawn = Drawn()
    generator = sources.GENERATORS.get(task.kind)
    if generator:
        _draw_generated(task, seed, prompt_length, generator, drawn)
    else:
        _draw_finite(task, seed, prompt_length, drawn)
    check_disjoint(drawn.problems)
    random.Random(seed).shuffle(drawn.problems)  # so that the first few of a split are of all levels
    drawn.problems.sort(key=lambda problem: (SPLITS.index(problem.split), sources.published_place(problem)))
    return drawn


def check_disjoint(problems: list[Problem]) -> None:
    """Raises UserError where two problems share an id or a question text."""
    _check_unique("id", [problem.id for problem in problems])
    _check_unique("question", [_text(problem) for problem in problems])


def _check_unique(what: str, values: list[str]) -> None:
    twice = [value for value, count in Counter(values).items() if count > 1]
    if twice:
        raise UserError(f"Two problems have the {what} {shown(twice[0])}: make it unique, or the splits would overlap.")


def _draw_generated(
    task: Task, seed: int, prompt_length: PromptLength, generator: sources.Generator, drawn: Drawn
) -> None:
    levels = task.levels or list(generator.levels)
    for place, level in enumerate(levels):
        if level not in generator.levels:
            known = ", ".join(map(str, generator.levels))
            raise UserError(f"task.levels={level} is not a level of {task.kind}: use {known}.")
        wanted = [split for split in SPLITS for _ in range(_share(getattr(task, split), len(levels), place))]
        random.Random(seed + level).shuffle(wanted)
        stream = generator.stream(seed * 1_000_003 + 100_000 * level, level)
        patience = TRIES_PER_PROBLEM * len(wanted)
        seen = {*map(_text, task.examples), *map(_text, drawn.problems)}
        found = _distinct(stream, level, len(wanted), patience, seen, _fits(task, prompt_length), drawn)
        if len(found) < len(wanted):
            raise UserError(
                f"Level {level} of {task.kind} has only {len(found)} distinct problems within task.max_prompt_length "
                f"and the splits ask for {len(wanted)}: lower task.train, task.validation or task.test, or add levels."
            )
        drawn.problems += [replace(problem, split=split) for problem, split in zip(found, wanted, strict=True)]


def _distinct(
    stream: Iterable[Problem],
    level: int,
    wanted: int,
    patience: int,
    seen: set[str],
    fits: Callable[[Problem], bool],
    drawn: Drawn,
) -> list[Problem]:
    """The stream's first `wanted` new problems of the level that fit; fewer when it goes on repeating itself."""
    found: list[Problem] = []
    idle = 0
    for problem in stream:
        if len(found) == wanted or idle == patience:
            break
        idle += 1
        if problem.difficulty != level:
            continue
        if _text(problem) in seen:
            drawn.duplicates += 1
            continue
        seen.add(_text(problem))
        if not fits(problem):
            drawn.too_long += 1
            continue
        found.append(problem)
        idle = 0
    return found


def _draw_finite(task: Task, seed: int, prompt_length: PromptLength, drawn: Drawn) -> None:
    """Fills the splits from a file or data set: problems marked with a split stay there, others go where needed."""
    problems = sources.gsm8k(task) if task.kind == "gsm8k" else sources.jsonl(task)
    _check_unique("id", [problem.id for problem in problems])
    random.Random(seed).shuffle(problems)
    problems.sort(key=sources.published_place)
    fits, usable = _fits(task, prompt_length), []
    seen = {_text(example) for example in task.examples}
    for problem in problems:
        if task.levels and problem.difficulty not in task.levels:
            continue
        if _text(problem) in seen:
            drawn.duplicates += 1
        elif not fits(problem):
            drawn.too_long += 1
        else:
            usable.append(problem)
        seen.add(_text(problem))
    for split in SPLITS:
        own = [problem for problem in usable if problem.split == split]
        # GSM8K has no validation split: it is cut from train, behind the training problems.
        free = [p for p in usable if p.split == ("train" if task.kind == "gsm8k" and split == "validation" else "")]
        wanted = getattr(task, split)
        chosen = (own + free)[:wanted]
        if len(chosen) < wanted:
            raise UserError(
                f"task.{split}={wanted} asks for more than the {len(chosen)} problems left for that split (of "
                f"{len(problems)}; {drawn.too_long} too long, {drawn.duplicates} repeated): lower it or add problems."
            )
        taken = {problem.id for problem in chosen}
        usable = [problem for problem in usable if problem.id not in taken]
        drawn.problems += [replace(problem, split=split) for problem in chosen]


def _share(total: int, parts: int, place: int) -> int:
    return total // parts + (place < total % parts)


def _fits(task: Task, prompt_length: PromptLength) -> Callable[[Problem], bool]:
    most = LONGEST_TOKEN * task.max_prompt_length
    return lambda problem: len(_said(problem)) <= most and prompt_length(problem) <= task.max_prompt_length


def _text(problem: Problem | Example) -> str:
    """A question's text, and what was said before it, as far as it tells two questions apart."""
    return " ".join((_said(problem) if isinstance(problem, Problem) else problem.question).casefold().split())


def _said(problem: Problem) -> str:
    """The whole conversation, the question last."""
    return "\n".join([*(turn["content"] for turn in problem.history), problem.question])
