"""Tries to break the project, and counts how often that works: a table on the screen, and every figure as JSON.

    python benchmarks/reliability.py [--quick] [--only ROW ...] [--gsm8k DIRECTORY] [--out reports/reliability.json]

In full it takes hours, with `--quick` at most five minutes. The row `kills_135m` needs the default model, `cost` a
directory with GSM8K's train.jsonl and test.jsonl; it is left out without one.
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

from torture.rows import FULL, QUICK, ROWS, Finding
from torture.runs import preload, wait

from cpu_grpo.experiment.tracking import git_commit
from cpu_grpo.files import write_json
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


def table(findings: list[Finding]) -> str:
    """In Markdown."""
    rows = [f"| {f.test} | {f.result} | {f.goal} | {'yes' if f.met else 'NO'} |" for f in findings]
    return "\n".join(["| test | result | goal | met |", "|---|---|---|---|", *rows])


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a little of each, in at most five minutes")
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS), help="which rows")
    parser.add_argument("--gsm8k", type=Path, help="the directory with its files")
    parser.add_argument("--out", type=Path, default=Path("reports/reliability.json"), help="where every figure goes")
    options = parser.parse_args(arguments)
    os.environ |= {"PYTHONWARNINGS": "ignore", "TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false"}
    amounts = QUICK if options.quick else FULL
    data = options.gsm8k.resolve() if options.gsm8k else None
    findings: list[Finding] = []
    preload()
    with tiny_model() as model:
        for name in (name for name in ROWS if name in options.only):
            begin = time.perf_counter()
            new = ROWS[name](amounts, model, data)
            findings += new
            print(f"{name}: {time.perf_counter() - begin:.0f} s", file=sys.stderr, flush=True)
            for finding in new:
                print(f"{finding.test}: {finding.result}", file=sys.stderr, flush=True)
            record = {"commit": git_commit(), "cpu": cpu_name(), "date": time.strftime("%Y-%m-%d")}
            write_json(options.out, record | {"findings": [asdict(finding) for finding in findings]})
    print(table(findings))
    return int(not all(finding.met for finding in findings))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
