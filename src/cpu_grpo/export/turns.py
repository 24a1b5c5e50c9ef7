"""A chat template as plain turns, found by rendering it, and those turns as a template of Ollama's.

A chat template is a program (jinja), and Ollama's templates are another language's (Go's text/template). Most of the
programs do one thing: they write each message between two fixed texts of its role. What these are is read off a few
conversations; others must then come out as predicted, or the template counts as not understood.
"""

from dataclasses import dataclass
from typing import Any

ROLES = ("system", "user", "assistant")
MARKS = {"system": "\u25c7one\u25c7", "user": "\u25c7two\u25c7", "assistant": "\u25c7three\u25c7"}
Message = dict[str, str]


@dataclass(frozen=True)
class Turns:
    """What stands around a message, by its role."""

    begin: str  # before all turns
    before: dict[str, str]
    after: dict[str, str]
    prompt: str  # after all turns, where the answer is to begin
    system: str  # said by the template itself in a conversation without a system message

    def rendered(self, messages: list[Message]) -> str:
        """The conversation as a prompt."""
        if self.system and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.system}, *messages]
        turns = (self.before[m["role"]] + m["content"] + self.after[m["role"]] for m in messages)
        return self.begin + "".join(turns) + self.prompt


def turns_of(tokenizer: Any) -> Turns | None:
    """Of a tokenizer's chat template; None where there is none, or it does more than write turns."""
    if not tokenizer.chat_template:
        return None
    try:
        found = _read_off(tokenizer)
        return found if all(found.rendered(talk) == _render(tokenizer, talk) for talk in CONVERSATIONS) else None
    except Exception:  # a template may raise anything, on conversations that it does not allow
        return None


def _read_off(tokenizer: Any) -> Turns:
    """Raises ValueError where a part is not where it would be in turns."""
    system, user, assistant = ({"role": role, "content": MARKS[role]} for role in ROLES)
    start, asked, answered, again, prompt = _split(_render(tokenizer, [system, user, assistant, user]), "sutu")
    after_user = _split(_render(tokenizer, [system, user], answer=False), "su")[-1]
    after_assistant = _split(_render(tokenizer, [system, user, assistant], answer=False), "sut")[-1]
    before_user = _without(again, prefix=after_assistant)
    after = {"system": _without(asked, suffix=before_user), "user": after_user, "assistant": after_assistant}
    begin = tokenizer.bos_token or ""
    if not start.startswith(begin) or before_user.startswith(begin):  # some begin every turn with it
        begin = ""
    before = {"system": _without(start, prefix=begin), "user": before_user}
    before["assistant"] = _without(answered, prefix=after_user)
    alone = _without(_without(_split(_render(tokenizer, [user]), "u")[0], prefix=begin), suffix=before_user)
    said = _without(_without(alone, prefix=before["system"]), suffix=after["system"]) if alone else ""
    return Turns(begin, before, after, _without(prompt, prefix=after_user), said)


def _render(tokenizer: Any, messages: list[Message], answer: bool = True) -> str:
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer)
    return text


def _split(text: str, order: str) -> list[str]:
    """What stands around the marks, which must come in this order; `t` is the assistant's."""
    marks = {"s": MARKS["system"], "u": MARKS["user"], "t": MARKS["assistant"]}
    parts = []
    for letter in order:
        part, mark, text = text.partition(marks[letter])
        if not mark:
            raise ValueError("a message is missing")
        parts.append(part)
    return [*parts, text]


def _without(text: str, prefix: str = "", suffix: str = "") -> str:
    if not (text.startswith(prefix) and text.endswith(suffix)) or len(text) < len(prefix) + len(suffix):
        raise ValueError("a turn is not where it was")
    return text[len(prefix) : len(text) - len(suffix)]


def _talk(*contents: str) -> list[Message]:
    roles = ("user", "assistant") * len(contents)
    return [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]


_SYSTEM = [{"role": "system", "content": 'Answer in a\nfew "words".'}]
CONVERSATIONS = [
    _talk("What is 7 + 5?"),
    _SYSTEM + _talk("What is {{ 7 }}?\nAnd <b>?"),
    _talk("a", "b", "c", "d", "e"),
    _SYSTEM + _talk("What is it?", "It is 12.", "Sure?"),
]


def go_template(turns: Turns, add_bos: bool) -> str | None:
    """In Ollama's language; None where a text has what cannot be written in a Modelfile.

    Args:
        add_bos: the engine itself begins every text with the token for that.
    """
    branches = "".join(
        f'{{{{ {"else " * (place > 0)}if eq .Role "{role}" }}}}{_literal(turns.before[role])}'
        f"{{{{ .Content }}}}{_literal(turns.after[role])}"
        for place, role in enumerate(ROLES)
    )
    begin = "" if add_bos else _literal(turns.begin)
    text = f"{begin}{{{{ range .Messages }}}}{branches}{{{{ end }}}}{{{{ end }}}}{_literal(turns.prompt)}"
    return None if '"""' in text or '"""' in turns.system else text


def _literal(text: str) -> str:
    """Text as Go's templates write it."""
    return text.replace("{{", '{{ "{{" }}')
