"""How a configuration is read: from conf/ through Hydra, or from params.yaml as DVC passes it."""

import argparse
import dataclasses
import difflib
import os
import re
import sys
import warnings
from collections.abc import Callable, Mapping
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from cpu_grpo.config.checks import check
from cpu_grpo.config.invocation import pipeline_id, sweep_id
from cpu_grpo.config.redaction import redact_file, redact_logs, redacted
from cpu_grpo.config.schema import Pipeline, Shared, Train, Variant
from cpu_grpo.config.study_schema import StudyJob
from cpu_grpo.errors import Stopped, UserError, explain
from cpu_grpo.text import one_line

CONF = Path(__file__).parents[3] / "conf"
PARAMS = Path("params.yaml")  # what DVC's stages read, below the current directory
SCHEMAS = {"config": Pipeline, "train": Train, "study": StudyJob}
SHARED_KEYS = tuple(Shared.__dataclass_fields__)
Stage = Callable[[Any, Path, str], None]
FAILED = 1  # the exit code of what the user has to mend
STOPPED = 130  # the shell's exit code of what Ctrl-C ended


def typed(composed: DictConfig, schema: type) -> Any:
    """The composed config as an instance of `schema`, checked.

    Raises:
        UserError: an unknown key, a value of the wrong type or one out of bounds.
    """
    try:
        for item in dataclasses.fields(schema):
            value = composed.get(item.name)
            if dataclasses.is_dataclass(item.type) and value is not None and not OmegaConf.is_dict(value):
                raise UserError(f"{item.name}={value} is not a group of keys: use {item.name}.NAME=VALUE.")
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), composed))
    except (OmegaConfBaseException, OverflowError, RecursionError) as error:
        raise UserError(_one_sentence(error)) from error
    check(config)
    return config


def load_params(path: Path) -> Pipeline:
    """The pipeline's configuration from a params.yaml."""
    if not path.is_file():
        raise UserError(f"There is no file {path}: write it with `python pipelines/compose.py`.")
    return typed(OmegaConf.load(path), Pipeline)


def compose_pipeline(overrides: list[str], name: str = "config") -> DictConfig:
    """conf/config.yaml, or another pipeline's, composed with Hydra overrides and resolved: what params.yaml holds."""
    if not (CONF / f"{name}.yaml").is_file():
        raise UserError(f"There is no conf/{name}.yaml: name a pipeline's configuration in there, without its .yaml.")
    return _compose(name, overrides)


def compose_run(overrides: list[str]) -> Train:
    """conf/train.yaml composed with Hydra overrides: one run's configuration."""
    return typed(_compose("train", overrides), Train)


def compose_study(name: str, budget: str) -> StudyJob:
    """conf/study.yaml composed for a study: its configuration, with the first of its arms."""
    composed = _compose("study", [f"study={name}", f"budget={budget}"])
    composed.arm = next(iter(composed.study.arms))
    return typed(composed, StudyJob)


def study_names() -> list[str]:
    """The studies that conf/study has, in the order of their file names."""
    return sorted(path.stem for path in (CONF / "study").glob("*.yaml"))


def _compose(name: str, overrides: list[str]) -> DictConfig:
    outer = GlobalHydra.instance().hydra  # of the job that asks, if it is one: Hydra allows no second beside it
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            composed = hydra.compose(name, overrides=overrides, return_hydra_config=True)
    finally:
        GlobalHydra.instance().hydra = outer
    _check_choices(composed.hydra.runtime.choices)
    with open_dict(composed):
        del composed.hydra
    OmegaConf.resolve(composed)
    return composed


def _check_choices(choices: Mapping[str, str | None]) -> None:
    """Raises UserError where a group's file was taken from outside conf/, where Hydra's grammar would reach."""
    for group, choice in choices.items():
        if ".." in f"{group}/{choice}".split("/"):
            raise UserError(f"{group}={choice} leads out of conf/{group}: name a file in there, without its .yaml.")


def one_variant(pipeline: Pipeline, name: str) -> Train:
    """The training configuration of one of the pipeline's variants."""
    if name not in pipeline.variants:
        raise UserError(f"{name} is not a variant of this pipeline: use one of {', '.join(pipeline.variants)}.")
    variant: Variant = pipeline.variants[name]
    shared = {key: getattr(pipeline, key) for key in SHARED_KEYS}
    own = {key: getattr(variant, key) for key in Variant.__dataclass_fields__}
    return Train(**shared, **own | {"name": name})


def launch(stage: Stage, config_name: str = "config") -> None:
    """Runs `stage(config, root, pipeline_id)` for a command line.

    `--params FILE [--variant NAME | --model NAME]` is how DVC calls: the config comes from FILE and outputs go below
    the current directory. Anything else is Hydra's grammar: the config comes from conf/ and outputs go to the job's own
    directory. `pipeline_id` is equal for the stages (or sweep jobs) that belong to one pipeline run.
    """
    set_environment()
    redact_logs()
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # who reads along in a file waits for hours else
    with sentences():
        if os.environ.get("WORLD_SIZE", "1") not in ("", "1"):
            raise UserError(
                "A stage is one process: start it without torchrun. A script of your own with CPUGRPOTrainer learns in "
                "several (docs/processes.md)."
            )
        if "--params" in sys.argv:
            _run_from_params(stage)
        else:
            _run_hydra(stage, config_name)


class sentences:
    """A context that words the user's mistakes, and their Ctrl-C, in one line, and leaves our bugs their traceback."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, KeyboardInterrupt):
            print("stopped: what was finished is kept", file=sys.stderr)
            raise SystemExit(STOPPED) from None
        if isinstance(error, Stopped):
            print(f"stopped: {one_line(str(error))}", file=sys.stderr)
            raise SystemExit(error.code) from None
        message = explain(error) if error else None
        if message is None and isinstance(error, HydraException | OmegaConfBaseException):
            message = _one_sentence(error)
        if message:
            print(f"error: {one_line(redacted(message))}", file=sys.stderr)
            raise SystemExit(FAILED) from None


def set_environment() -> None:
    """Defaults for libraries that stages import later: no usage reports, no progress bars where nobody watches."""
    defaults = {"HF_HUB_DISABLE_TELEMETRY": "1", "MLFLOW_DISABLE_TELEMETRY": "true", "TOKENIZERS_PARALLELISM": "false"}
    if not sys.stderr.isatty():
        defaults |= {"TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        defaults |= {"MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
    try:
        Path.home()
    except RuntimeError:  # MLflow and others need one
        defaults["HOME"] = str((Path("cache") / "home").absolute())
        print(f"notice: there is no home directory, so {defaults['HOME']} is taken for it.", file=sys.stderr)
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    # TRL's and transformers' notices to each other about names that will change.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|trl)\.")


def _run_from_params(stage: Stage) -> None:
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--params", type=Path, required=True, help="the composed configuration")
    parser.add_argument("--variant", help="train: which variant")
    parser.add_argument("--model", help="evaluate: which model")
    arguments = parser.parse_args()
    config = load_params(arguments.params)
    if arguments.model:
        config.evaluation.models = [arguments.model]
    stage(one_variant(config, arguments.variant) if arguments.variant else config, Path(), pipeline_id())


def _run_hydra(stage: Stage, config_name: str) -> None:
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing; `sentences` words it
    schema = SCHEMAS[config_name]
    sys.argv.append(f"hydra.job.name={stage.__name__}")  # else Hydra would name every job after this file
    failures: list[BaseException] = []  # kept from Hydra, which would print the command line first, passwords and all

    @hydra.main(config_path=str(CONF), config_name=config_name, version_base="1.3")  # type: ignore[untyped-decorator]
    def run(composed: DictConfig) -> None:
        job = HydraConfig.get()
        root = Path(job.runtime.output_dir)
        sweep = job.mode == RunMode.MULTIRUN
        for path in _kept_by_hydra(job):
            redact_file(path)
        try:
            with sentences():
                _check_choices(job.runtime.choices)
                stage(typed(composed, schema), root, sweep_id(Path(job.sweep.dir)) if sweep else "")
        except SystemExit as error:
            if error.code != FAILED:
                raise  # a signal: it ends a sweep, too, where a failure lets the other jobs run
            failures.append(error)
        except Exception as error:
            failures.append(error)

    run()
    if failures:
        raise failures[0]


def _kept_by_hydra(job: Any) -> list[Path]:
    """The files in which Hydra keeps a job's configuration and command line."""
    sweep = Path(job.sweep.dir) / "multirun.yaml"
    return [sweep, *(Path(job.runtime.output_dir) / job.output_subdir).glob("*.yaml")] if job.output_subdir else [sweep]


def _one_sentence(error: BaseException) -> str:
    """Hydra's and OmegaConf's several lines as one sentence with the nearest right key."""
    text = f"{error}\n{error.__cause__ or ''}"  # Hydra keeps OmegaConf's reason in the cause
    missing = re.search(r"Could not find '([^']+)'", text)
    if missing:
        group, _, name = missing.group(1).partition("/")
        options = sorted(p.relative_to(CONF / group).with_suffix("").as_posix() for p in (CONF / group).rglob("*.yaml"))
        return f"There is no {group} called {name or group}: use one of {', '.join(options)}."
    unknown = re.search(r"Key '([^']+)' (?:is not in struct|not in '(\w+)')", text)
    if unknown:
        full = re.search(r"full_key: (\S+)", text)
        key = full.group(1) if full else unknown.group(1)
        near = difflib.get_close_matches(unknown.group(1), _all_keys(), n=1)
        return f"{key} is not a configuration key" + (
            f": did you mean {near[0]}?" if near else "; see --cfg job for all."
        )
    lines = [line.strip().rstrip(".") for line in text.splitlines() if line.strip()]
    wrong = next((line for line in lines if line.startswith("Value ")), None)
    full = re.search(r"full_key: (\S+)", text)
    key = full.group(1) if full else getattr(error, "full_key", None)
    told = one_line(wrong or lines[0], 500)
    return f"{key}: {told}." if key and key not in told else f"{told}."


def _all_keys() -> list[str]:
    keys: set[str] = set()

    def collect(node: Any) -> None:
        for name in node:
            keys.add(str(name))
            if OmegaConf.is_dict(node) and OmegaConf.is_dict(node[name]):
                collect(node[name])

    collect(OmegaConf.structured(Train))
    return sorted(keys)
