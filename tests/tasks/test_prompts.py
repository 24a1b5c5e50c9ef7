"""Prompts: a conversation or plain text, with the task's worked examples before the question."""

import pytest

from cpu_grpo.config.schema import Example, Task
from cpu_grpo.tasks.problems import Problem
from cpu_grpo.tasks.prompts import prompt, prompt_ids

PROBLEM = Problem("p", "1 + 1 =", "2")
EXAMPLES = [Example("2 + 3 =", "2 + 3 = 5"), Example("4 - 1 =", "4 - 1 = 3")]


@pytest.fixture
def plain(tokenizer, monkeypatch):
    """A tokenizer without a chat template."""
    monkeypatch.setattr(tokenizer, "chat_template", None)
    return tokenizer


def test_without_examples_the_question_is_the_one_turn(tokenizer):
    assert prompt(PROBLEM, Task(), tokenizer) == [{"role": "user", "content": "1 + 1 ="}]


def test_examples_are_earlier_turns_and_asked_as_the_question_is(tokenizer):
    task = Task(instruction="Answer.", examples=EXAMPLES)
    assert prompt(PROBLEM, task, tokenizer) == [
        {"role": "user", "content": "2 + 3 =\nAnswer."},
        {"role": "assistant", "content": "2 + 3 = 5"},
        {"role": "user", "content": "4 - 1 =\nAnswer."},
        {"role": "assistant", "content": "4 - 1 = 3"},
        {"role": "user", "content": "1 + 1 =\nAnswer."},
    ]


def test_without_a_chat_template_examples_are_text_before_the_question(plain):
    assert prompt(PROBLEM, Task(examples=EXAMPLES), plain) == (
        "Question: 2 + 3 =\nAnswer: 2 + 3 = 5\n\nQuestion: 4 - 1 =\nAnswer: 4 - 1 = 3\n\nQuestion: 1 + 1 =\nAnswer:"
    )


def test_all_prompts_of_a_task_begin_with_the_same_tokens(tokenizer):
    task = Task(examples=EXAMPLES)
    one, other = (
        tokenizer.decode(prompt_ids(prompt(Problem("p", text, "2"), task, tokenizer), tokenizer))
        for text in ("1 + 1 =", "7 - 5 =")
    )
    before, _, _ = one.rpartition("1 + 1 =")
    assert before.endswith("4 - 1 = 3<|im_end|>\n<|im_start|>user\n") and other.startswith(before)
