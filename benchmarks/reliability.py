"""Tries to break the project, and counts how often that works: a table on the screen, and every figure as JSON.

    python benchmarks/reliability.py [--quick] [--only ROW ...] [--gsm8k DIRECTORY] [--out FILE]

In full it takes hours, row by row if need be; with `--quick` at most five minutes. The row `kills_135m` needs the
default model, `cost` a directory with GSM8K's train.jsonl and test.jsonl; it is left out without one.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torture.rows import FULL, QUICK, ROWS
from torture.runs import preload, wait

from cpu_grpo.experiment.tracking import git_commit
from cpu_grpo.files import read_sealed, write_sealed
from cpu_grpo.hardware import cpu_name


@contextmanager
def tiny_model() -> Iterator[Path]:
    """A directory with a tiny model, made in another process, so that this one stays without threads."""
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        pid = os.fork()
        if not pid:
            from tiny import save_tiny, tiny_tokenizer

            save_tiny(directory, tiny_tokenizer())
            os._exit(0)
        if code := wait(pid):
            raise RuntimeError(f"no tiny model could be made: {code}")
        yield directory


def table(found: list[dict[str, Any]]) -> str:
    """In Markdown."""
    head = ["| test | result | goal | met | when, at which commit, on what |", "|---|---|---|---|---|"]
    for own in found:
        where = f"{own['date']}, {own['commit'][:7]}, {own['cpu']}"
        head.append(f"| {own['test']} | {own['result']} | {own['goal']} | {'yes' if own['met'] else 'NO'} | {where} |")
    return "\n".join(head)


def kept(path: Path) -> dict[str, dict[str, Any]]:
    """What earlier calls have found, by test."""
    return {own["test"]: own for own in read_sealed(path)["findings"]} if path.is_file() else {}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a little of each, in at most five minutes")
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS), help="which rows")
    parser.add_argument("--gsm8k", type=Path, help="the directory with its files")
    parser.add_argument("--out", type=Path, help="where every figure goes, beside those of earlier calls")
    options = parser.parse_args(arguments)
    os.environ |= {"PYTHONWARNINGS": "ignore", "TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false"}
    amounts = QUICK if options.quick else FULL
    out = options.out or Path("reports") / f"reliability{'-quick' if options.quick else ''}.json"
    data = options.gsm8k.resolve() if options.gsm8k else None
    place = {"date": time.strftime("%Y-%m-%d"), "commit": git_commit(), "cpu": cpu_name()}
    findings = kept(out)
    met = True
    preload()
    with tiny_model() as model:
        for name in (name for name in ROWS if name in options.only):
            begin = time.perf_counter()
            for finding in ROWS[name](amounts, model, data):
                print(f"{finding.test}: {finding.result}", file=sys.stderr, flush=True)
                findings[finding.test] = asdict(finding) | place
                met &= finding.met
            print(f"{name}: {time.perf_counter() - begin:.0f} s", file=sys.stderr, flush=True)
            write_sealed(out, {"findings": list(findings.values())})
    print(table(list(findings.values())))
    return int(not met)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
