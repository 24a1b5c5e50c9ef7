"""A model's chat template and tokenizer, tried out on a short conversation in a process that may take little.

A chat template is a program that comes with a model. transformers runs it in jinja's sandbox, which keeps it from files
and from Python, but not from computing for ever or from filling the memory; a tokenizer's patterns can do as much.
What merely fails here is left to be told where it is used.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cpu_grpo.errors import UserError
from cpu_grpo.text import one_line
from cpu_grpo.units import gigabytes

SECONDS = 10  # of a core; a usual model's takes a tenth
PATIENCE = 6  # times as long by the clock, on a machine that is busy
MEMORY = 2 << 30  # bytes of address space
LONGEST = 1_000_000  # characters that the conversation may become
WORDS = "A farmer has 12 cows and buys 7 more. How many cows are there now? "
TURNS = [{"role": role, "content": 2 * WORDS} for role in 4 * ("user", "assistant")] + [
    {"role": "user", "content": WORDS}
]
SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def try_out(directory: Path, name: str, seconds: int = SECONDS) -> None:
    """Raises UserError, about the model of this name, unless it makes a prompt or fails at it within the limits."""
    command = [sys.executable, "-m", "cpu_grpo.models.trial", str(directory), str(seconds)]
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false"}
    try:
        done = subprocess.run(
            command,
            env=environment,
            timeout=PATIENCE * seconds,
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
        )
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
    except subprocess.TimeoutExpired:
        said = []
    else:
        if done.returncode == 0:
            return
    told = f" ({one_line(said[-1], 200)})" if said else ""
    raise UserError(
        f"The chat template or tokenizer of the model {name} does not make a short conversation into a prompt within "
        f"{seconds} s, {gigabytes(MEMORY)} of memory and {LONGEST:,} characters{told}: mend it, or take another model."
    )


def main(directory: Path, seconds: int) -> None:
    """The trial itself, in its own process; what goes beyond the limits ends it with another code than 0."""
    _limit(seconds)
    from tokenizers import Tokenizer

    special = _special_tokens(directory)
    texts = [2 * WORDS]
    for template in _templates(directory):
        try:
            texts.append(_rendered(template, special))
        except MemoryError:
            raise
        except Exception:
            continue
    if max(map(len, texts)) > LONGEST:
        raise SystemExit(1)
    try:
        tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        for text in texts:
            tokenizer.encode(text)
    except MemoryError:
        raise
    except Exception:
        return


def _limit(seconds: int) -> None:
    try:
        import resource
    except ImportError:  # on Windows time alone is limited, by the parent
        return
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def _settings(directory: Path) -> dict[str, Any]:
    found = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
    return found if isinstance(found, dict) else {}


def _special_tokens(directory: Path) -> dict[str, str]:
    """As templates name them."""
    tokens = {name: _settings(directory).get(name) for name in SPECIAL}
    found = {name: token.get("content") if isinstance(token, dict) else token for name, token in tokens.items()}
    return {name: token for name, token in found.items() if isinstance(token, str)}


def _templates(directory: Path) -> Iterator[str]:
    """Every one that transformers might take."""
    for path in (directory / "chat_template.jinja", *directory.glob("*chat_templates/*.jinja")):
        if path.is_file():
            yield path.read_text(encoding="utf-8")
    found = _settings(directory).get("chat_template")
    for template in found if isinstance(found, list) else [found]:
        text = template.get("template") if isinstance(template, dict) else template
        if isinstance(text, str):
            yield text


def _rendered(template: str, special: dict[str, str]) -> str:
    """As transformers' `apply_chat_template` renders it, whose import would take as long as all else by far."""
    from datetime import datetime

    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}`, which marks a part."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals |= {"raise_exception": raise_exception, "strftime_now": datetime.now().strftime}
    return environment.from_string(template).render(
        messages=TURNS, tools=None, documents=None, add_generation_prompt=True, **special
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
