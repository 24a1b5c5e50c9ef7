"""From a problem to the prompt's token ids, the same for training and evaluation."""

import re
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from transformers import PreTrainedTokenizerBase

from cpu_grpo.config.schema import Example, Task
from cpu_grpo.errors import UserError
from cpu_grpo.tasks.problems import Message, Problem
from cpu_grpo.text import one_line

# A conversation for a model that knows none.
PLAIN = {"system": "{}\n\n", "user": "Question: {}\n", "assistant": "Answer: {}\n\n"}


FORM = ("name", "system", "template", "instruction", "examples")  # what of a task decides how a question is asked


def form(task: Task) -> dict[str, Any]:
    """How the task asks, as a JSON-like value to be kept with a model that learnt it so."""
    told = asdict(task)
    return {name: told[name] for name in FORM}


def task_of(kept: Any) -> Task | None:
    """A task that asks as `form` has told; None where this is nothing that it tells."""
    try:
        examples = [Example(**example) for example in kept["examples"]]
        texts = {name: kept[name] for name in FORM if name != "examples"}
    except (TypeError, KeyError):
        return None
    told = [*texts.values(), *(text for example in examples for text in (example.question, example.answer))]
    return Task(**texts, examples=examples) if all(isinstance(text, str) for text in told) else None


def request(question: str, task: Task) -> str:
    """What the model is asked: the task's template filled in, or the question with the instruction on its own line."""
    template = task.template or ("{question}\n{instruction}" if task.instruction else "{question}")
    # In one pass, as a question may hold either name.
    parts = {"{question}": question, "{instruction}": task.instruction}
    return re.sub(r"\{question\}|\{instruction\}", lambda found: parts[found[0]], template)


def prompt(problem: Problem, task: Task, tokenizer: PreTrainedTokenizerBase) -> list[Message] | str:
    """The prompt in the form that TRL takes: a conversation, or plain text for a model without a chat template.

    A system prompt comes first (the problem's own, or the task's), then the task's worked examples, each a question of
    the user and an answer of the assistant, then what was said before the question.
    """
    return conversation(problem.question, problem.history, task, tokenizer)


def conversation(
    question: str, said: Iterable[Message], task: Task, tokenizer: PreTrainedTokenizerBase
) -> list[Message] | str:
    """The same of a question that no problem asks, and the turns before it, which are taken as they are."""
    turns = [turn for example in task.examples for turn in _example(example, task)]
    history = list(said)
    system = [history.pop(0)] if history and history[0]["role"] == "system" else []
    if not system and task.system:
        system = [{"role": "system", "content": task.system}]
    turns = [*system, *turns, *history, {"role": "user", "content": request(question, task)}]
    if tokenizer.chat_template:
        return turns
    return "".join(PLAIN[turn["role"]].format(turn["content"]) for turn in turns) + "Answer:"


def _example(example: Example, task: Task) -> list[Message]:
    return [
        {"role": "user", "content": request(example.question, task)},
        {"role": "assistant", "content": example.answer},
    ]


def prompt_ids(text: list[Message] | str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of a prompt, ending where the completion starts.

    Raises:
        UserError: the model's chat template fails on it.
    """
    if isinstance(text, str):
        return tokenizer(text)["input_ids"]
    try:
        encoded: Any = tokenizer.apply_chat_template(text, tokenize=True, add_generation_prompt=True, return_dict=True)
    except Exception as error:  # a template is a program, which fails as programs do
        raise UserError(
            f"The model's chat template fails on a question ({one_line(str(error), 200)}): mend its "
            "chat_template.jinja, or take another model."
        ) from error
    return encoded["input_ids"]
