"""From a problem to the prompt's token ids, the same for training and evaluation."""

from typing import Any

from transformers import PreTrainedTokenizerBase

from cpu_grpo.tasks.problems import Problem

Message = dict[str, str]


def request(problem: Problem, instruction: str) -> str:
    """What the model is asked: the question, then the task's instruction on its own line."""
    return f"{problem.question}\n{instruction}" if instruction else problem.question


def prompt(problem: Problem, instruction: str, tokenizer: PreTrainedTokenizerBase) -> list[Message] | str:
    """The prompt in the form that TRL takes: one user message, or plain text for a model without a chat template."""
    content = request(problem, instruction)
    if tokenizer.chat_template:
        return [{"role": "user", "content": content}]
    return f"Question: {content}\nAnswer:"


def prompt_ids(text: list[Message] | str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of a prompt, ending where the completion starts."""
    if isinstance(text, str):
        return tokenizer(text)["input_ids"]
    encoded: Any = tokenizer.apply_chat_template(text, tokenize=True, add_generation_prompt=True, return_dict=True)
    return encoded["input_ids"]
