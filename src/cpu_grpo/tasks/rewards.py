"""Reward components over completions: each a small function, each logged, summed by weight.

TRL calls a reward function with lists as long as the batch and expects one number for each completion. The components
`keywords`, `digits` and `length` are the published study's reward, kept so that its recipes can be run; they never look
at the answer.
"""

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from cpu_grpo.tasks.answers import number
from cpu_grpo.tasks.answers.grader import Grader
from cpu_grpo.tasks.answers.marks import MAX_TEXT

if TYPE_CHECKING:  # the process that computes rewards imports this file, and would be thrice as large with Hydra
    from cpu_grpo.config.schema import Rewards

NUMBERS = Grader()
RewardFunction = Callable[..., Sequence[float | None]]

KEYWORDS = ("first", "then", "next", "because", "therefore", "so", "step", "total", "answer", "calculate")
LENGTH_FULL = 50  # words that earn the whole length reward
SHORT, LONG = 600, 1000  # characters up to which a right answer is concise, and from which on it is not at all


def correct(completion: str, accepted: list[str], grader: Grader) -> float:
    """1 if the answer, wherever it stands, is right."""
    return float(grader.same(grader.flexible(completion), accepted))


def strict(completion: str, accepted: list[str], grader: Grader) -> float:
    """1 if the answer behind the task's mark is right."""
    return float(grader.same(grader.strict(completion), accepted))


def closeness(completion: str, accepted: list[str], grader: Grader) -> float:
    """1 / (1 + distance) of the completion's last number from the nearest reference; 0 where either is no number."""
    text = number.search(completion)
    found = number.number(text) if text is not None else None
    wanted = [value for own in accepted if number.is_number(own) and (value := number.number(own)) is not None]
    return 0.0 if found is None or not wanted else float(1 / (1 + min(abs(found - value) for value in wanted)))


def format(completion: str, accepted: list[str], grader: Grader) -> float:
    """1 if the completion has one of the task's marks, once, and ends in it and an answer."""
    return float(grader.well_formed(completion))


def concise(completion: str, accepted: list[str], grader: Grader) -> float:
    """Of a right answer, 1 up to SHORT characters, falling to 0 at LONG; 0 of others.

    As the soft punishment of DAPO (Yu et al. 2025, section 3.4) it leaves alone what is short enough: paid by the
    character, models stop to reason. Being short alone earns nothing.
    """
    return correct(completion, accepted, grader) * min(1.0, max(0.0, (LONG - len(completion)) / (LONG - SHORT)))


def keywords(completion: str, accepted: list[str], grader: Grader) -> float:
    """Share of the study's ten reasoning words that occur."""
    words = set(re.findall(r"[a-z]+", completion[-MAX_TEXT:].lower()))
    return sum(word in words for word in KEYWORDS) / len(KEYWORDS)


def digits(completion: str, accepted: list[str], grader: Grader) -> float:
    """1 if there is any digit."""
    return float(any(character.isdigit() for character in completion[-MAX_TEXT:]))


def length(completion: str, accepted: list[str], grader: Grader) -> float:
    """Words over LENGTH_FULL, at most 1."""
    return min(len(completion[-MAX_TEXT:].split()) / LENGTH_FULL, 1.0)


COMPONENTS = {
    "correct": correct,
    "strict": strict,
    "closeness": closeness,
    "format": format,
    "concise": concise,
    "keywords": keywords,
    "digits": digits,
    "length": length,
}
SAME, READABLE = "same answer", "readable answer"  # no names of functions, so that none of the user's can have them
ALWAYS_LOGGED = ("correct", "format")  # at weight 0 too: a reader wants to know what a reward left out


def chosen(rewards: "Rewards") -> dict[str, float]:
    """The weights, by name, of what a run computes: whatever has one, what is always logged, and the user's own."""
    weights = rewards.weights()
    return {
        name: weight for name, weight in weights.items() if weight or name in ALWAYS_LOGGED or name not in COMPONENTS
    }


def judgements(grader: Grader) -> dict[str, RewardFunction]:
    """What a judge asks: of extracted answers whether each is right, of references whether each can be matched."""

    def same(completions: list[str | None], accepted: list[list[str]]) -> list[float]:
        return [float(grader.same(own, right)) for own, right in zip(completions, accepted, strict=True)]

    def readable(completions: list[str]) -> list[float]:
        return [float(not grader.flaw(reference)) for reference in completions]

    return {SAME: same, READABLE: readable}


def reward_functions(rewards: "Rewards", grader: Grader = NUMBERS) -> tuple[list[RewardFunction], list[float]]:
    """TRL's `reward_funcs` and `reward_weights` of the chosen components, computed where they are called."""
    weights = {name: weight for name, weight in chosen(rewards).items() if name in COMPONENTS}
    return [batched(name, grader) for name in weights], list(weights.values())


def text_of(completion: str | Sequence[dict[str, Any]]) -> str:
    """A completion's text, whether TRL passes it plain or as a message."""
    return completion if isinstance(completion, str) else completion[0]["content"]


def batched(name: str, grader: Grader = NUMBERS) -> RewardFunction:
    """A component as TRL calls reward functions."""
    component = COMPONENTS[name]

    def function(completions: list[Any], accepted: list[list[str]], **columns: Any) -> list[float]:
        # TRL passes every column of the data set besides these; a component needs none of them.
        return [component(text_of(own), right, grader) for own, right in zip(completions, accepted, strict=True)]

    function.__name__ = name  # TRL names the logged metric after the function
    return function
