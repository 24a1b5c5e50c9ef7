"""Asks a trained model, or two side by side.

    python -m cpu_grpo.chat MODEL [--against OTHER] [--question TEXT]

A model is a variant's name below models/, `base`, or a directory. Without --question a terminal gives a conversation,
and a pipe one question a line. Questions are put as the model's training put them; --plain leaves that out.
"""

import argparse
import os
import sys
from io import TextIOWrapper

from cpu_grpo.chat.models import PLAIN, Named, named
from cpu_grpo.config.compose import sentences
from cpu_grpo.errors import UserError
from cpu_grpo.text import one_line


def parse(arguments: list[str]) -> argparse.Namespace:
    """What the command line asks for.

    Raises:
        UserError: a number is out of bounds.
    """
    parser = argparse.ArgumentParser(
        prog="python -m cpu_grpo.chat", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL", help="a variant's name, base, or a directory")
    parser.add_argument("--against", metavar="OTHER", help="another one, which is asked the same")
    parser.add_argument("--question", metavar="TEXT", help="ask this alone")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--task", default="", metavar="NAME", help="ask as this task of conf/task does")
    form.add_argument("--plain", action="store_true", help="ask without system prompt, instruction and examples")
    parser.add_argument("--temperature", type=float, default=0.0, help="of sampling; 0: greedy (the default)")
    parser.add_argument("--max-tokens", type=int, default=512, metavar="N", help="of an answer; 512 by default")
    parser.add_argument("--seed", type=int, default=42, metavar="S", help="of sampling; 42 by default")
    options = parser.parse_args(arguments)
    if not 0 <= options.temperature <= 10:
        raise UserError(f"--temperature {options.temperature:g} is out of bounds: use 0 (greedy) to 10.")
    if options.max_tokens < 1:
        raise UserError(f"--max-tokens {options.max_tokens} leaves no room for an answer: use 1 or more.")
    if not 0 <= options.seed < 2**31:
        raise UserError(f"--seed {options.seed} is out of bounds: use 0 to {2**31 - 1}.")
    return options


def main(arguments: list[str]) -> None:
    """Asks; raises UserError where that cannot be."""
    options = parse(arguments)
    names = [options.model] + [options.against] * (options.against is not None)
    models = named(names, options.task, options.plain)
    from rich.console import Console

    from cpu_grpo.chat.loop import ask, ask_each, clean, converse
    from cpu_grpo.chat.screen import tell
    from cpu_grpo.chat.speaker import Manner, speakers
    from cpu_grpo.engine.rollout import Sampling

    if options.question is not None and not clean(options.question):
        raise UserError("--question is empty: ask something.")
    for model in models:
        if sentence := told(model):
            tell(sentence)
    loaded = speakers(models, Manner(Sampling(options.temperature), options.max_tokens, options.seed))
    console = Console(highlight=False)
    if options.question is not None:
        ask(loaded, clean(options.question), console)
    elif sys.stdin.isatty():
        converse(loaded, console)
    else:
        ask_each(loaded, sys.stdin, console)


def told(model: Named) -> str:
    """How the model is asked, where that is not as it is."""
    if model.task == PLAIN:
        return ""
    return f"{model.name} is asked as the task {one_line(model.task.name)} asks; --plain leaves that out."


if __name__ == "__main__":
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # models say what not every terminal can show
    try:
        with sentences():
            main(sys.argv[1:])
    except BrokenPipeError:  # who read along has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
