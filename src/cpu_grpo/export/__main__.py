"""Takes a model out of the project: as GGUF, for Ollama, or as a Hugging Face or PEFT directory.

    python -m cpu_grpo.export MODEL --to gguf|ollama|safetensors|adapter
                              [--dtype TYPE] [--out PLACE] [--push OWNER/NAME]

MODEL is base, a variant below models/, or a directory. Each export brings a model card (README.md), is read back
before it gets its name, and takes the place of an earlier export only. docs/export.md tells more.
"""

import argparse
import sys
from pathlib import Path

from cpu_grpo.config.compose import sentences, set_environment
from cpu_grpo.errors import UserError
from cpu_grpo.export.hub import check_push, push
from cpu_grpo.export.place import EXPORTS
from cpu_grpo.export.source import find_source

KINDS = ("gguf", "ollama", "safetensors", "adapter")


def main(arguments: list[str]) -> None:
    """Exports, and says where; raises UserError where that cannot be."""
    options = parsed(arguments)
    target = options.out or EXPORTS / "-".join(filter(None, (Path(options.model).name, options.to, options.dtype)))
    if target.suffix == ".gguf" and options.to != "gguf":
        raise UserError(f"--out {target} is a GGUF file, and --to {options.to} writes a directory: give one.")
    if options.push:
        check_push(options.push)
        if target.suffix == ".gguf":
            raise UserError("--push uploads a directory: give --out one, not a file.")
    source = find_source(options.model)
    from cpu_grpo.export.formats import FORMATS

    kind = FORMATS[options.to]
    if options.dtype and options.dtype not in kind.dtypes:
        raise UserError(f"--dtype {options.dtype} is no type of {options.to}: use one of {', '.join(kind.dtypes)}.")
    done = kind.write(source, options.dtype or kind.dtypes[0], target)
    for notice in done.notices:
        print(f"notice: {notice}")
    print(f"{done.place}: {source.name} as {options.to}")
    if options.push:
        print(f"pushed: {push(done.place, options.push, f'{source.name} as {options.to}')}")


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m cpu_grpo.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL", help="base, a variant's name, or a directory")
    parser.add_argument("--to", required=True, choices=KINDS, help="what to make of it")
    parser.add_argument("--dtype", default="", help="how numbers are stored: f32, f16, bf16; GGUF also q8_0, q4_0 ...")
    parser.add_argument("--out", type=Path, help="a directory, or for gguf a file (default: one below exports/)")
    parser.add_argument("--push", default="", metavar="OWNER/NAME", help="upload it to the Hugging Face Hub, too")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    set_environment()
    with sentences():
        main(sys.argv[1:])
