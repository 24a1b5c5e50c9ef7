"""The checkout: git, DVC, the pipeline's configuration and stages, and what unfinished runs have left."""

import json
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from omegaconf import OmegaConf

from cpu_grpo.config.compose import CONF, PARAMS, compose_pipeline, load_params
from cpu_grpo.doctor.finding import INSTALL, Finding, fail, ok, told, warn
from cpu_grpo.files import flatten
from cpu_grpo.units import gigabytes

COMPOSE = "python pipelines/compose.py"
NAMED = 3  # differences and stages that are named
PATIENCE = 60.0  # seconds that `dvc status` may take


def git() -> Finding:
    """Whether runs can record the code that they ran."""
    if shutil.which("git") is None:
        return warn("it is not installed, so runs record no commit", "sudo apt-get install git")
    from cpu_grpo.experiment.tracking import git_commit

    commit = git_commit()
    if commit == "none":
        return warn("this is no checkout, so runs record no commit", "git init && git add -A && git commit -m Start")
    changed = ", and files differ from it" if commit.endswith("+") else ""
    return ok(f"the commit is {commit[:10]}{changed}")


def dvc() -> Finding:
    """Whether it is installed and knows this folder."""
    try:
        installed = version("dvc")
    except PackageNotFoundError:
        return fail("it is not installed", INSTALL)
    if not Path("dvc.yaml").is_file():
        return warn("there is no dvc.yaml here, so this is no pipeline's folder", f"cd {CONF.parent}")
    if not Path(".dvc").is_dir():
        return fail("this folder is not initialised", "dvc init")
    if shutil.which("dvc") is None:
        beside = Path(sys.executable).parent
        return warn(f"{installed} is installed, and its command is not on the PATH", f"export PATH={beside}:$PATH")
    return ok(f"{installed} is installed and initialised")


def params() -> Finding:
    """Whether params.yaml is what conf/ says."""
    if not PARAMS.is_file():
        return fail("there is no params.yaml, which the pipeline reads", COMPOSE)
    load_params(PARAMS)
    found = flatten(OmegaConf.to_container(OmegaConf.load(PARAMS)))
    differences = {}
    for name in pipelines():
        composed = flatten(OmegaConf.to_container(compose_pipeline([], name)))
        differences[name] = [key for key in composed | found if composed.get(key, ...) != found.get(key, ...)]
    nearest = min(differences, key=lambda name: len(differences[name]))
    if keys := differences[nearest]:
        return warn(f"it differs from conf/{nearest}.yaml in {few(keys)}", f"{COMPOSE} --config-name {nearest}")
    return ok(f"it is what conf/{nearest}.yaml says")


def pipelines() -> list[str]:
    """The pipelines that conf/ has."""
    files = sorted(CONF.glob("*.yaml"))
    return [path.stem for path in files if "- pipeline_schema" in path.read_text(encoding="utf-8")]


def start_status() -> "subprocess.Popen[str] | None":
    """`dvc status`, which takes seconds, in the background; None where there is nothing to ask."""
    if not Path("dvc.yaml").is_file() or not Path(".dvc").is_dir():
        return None
    command = [sys.executable, "-m", "dvc", "status", "--json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def stages(status: "subprocess.Popen[str] | None") -> Finding:
    """Which have to be run."""
    if status is None:
        return warn("there are none here", f"cd {CONF.parent}")
    try:
        out, errors = status.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        status.kill()
        status.wait()
        return warn(f"`dvc status` took over {PATIENCE:.0f} s", "dvc status")
    if status.returncode:
        said = next((line for line in errors.splitlines() if line.startswith("ERROR")), errors)
        return warn(f"`dvc status` fails ({told(Exception(said))})", "dvc status")
    if changed := list(json.loads(out or "{}")):
        return warn(f"{len(changed)} have changed or were not run yet: {few(changed)}", "dvc repro")
    return ok("all are up to date")


def checkpoints() -> Finding:
    """Which runs were left unfinished."""
    from cpu_grpo.workspace.checkpoints import left_over

    if not (found := left_over()):
        return ok("no run was left unfinished")
    size = gigabytes(sum(found.values()))
    names = few([directory.name for directory in found])
    if len(found) == 1:
        return warn(f"an unfinished run keeps {size} ({names}); its command goes on from there", removal(found))
    return warn(f"{len(found)} unfinished runs keep {size} ({names}); their commands go on from there", removal(found))


def removal(found: dict[Path, int]) -> str:
    """The command that gives checkpoints up."""
    return "rm -r " + " ".join(f"'{directory.as_posix()}'" for directory in found)


def few(names: list[str]) -> str:
    """The first of them, and how many more there are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
