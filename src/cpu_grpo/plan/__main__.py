"""Tells what a training run would take on this machine: memory and time, scheme by scheme.

    python -m cpu_grpo.plan [--memory-only] [model=NAME] [variant=NAME] [key=value ...]

The keys are those of pipelines/train.py. No weights are loaded or downloaded. Ends with code 1 if the configuration
asked for does not fit, and says what would.
"""

import argparse
import sys

from cpu_grpo.config.compose import compose_run, sentences
from cpu_grpo.errors import UserError
from cpu_grpo.hardware import setup
from cpu_grpo.plan.choice import budget, schemes, settle
from cpu_grpo.plan.foresight import known_of
from cpu_grpo.plan.table import heading, table


def main(arguments: list[str]) -> None:
    """Prints the table; raises UserError if the configuration does not fit."""
    parser = argparse.ArgumentParser(
        prog="python -m cpu_grpo.plan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--memory-only", action="store_true", help="do not measure how long an update takes")
    parser.add_argument("overrides", nargs="*", help="model=NAME, variant=NAME, key=value ...")
    options = parser.parse_args(arguments)
    config = compose_run(options.overrides)
    hardware = setup(config.hardware)
    known = known_of(config, hardware)
    if known is None:
        raise UserError(
            f"The sizes of the model {config.model.name} are not known, or the fast engine does not compute its kind: "
            "give model.shape as its config.json does, or make the model with `python pipelines/model.py`."
        )
    room = budget(config.memory.limit)
    listed = schemes(config, known)
    print(heading(config, listed[0].job, known, room), end="\n\n")
    try:
        chosen = settle(config, known, room)
    except UserError:
        print(table(listed, room), end="\n\n", flush=True)
        raise
    print(table(listed, room, None if options.memory_only else hardware), end="\n\n")
    print(f"This configuration fits{' with ' * bool(chosen.changes)}{' '.join(chosen.changes)}.")


if __name__ == "__main__":
    with sentences():
        main(sys.argv[1:])
