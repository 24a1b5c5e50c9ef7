"""A conversation with a model: questions go in, answers come out token by token."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from cpu_grpo.chat.detokeniser import Detokeniser
from cpu_grpo.chat.models import Named, require_memory
from cpu_grpo.config.schema import Hardware, Task
from cpu_grpo.engine.decoder import UnsupportedModel, decoder
from cpu_grpo.engine.rollout import NoDistribution, PackedDecoder, Sampling, packed, stream
from cpu_grpo.errors import UserError
from cpu_grpo.experiment.candidate import end_tokens
from cpu_grpo.hardware import DTYPES, setup
from cpu_grpo.models.loading import load_model
from cpu_grpo.tasks.problems import Message
from cpu_grpo.tasks.prompts import conversation, prompt_ids, request


@dataclass(frozen=True)
class Manner:
    """How answers are drawn."""

    sampling: Sampling
    limit: int  # tokens of an answer
    seed: int


class Answer:
    """An answer in the making: reading its pieces of text computes it.

    Attributes:
        ids: its tokens so far, the end token included.
    """

    def __init__(self, name: str, tokens: Iterator[int], detokeniser: Detokeniser, ends: set[int]) -> None:
        self.name, self.ids = name, list[int]()
        self._tokens, self._detokeniser, self._ends = tokens, detokeniser, ends

    @property
    def text(self) -> str:
        """As far as it has been read, as evaluation has it."""
        return self._detokeniser.text

    @property
    def cut_off(self) -> bool:
        """Whether its last token does not end it."""
        return not self.ids or self.ids[-1] not in self._ends

    def pieces(self) -> Iterator[str]:
        """The text, safe to show: a piece a token, which may be empty."""
        try:
            for token in self._tokens:
                self.ids.append(token)
                yield self._detokeniser.add(token)
        except NoDistribution as error:
            raise UserError(
                f"The weights of {self.name} yield no numbers (NaN or infinity), so it cannot answer: train it again."
            ) from error
        yield self._detokeniser.end()


@dataclass
class Speaker:
    """A model in memory, and what was said so far."""

    name: str
    engine: PackedDecoder
    tokenizer: Any
    ends: set[int]
    positions: int  # tokens that the model can tell apart
    task: Task  # how it is asked
    manner: Manner
    said: list[Message] = field(default_factory=list)

    def answer(self, question: str) -> Answer:
        """The answer to a question after what was said.

        Raises:
            UserError: the conversation is too long for the model, or its chat template fails.
        """
        prompt = prompt_ids(conversation(question, self.said, self.task, self.tokenizer), self.tokenizer)
        room = self.positions - len(prompt)
        if room < 1:
            raise UserError(
                f"The conversation has {len(prompt):,} tokens and {self.name} takes {self.positions:,}: begin a new "
                "one (/reset), or ask for less."
            )
        limit = min(self.manner.limit, room)
        tokens = stream(self.engine, prompt, self.manner.sampling, limit, self.ends, self.manner.seed)
        return Answer(self.name, tokens, Detokeniser(self.tokenizer), self.ends)

    def remember(self, question: str, answer: Answer) -> None:
        """Makes a question and what has been read of its answer part of the conversation."""
        self.said += [
            {"role": "user", "content": request(question, self.task)},
            {"role": "assistant", "content": answer.text},
        ]

    def forget(self) -> None:
        """Begins a new conversation."""
        self.said.clear()


def speakers(models: list[Named], manner: Manner) -> list[Speaker]:
    """The models, loaded in the precision in which evaluation would ask them.

    Raises:
        UserError: they do not fit in memory together, or the engine does not know one of them.
    """
    precision = setup(Hardware()).precision
    require_memory([model.directory for model in models], manner.limit, DTYPES[precision].itemsize)
    return [_speaker(model, manner, precision) for model in models]


def _speaker(asked: Named, manner: Manner, precision: str) -> Speaker:
    model, tokenizer = load_model(asked.directory, DTYPES[precision])
    try:
        engine = packed(decoder(model), precision, 1, shared=True)
    except UnsupportedModel as error:
        raise UserError(
            f"{asked.name} cannot be asked here, as the rollout engine does not compute its kind ({error}): take a "
            "model that it knows."
        ) from error
    positions = getattr(model.config, "max_position_embeddings", None) or 2**31
    ends = end_tokens(model, tokenizer)
    return Speaker(asked.name, engine, tokenizer, ends, positions, asked.task, manner)
