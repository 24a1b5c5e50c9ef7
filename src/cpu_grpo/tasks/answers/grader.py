"""Finding the answer in a completion, and deciding whether it is right, as `task.answer` and `task.marks` say."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from cpu_grpo.tasks.answers import choice, mathematics, number, pattern, text
from cpu_grpo.tasks.answers.marks import count, marked


class Kind(Protocol):
    """A module of this folder: what one kind of answer is."""

    def read(self, text: str, /) -> str | None:
        """The answer in what stands behind a mark."""

    def search(self, completion: str, /) -> str | None:
        """The answer in a completion, marked or not."""

    def same(self, found: str, reference: str, /) -> bool:
        """Whether they are the same answer."""

    def only(self, text: str, /) -> bool:
        """Whether a text is an answer and nothing else."""

    def flaw(self, reference: str, /) -> str:
        """Why no answer can ever match a reference ("that is no number"); empty where one can."""


KINDS: dict[str, Kind] = {
    "number": number,
    "text": text,
    "choice": choice,
    "math": mathematics,
    "regex": pattern,
}
SLOW = ("math",)  # whose `same` and `flaw` may take for ever


@dataclass(frozen=True)
class Grader:
    """A kind of answer, one of KINDS, and the marks before it that count as strict, some of `marks.MARKS`."""

    kind: str = "number"
    marks: tuple[str, ...] = ("####",)

    def strict(self, completion: str) -> str | None:
        """The answer behind the last mark; None without one."""
        found = marked(completion, self.marks)
        return KINDS[self.kind].read(found[0]) if found else None

    def flexible(self, completion: str) -> str | None:
        """The answer wherever it most likely is: the last number, the last line, ...; None where there is nothing."""
        return KINDS[self.kind].search(completion)

    def same(self, found: str | None, accepted: Sequence[str]) -> bool:
        """Whether an extracted answer is one of those accepted. See SLOW."""
        return found is not None and any(KINDS[self.kind].same(found, reference) for reference in accepted)

    def well_formed(self, completion: str) -> bool:
        """Whether a completion has one mark, and ends in it and an answer."""
        found = marked(completion, self.marks)
        if found is None or count(completion, self.marks) != 1:
            return False
        answer, last = found
        return last and KINDS[self.kind].only(answer)

    def flaw(self, reference: str) -> str:
        """Why no answer can ever match a reference; empty where one can. See SLOW."""
        return KINDS[self.kind].flaw(reference)
