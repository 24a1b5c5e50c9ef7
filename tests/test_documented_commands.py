"""Every command that the documentation shows is one that works: run here, or checked as far as that takes no time."""

import itertools
import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import hydra
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf, open_dict

from conftest import ROOT
from cpu_grpo.chat import __main__ as chat
from cpu_grpo.config.compose import CONF, SCHEMAS, compose_run, typed
from cpu_grpo.config.schema import Tracking
from cpu_grpo.engine import checkpoint
from cpu_grpo.export import __main__ as export
from documented import Command, commands

pytestmark = pytest.mark.slow

COMMANDS = commands()
TOOLS = {"python3": "python", ".venv/bin/pre-commit": "pre-commit"}
STAGES = {"train": "train", "study": "study"}  # the configuration of a stage, where it is not the pipeline's
# What takes minutes or more, which a page has to say beside it.
LONG = re.compile(
    r"python pipelines/(train|evaluate|study)\.py(?! --cfg)|python -m (pytest|cpu_grpo\.hardware)|python examples/"
    r"|python -m cpu_grpo\.plan(?! --memory-only)|python benchmarks/|dvc (repro|exp run)"
    r"|torchrun|make (repro|gsm8k|study|test|bench|torture)"
)
TIMES = re.compile(r"\b(minutes?|hours?|days)\b")
# What is run here as it stands, in an empty directory.
SHORT = re.compile(r"python pipelines/(compose\.py|train\.py --cfg)")

PARSERS = {"cpu_grpo.export": export.parsed, "cpu_grpo.chat": chat.parse}  # of programs that take names of models
VALUES = ("not slow", "path/to/gsm8k")  # of options that take any


def each(found):
    return pytest.mark.parametrize("command", {str(command): command for command in found}.values(), ids=str)


def outcome(words, directory=ROOT):
    """What a command says; it must end well."""
    environment = os.environ | {"PYTHONWARNINGS": "ignore", "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        words, cwd=directory, capture_output=True, text=True, check=False, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@cache
def usage(*words):
    return outcome([*words, "--help"])


@pytest.mark.parametrize("command", [own for own in COMMANDS if LONG.search(str(own))], ids=str)
def test_what_takes_long_says_so(command):
    assert TIMES.search(command.comment), f"{command.page}: say beside {command} how long it takes"


@each(own for own in COMMANDS if SHORT.search(str(own)))
def test_what_takes_no_time_runs(command, tmp_path):
    words = [str(ROOT / word) if word.startswith("pipelines/") else word for word in command.words]
    assert outcome([sys.executable if words[0] == "python" else words[0], *words[1:]], tmp_path)
    if "compose.py" in str(command):
        assert (tmp_path / "params.yaml").is_file()


@each(COMMANDS)
def test_what_is_shown_can_be_typed(command):
    check(list(command.words))


def check(words):
    """Of one command, by its program. What has no checker is refused."""
    program, *rest = words
    CHECKERS[TOOLS.get(program, program)](rest)


def check_python(words):
    where = words[0]
    if where.startswith("pipelines/"):
        return check_stage(Path(where), words[1:])
    if words[:2] == ["-m", "cpu_grpo.plan"]:
        compose_run([word for word in words[2:] if not word.startswith("-")])
        return check_options(words[:2], [word for word in words[2:] if word.startswith("-")])
    if where == "-c":
        return compile(words[1], "page", "exec")  # a test of its own runs it
    if where == "-m" and words[1] in PARSERS:
        return PARSERS[words[1]](words[2:])
    if where == "-m" and words[1] in ("venv", "pip"):
        return check_installation(words[1:])
    options = words[2:] if where == "-m" else words[1:]
    return check_options(words[: len(words) - len(options)], options)


def check_options(program, options):
    """The program is there, and its own help knows the options and choices."""
    if program[0] != "-m":
        assert (ROOT / program[0]).is_file()
    told = usage(sys.executable, *program) if options else ""
    for option in options:
        known = re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", told)
        assert known or option.isdigit() or option in VALUES, option


def check_stage(script, words):
    """Hydra composes what follows, and the schema knows every key."""
    assert (ROOT / script).is_file()
    name = STAGES.get(script.stem, "config")
    if "--config-name" in words:
        name = words[words.index("--config-name") + 1]
    overrides = [word for word in words if "=" in word]
    flags = {word for word in words if word not in overrides}
    assert flags <= {"-m", "--cfg", "job", "--config-name", name}, flags
    for job in jobs(overrides) if "-m" in flags else [overrides]:
        composed(name, job)


def jobs(overrides):
    """Of a sweep: each job's keys."""
    parsed = OverridesParser.create().parse_overrides(overrides)
    choices = [
        [f"{own.get_key_element()}={value}" for value in own.sweep_string_iterator()]
        if own.is_sweep_override()
        else [own.input_line]
        for own in parsed
    ]
    return [list(job) for job in itertools.product(*choices)]


def composed(name, overrides):
    """The typed configuration; raises where a key, a value or a file is none."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        found = hydra.compose(name, overrides, return_hydra_config=True)
    with open_dict(found):
        del found.hydra
    if name == "study":
        found.arm = next(iter(found.study.arms))
        compose_run(str(found.also).replace('"', "").split())
    OmegaConf.resolve(found)
    return typed(found, SCHEMAS.get(name, SCHEMAS["config"]))


def check_make(words):
    """make knows the target, the Makefile reads the variables, and what it would run is checked likewise."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for word in words:
        assert "=" not in word or f"$({word.partition('=')[0]})" in makefile, f"no {word} in the Makefile"
    told = outcome(["make", "--dry-run", "--old-file", ".venv/installed", *words])
    tools = re.findall(r'^"[^"]*/\.venv/\w+/(python|dvc|mlflow|pre-commit)" (.*)$', told, re.MULTILINE)
    assert tools or words == ["help"]
    for tool, rest in tools:
        check([tool, *shlex.split(rest)])


def check_dvc(words):
    keys = [words[place + 1] for place, word in enumerate(words) if word == "-S"]
    assert usage("dvc", *[word for word in words if word not in ("-S", *keys)])
    composed("config", keys)


def check_mlflow(words):
    assert words[0] == "ui" and words[words.index("--backend-store-uri") + 1] == Tracking().uri


def check_installation(words):
    """What is named has to be there."""
    for place, word in enumerate(words):
        if word in ("-r", "--requirement", "-e"):
            assert (ROOT / words[place + 1]).exists()


def check_linters(words):
    assert words in (["install"], ["run", "--all-files"]) and (ROOT / ".pre-commit-config.yaml").is_file()


def check_limited(words):
    check(words[words.index("python") :])


def check_waiting(words):
    """The file that is waited for is the one that makes a checkpoint whole."""
    assert words[:2] == ["test", "-f"]
    assert Path(words[2]).parts[:2] == ("cache", "checkpoints") and Path(words[2]).name == checkpoint.SEAL


def check_kill(words):
    """The pattern is of the pipeline's processes, and of nothing that a shell is called."""
    assert words[:2] == ["-9", "-f"]
    pattern = re.compile(words[2])
    assert pattern.search("python .venv/bin/dvc repro") and pattern.search("python pipelines/train.py --params")
    assert not pattern.search("bash") and not pattern.search("mlflow ui")


def check_torchrun(words):
    """The last word is a script; the others are options that torchrun knows, and their values."""
    *options, script = words
    assert (ROOT / script).is_file()
    told = usage(sys.executable, "-m", "torch.distributed.run")
    for option in (word for word in options if word.startswith("--")):
        assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", told), option


def check_variable(words):
    assert re.fullmatch(r"[A-Z_]+=\S+", " ".join(words))


CHECKERS = {
    "torchrun": check_torchrun,
    "export": check_variable,
    "python": check_python,
    "make": check_make,
    "dvc": check_dvc,
    "mlflow": check_mlflow,
    "pip": check_installation,
    "pre-commit": check_linters,
    "systemd-run": check_limited,
    ".": lambda words: None,  # turns the environment on
    "until": check_waiting,
    "printf": lambda words: check(words[words.index("|") + 1 :]),
    **dict.fromkeys(("cd", "hf", "llama-cli", "ollama", "tensorboard"), lambda words: None),  # other people's programs
    "do": lambda words: None,
    "done": lambda words: None,
    "pkill": check_kill,
}


def test_a_command_that_does_not_work_is_found():
    """As the page would show it."""
    for words in (
        "python pipelines/train.py variant=ultrafast",
        "python pipelines/train.py trainer.learning_rte=1",
        "python pipelines/gone.py",
        "python pipelines/train.py variant=ultra_fast,extreme_fast",
        "python -m cpu_grpo.plan --memory",
        "python -m cpu_grpo.plan memory=little",
        "make nothing",
        "make study NOME=progressive",
        "make study NAME=progresive",
        "dvc exp run -S task=gsm_symbolik",
        "dvc reproduce",
        "pip install -r requirement.lock",
        "rm -rf models",
    ):
        with pytest.raises(Exception, match=r"."):
            check(words.split())
    assert {command.page for command in COMMANDS} >= {"README.md", "docs/getting-started.md"}
    assert all(isinstance(command, Command) for command in COMMANDS)
