"""Which model directories there are, and the base model's, made at need."""

from dataclasses import asdict
from pathlib import Path

from cpu_grpo.config.schema import Model
from cpu_grpo.errors import UserError
from cpu_grpo.files import fingerprint
from cpu_grpo.models.checking import check_loadable
from cpu_grpo.models.loading import model_record
from cpu_grpo.models.sources import prepare_model
from cpu_grpo.models.trial import try_out
from cpu_grpo.workspace.layout import CACHE, Layout


def base_model(config: Model) -> Path:
    """The base model's directory: the pipeline's if made from this configuration, else the cache's, made at need."""
    if found := made_model("base", config):
        return found
    cached = _cached_model(config)
    prepare_model(config, cached)
    from cpu_grpo.hardware import release_memory

    release_memory()  # a GGUF file's weights, which this process has held, are not what it was planned to take
    return cached


def made_model(name: str, config: Model) -> Path | None:
    """The directory of `base`, of a trained variant or of this name; None where it has not been made."""
    if name == "base":
        own, cached = Layout(Path()).model("base"), _cached_model(config)
        if model_record(own).get("config") == fingerprint(asdict(config)):
            return own
        return cached if model_record(cached) else None
    return held_model(name)


def held_model(name: str) -> Path | None:
    """The model of this name below models/, whatever it was made from, or the directory; None where there is none."""
    directories = (Layout(Path()).model(name), Path(name))
    return next((directory for directory in directories if (directory / "config.json").is_file()), None)


def _cached_model(config: Model) -> Path:
    return CACHE / "models" / f"{Path(config.name).name}-{fingerprint(asdict(config))}"


def find_model(name: str, config: Model) -> Path:
    """`base`, the name of a trained variant, or a directory, whose chat template is tried out as a base model's was.

    Raises:
        UserError: there is no such model yet, or it takes more than it should to make a prompt.
    """
    if name == "base":
        return base_model(config)
    if found := made_model(name, config):
        check_loadable(found)
        try_out(found, name)
        return found
    raise UserError(
        f"The model {name} has not been trained: there is neither models/{name} nor a directory {name}; train it with "
        f"`dvc repro train@{name}`, or start from base."
    )
