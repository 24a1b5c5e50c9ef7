"""Measures this project against stock TRL and others: a table on the screen, and every figure as JSON.

    python benchmarks/run.py [--only ROW ...] [--repeats N] [--stock-repeats N] [--quick] [--out reports/bench.json]

All engines take turns in this one call, on the same weights and prompts, each in processes of its own, on all cores;
figures are medians. Leave the machine alone meanwhile. With VLLM_PYTHON=/path/to/python, of an environment that has
vLLM's CPU build, vLLM is measured too.
"""

import argparse
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from bench import Bench
from figures import Figure, table
from processes import ROOT, Json, ask
from rows.hard_limit import hard_limit
from rows.loading import load_time
from rows.memory import default_job, lean_throughput, memory
from rows.parts import learner, learner_behind_examples, learner_in_8_bits, rollout, rollout_in_8_bits
from rows.plan import plan
from rows.scaling import scaling
from rows.updates import linear, throughput, update, weight_refresh
from rows.whole_runs import cpu_use, time_to_accuracy

from cpu_grpo.config.compose import load_params
from cpu_grpo.config.schema import Hardware
from cpu_grpo.experiment.tracking import git_commit
from cpu_grpo.files import write_json
from cpu_grpo.hardware import setup
from cpu_grpo.workspace.layout import Layout
from cpu_grpo.workspace.models import base_model

Row = Callable[[Bench], list[Figure]]
ROWS: dict[str, Row] = {
    "update_135m": lambda bench: update(bench, "update_135m", "135m", 8, goal=12, best_goal=8),
    "update_494m_1x8": lambda bench: [
        *update(bench, "update_494m_1x8", "494m", 1, goal=10),
        throughput(bench, "update_494m_1x8", "494m", 1, 0.6),
    ],
    "update_494m_4x8": lambda bench: [
        *update(bench, "update_494m_4x8", "494m", 4, goal=10),
        throughput(bench, "update_494m_4x8", "494m", 4),
    ],
    "rollout_135m": partial(rollout, model="135m"),
    "rollout_494m": partial(rollout, model="494m"),
    "int8_135m": partial(rollout_in_8_bits, model="135m"),
    "int8_494m": partial(rollout_in_8_bits, model="494m"),
    "learner_135m": partial(learner, model="135m"),
    "learner_494m": partial(learner, model="494m"),
    "learner_int8_494m": partial(learner_in_8_bits, model="494m"),
    "learner_494m_shared": partial(learner_behind_examples, model="494m"),
    "memory_494m": partial(memory, model="494m", goals={"ours": None, "ours lean": 3.3, "ours lora": 2.0}, speed=0.8),
    "memory_1544m": partial(memory, model="1544m", goals={"ours lean": 8.0, "ours lora": 5.0}),
    "lean_494m": partial(lean_throughput, model="494m", most=3.3, goal=0.5),
    "memory_default_job": default_job,
    "limit_494m": partial(hard_limit, model="494m", most=3.5),
    "load_494m": partial(load_time, model="494m"),
    "plan": lambda bench: plan(bench, setup(Hardware())),
    "scaling": scaling,
    "linearity": linear,
    "weight_refresh": weight_refresh,
    "cpu_use": lambda bench: cpu_use(Layout(Path()).training),
    "time_to_accuracy": time_to_accuracy,
}


def main(arguments: list[str]) -> int:
    """Runs the rows asked for; returns the exit code, 1 if something failed to run."""
    options = _options(arguments)
    out = options.out.absolute()
    os.chdir(ROOT)
    machine = ask("machine", {"quick": options.quick})
    base = "" if options.quick else str(base_model(load_params(ROOT / "params.yaml").model).absolute())
    plot = out.with_name(f"{out.stem}_linearity.png")
    bench = Bench(base, options.repeats, options.stock_repeats, plot, machine)
    commit = git_commit()
    report: Json = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit.rstrip("+"),
        "dirty": commit.endswith("+"),
        "machine": machine,
        "settings": {"quick": bench.quick, "repeats": bench.repeats, "stock_repeats": bench.stock_repeats},
        "warm_up": "each process warms up before it is timed; baselines on a smaller workload, as theirs take minutes",
    }
    found: dict[str, list[Figure]] = {}
    for name in ROWS:
        if name in options.only:
            found[name] = ROWS[name](bench)
            rows = {row: [figure.to_json() for figure in figures] for row, figures in found.items()}
            write_json(out, report | {"rows": rows, "runs": bench.runs, "failures": bench.failures})
    print("\n".join(_heading(report, bench)), table(found), sep="\n\n")
    for failure in bench.failures:
        print(f"failed: {failure}")
    return 1 if bench.failures else 0


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--quick", action="store_true", help="tiny models and sizes: to try the benchmark itself")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of ours, 3 unless told otherwise")
    parser.add_argument("--stock-repeats", type=int, default=1, help="timed runs of each baseline, 1 unless told")
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / "bench.json", help="the JSON file")
    options = parser.parse_args(arguments)
    if min(options.repeats, options.stock_repeats) < 1:
        parser.error("--repeats and --stock-repeats are at least 1")
    return options


def _heading(report: Json, bench: Bench) -> list[str]:
    """Hardware, versions and workload."""
    machine, work = report["machine"], bench.work(1)
    rates = ", ".join(f"{name} {rate:.0f} GFLOP/s" for name, rate in machine["gemm_gflops"].items())
    return [
        f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads; matrix products {rates}; "
        f"memory read at {machine['read_gb_per_second']:.0f} GB/s",
        f"torch {machine['torch']}, transformers {machine['transformers']}, trl {machine['trl']}, "
        f"Python {machine['python']}; commit {report['commit']}{' with changes' if report['dirty'] else ''}; "
        f"{report['date']}",
        f"Workload unless a row says otherwise: prompts of {work.prompt_tokens} tokens, prompts x completions x tokens "
        f"exactly (end token ignored), every completion with an advantage; {bench.repeats} timed runs of ours, "
        f"{bench.stock_repeats} of each baseline, medians"
        + (" (tiny models and sizes: the figures mean nothing)." if bench.quick else "."),
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
