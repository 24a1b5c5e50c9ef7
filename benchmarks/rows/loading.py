"""The row about loading: from a model directory to the first forward's result."""

import tempfile
from pathlib import Path
from statistics import median

from bench import Bench
from figures import Figure, absolute
from processes import Json, ask

PROMPT = [1, 2, 3, 4, 5, 6, 7, 8]  # any tokens


def load_time(bench: Bench, model: str) -> list[Figure]:
    """Seconds to load and run a model that another process has just written, so that the page cache has its file."""
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch) / "model"

        def ours() -> Json:
            if not directory.exists():
                ask("saved_model", bench.task(model) | {"directory": str(directory), "groups": []})
            return ask("loading", {"directory": str(directory), "prompt": PROMPT})

        answers = bench.measure(f"load_{model}", {"ours": (bench.repeats, ours)})["ours"]
    seconds = median(answer["seconds"] for answer in answers) if answers else None
    return [
        absolute(
            "load time, from safetensors to the first forward",
            f"{bench.describe_model(model)}, {len(PROMPT)} tokens",
            seconds,
            "s",
            goal=1.0,
            at_most=True,
            note=_parts(answers) if answers else "",
        )
    ]


def _parts(answers: list[Json]) -> str:
    """What the seconds went into, and what is not among them."""

    def part(name: str) -> str:
        return f"{median(answer[f'{name}_seconds'] for answer in answers):.2f} s"

    gained = max(answer["gained_bytes"] for answer in answers) / 1e9
    return (
        f"in bf16, products in {answers[0]['precision']}; reading {part('read')}, packing {part('pack')}, forward "
        f"{part('forward')}; memory gained {gained:.2f} GB; not counted: imports {part('import')}, and laying the "
        f"weights out where more than 16 completions are decoded {part('lay_out')}"
    )
