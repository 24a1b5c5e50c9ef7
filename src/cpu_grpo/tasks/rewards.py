"""Reward components over completions: each a small function, each logged, summed by weight.

TRL calls a reward function with lists as long as the batch and expects one number for each completion. The components
`keywords`, `digits` and `length` are the published study's reward, kept so that its recipes can be run; they never look
at the answer.
"""

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from cpu_grpo.tasks.answers import MAX_TEXT, flexible, is_number, number, same

if TYPE_CHECKING:  # the process that computes rewards imports this file, and would be thrice as large with Hydra
    from cpu_grpo.config.schema import Rewards

RewardFunction = Callable[..., Sequence[float | None]]

KEYWORDS = ("first", "then", "next", "because", "therefore", "so", "step", "total", "answer", "calculate")
LENGTH_FULL = 50  # words that earn the whole length reward
_FORMAT = re.compile(r"####[ \t]*[-+\u2212]?[$€£]?(?:[\d,]*(?<=\d)|[\d,]*\.\d+)(?: ?/ ?\d+)?%?\.?\s*\Z", re.ASCII)


def correct(completion: str, answer: str) -> float:
    """1 if the last number of the completion equals the reference answer."""
    return float(same(flexible(completion), answer))


def closeness(completion: str, answer: str) -> float:
    """1 / (1 + distance) of the completion's last number from the reference answer; 0 where either is no number."""
    text = flexible(completion)
    found = number(text) if text is not None else None
    wanted = number(answer) if is_number(answer) else None
    return 0.0 if found is None or wanted is None else float(1 / (1 + abs(found - wanted)))


def format(completion: str, answer: str) -> float:
    """1 if the completion has one `####` and ends in it and a number."""
    tail = completion[-MAX_TEXT:]
    return float(tail.count("####") == 1 and bool(_FORMAT.search(tail)))


def keywords(completion: str, answer: str) -> float:
    """Share of the study's ten reasoning words that occur."""
    words = set(re.findall(r"[a-z]+", completion[-MAX_TEXT:].lower()))
    return sum(word in words for word in KEYWORDS) / len(KEYWORDS)


def digits(completion: str, answer: str) -> float:
    """1 if there is any digit."""
    return float(any(character.isdigit() for character in completion[-MAX_TEXT:]))


def length(completion: str, answer: str) -> float:
    """Words over LENGTH_FULL, at most 1."""
    return min(len(completion[-MAX_TEXT:].split()) / LENGTH_FULL, 1.0)


COMPONENTS = {
    "correct": correct,
    "closeness": closeness,
    "format": format,
    "keywords": keywords,
    "digits": digits,
    "length": length,
}
ALWAYS_LOGGED = ("correct", "format")  # at weight 0 too: a reader wants to know what a reward left out


def chosen(rewards: "Rewards") -> dict[str, float]:
    """The weights, by name, of what a run computes: whatever has one, what is always logged, and the user's own."""
    weights = rewards.weights()
    return {
        name: weight for name, weight in weights.items() if weight or name in ALWAYS_LOGGED or name not in COMPONENTS
    }


def reward_functions(rewards: "Rewards") -> tuple[list[RewardFunction], list[float]]:
    """TRL's `reward_funcs` and `reward_weights` of the chosen components, computed where they are called."""
    weights = {name: weight for name, weight in chosen(rewards).items() if name in COMPONENTS}
    return [batched(name) for name in weights], list(weights.values())


def text_of(completion: str | Sequence[dict[str, Any]]) -> str:
    """A completion's text, whether TRL passes it plain or as a message."""
    return completion if isinstance(completion, str) else completion[0]["content"]


def batched(name: str) -> RewardFunction:
    """A component as TRL calls reward functions."""
    component = COMPONENTS[name]

    def function(completions: list[Any], answer: list[str], **columns: Any) -> list[float]:
        # TRL passes every column of the data set besides these; a component needs none of them.
        return [component(text_of(completion), right) for completion, right in zip(completions, answer, strict=True)]

    function.__name__ = name  # TRL names the logged metric after the function
    return function
