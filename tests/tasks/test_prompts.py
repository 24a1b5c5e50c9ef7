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


# System prompts, templates and conversations


def test_a_system_prompt_comes_first(tokenizer, plain):
    task = Task(system="Be brief.", examples=EXAMPLES[:1])
    tokenizer.chat_template = "some"
    turns = prompt(PROBLEM, task, tokenizer)
    assert turns[0] == {"role": "system", "content": "Be brief."} and [turn["role"] for turn in turns[1:]] == [
        "user",
        "assistant",
        "user",
    ]
    tokenizer.chat_template = None
    assert prompt(PROBLEM, task, tokenizer).startswith("Be brief.\n\nQuestion: 2 + 3 =\nAnswer: 2 + 3 = 5\n\n")


def test_a_template_is_filled_in_once(tokenizer):
    task = Task(template="Q: {question} ({instruction}) {other}", instruction="in digits")
    asked = prompt(Problem("p", "What is {instruction}?", "2"), task, tokenizer)
    assert asked[-1]["content"] == "Q: What is {instruction}? (in digits) {other}"


def test_what_was_said_before_comes_between_the_examples_and_the_question(tokenizer):
    history = ({"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"})
    asked = prompt(Problem("p", "1 + 1 =", "2", history=history), Task(instruction="Go.", examples=EXAMPLES), tokenizer)
    assert [turn["content"] for turn in asked[4:]] == ["Hello", "Hi", "1 + 1 =\nGo."]


def test_a_problems_own_system_prompt_stands_for_the_tasks(tokenizer):
    history = ({"role": "system", "content": "Be verbose."}, {"role": "user", "content": "Hello"})
    asked = prompt(Problem("p", "1 + 1 =", "2", history=history), Task(system="Be brief."), tokenizer)
    assert [turn["content"] for turn in asked] == ["Be verbose.", "Hello", "1 + 1 ="]
