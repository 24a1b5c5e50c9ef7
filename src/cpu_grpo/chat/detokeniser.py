"""Tokens that come one by one as text that can be shown at once."""

from typing import Any

from cpu_grpo.text import visible

OPEN = "\ufffd\r"  # ends of a text that the next token may change: half a character, and half a line's end


class Detokeniser:
    """Turns tokens into pieces of text, which together are the text of all tokens, made safe to show.

    A character may take several tokens, and what a tokenizer makes of a token may depend on those before it: all are
    decoded anew each time, and what cannot change any more is given out.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._given = 0  # characters

    @property
    def text(self) -> str:
        """Of all tokens, as the tokenizer has it."""
        return self._tokenizer.decode(self._ids, skip_special_tokens=True)

    def add(self, token: int) -> str:
        """The piece that this token completes; empty where a character is still open."""
        self._ids.append(token)
        return self._give(self.text.rstrip(OPEN))

    def end(self) -> str:
        """What is left once there are no more tokens."""
        return self._give(self.text)

    def _give(self, text: str) -> str:
        piece, self._given = text[self._given :], max(self._given, len(text))
        return visible(piece)
