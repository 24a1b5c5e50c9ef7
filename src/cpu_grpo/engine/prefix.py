"""What prompts have in common: a chat template's system prompt, the fixed words of a task. It is computed once."""

from collections.abc import Sequence


def common_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all prompts begin with, short of any prompt's last token; 0 if there is one prompt only."""
    if len(prompts) < 2:
        return 0
    first, last = min(prompts, key=tuple), max(prompts, key=tuple)  # in lexical order: what these two share, all do
    most = min(map(len, prompts)) - 1
    return next((i for i in range(most) if first[i] != last[i]), most)
