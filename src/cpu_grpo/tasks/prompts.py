"""From a problem to the prompt's token ids, the same for training and evaluation."""

from typing import Any

from transformers import PreTrainedTokenizerBase

from cpu_grpo.config.schema import Task
from cpu_grpo.errors import UserError
from cpu_grpo.tasks.problems import Problem
from cpu_grpo.text import one_line

Message = dict[str, str]


def request(question: str, instruction: str) -> str:
    """What the model is asked: the question, then the task's instruction on its own line."""
    return f"{question}\n{instruction}" if instruction else question


def prompt(problem: Problem, task: Task, tokenizer: PreTrainedTokenizerBase) -> list[Message] | str:
    """The prompt in the form that TRL takes: a conversation, or plain text for a model without a chat template.

    The task's worked examples come first, each a question of the user and an answer of the assistant.
    """
    shown = [(request(example.question, task.instruction), example.answer) for example in task.examples]
    content = request(problem.question, task.instruction)
    if tokenizer.chat_template:
        turns = [turn for question, answer in shown for turn in (_turn("user", question), _turn("assistant", answer))]
        return [*turns, _turn("user", content)]
    before = "".join(f"Question: {question}\nAnswer: {answer}\n\n" for question, answer in shown)
    return f"{before}Question: {content}\nAnswer:"


def _turn(role: str, content: str) -> Message:
    return {"role": role, "content": content}


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
