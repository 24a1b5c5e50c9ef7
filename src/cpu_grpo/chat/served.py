"""A registered model as MLflow loads it: `mlflow.pyfunc.load_model("models:/NAME/VERSION").predict(["2 + 2?"])`.

MLflow takes this module by its name, which `experiment.store` writes into the model's record, and calls `_load_pyfunc`.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cpu_grpo.chat.models import named
from cpu_grpo.chat.speaker import Manner, Speaker, speakers
from cpu_grpo.engine.rollout import Sampling


class Served:
    """Answers questions, each in a conversation of its own."""

    def __init__(self, directory: Path) -> None:
        (self._speaker,) = speakers(named([str(directory)]), Manner(Sampling(temperature=0), 512, 0))

    def predict(self, questions: Any, params: dict[str, Any] | None = None) -> list[str]:
        """An answer for each question.

        Args:
            questions: texts, or a table with one column of them.
            params: max_tokens, temperature and seed, as the model's signature has them.
        """
        wanted = {"max_tokens": 512, "temperature": 0.0, "seed": 42} | (params or {})
        sampling = Sampling(float(wanted["temperature"]))
        self._speaker.manner = Manner(sampling, int(wanted["max_tokens"]), int(wanted["seed"]))
        return [_answered(self._speaker, question) for question in _texts(questions)]


def _load_pyfunc(directory: str) -> Served:
    """MLflow's entry."""
    return Served(Path(directory))


def _texts(questions: Any) -> Iterable[str]:
    return questions.iloc[:, 0] if hasattr(questions, "iloc") else questions


def _answered(speaker: Speaker, question: str) -> str:
    answer = speaker.answer(question)
    for _ in answer.pieces():
        pass
    return answer.text
