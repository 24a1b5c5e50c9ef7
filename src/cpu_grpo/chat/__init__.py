"""Asking a model, or two side by side, and reading the answers as they come: `python -m cpu_grpo.chat`.

1. `models` finds what a name stands for, how it was asked in training, and whether there is memory for it.
2. `speaker` holds a conversation with a model; `detokeniser` turns its tokens into text that is safe to show.
3. `screen` shows answers, side by side where a terminal allows; `loop` is the conversation at a terminal or a pipe.
"""
