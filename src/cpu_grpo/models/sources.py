"""A model source (wheel, hub, gguf, path, random) becomes a directory of safetensors, tokenizer and source.json."""

import shutil
import tempfile
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cpu_grpo.config.schema import Model
from cpu_grpo.errors import UserError
from cpu_grpo.files import fingerprint, new_directory, require_space, sha256, write_json
from cpu_grpo.models.checking import check_loadable, reason
from cpu_grpo.models.gguf_header import check_gguf
from cpu_grpo.models.gguf_settings import complete
from cpu_grpo.models.licence import identifier, licence_of_card
from cpu_grpo.models.loading import RECORD, hide_bars, weights_hash
from cpu_grpo.models.trial import try_out
from cpu_grpo.models.wheels import check_file, gguf_in_wheels

ROUNDING = 0.1  # by what share two roundings of one matrix may differ
WEIGHTS = "*.safetensors"
# No code, and no pickles.
KEPT = (WEIGHTS, "*.safetensors.index.json", "*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken")


Filled = tuple[str, str, str]  # where a model comes from, which revision of it, and its licence if that is known


def prepare_model(config: Model, target: Path) -> dict[str, Any]:
    """Makes `target` from the model source; all of it or nothing. Returns what source.json says.

    Raises:
        UserError: the source is missing, truncated, of the wrong hash, a pickle, needs code of its own or more than it
            should take, or the disk is full.
    """
    needed = {"path": "path", "gguf": "path", "hub": "repo"}.get(config.source)
    if needed and getattr(config, needed) in ("", "???"):
        raise UserError(f"model.{needed} is empty: a model from {config.source} needs it, model.{needed}=...")
    fill = {
        "wheel": _from_wheel,
        "hub": _from_hub,
        "gguf": _from_gguf,
        "path": _from_path,
        "random": _at_random,
    }[config.source]
    require_space(target.parent, 1_000_000_000 if config.source in ("wheel", "hub") else 0)
    with new_directory(target) as directory:
        origin, revision, licence = fill(config, directory)
        record = {
            "origin": origin,
            "revision": revision,
            "license": licence,
            "config": fingerprint(asdict(config)),
            "sha256": {path.name: sha256(path) for path in sorted(directory.iterdir())},
        }
        check_loadable(directory)
        try_out(directory, config.name or config.source)
        write_json(directory / RECORD, record)
    return record


def _from_wheel(config: Model, directory: Path) -> Filled:
    with gguf_in_wheels(config) as gguf:
        licence = _dequantise(gguf, directory, config)
    if wheels := config.wheels:
        return f"wheels {wheels[0].package} ... {wheels[-1].package}", wheels[0].version, licence
    return f"wheel {config.package or Path(config.path).name}: {config.member}", config.version, licence


def _at_random(config: Model, directory: Path) -> Filled:
    """A model of `config.shape` in bf16, as models of that size are published, with the tokenizer of a wheel's GGUF."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    sizes = {name: value for name, value in asdict(config.shape).items() if value or name == "tie_word_embeddings"}
    family = sizes.pop("model_type", "")
    with gguf_in_wheels(config) as gguf:
        check_gguf(gguf)
        tokenizer = AutoTokenizer.from_pretrained(
            gguf.parent, gguf_file=gguf.name, trust_remote_code=False, local_files_only=True
        )
    special = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    try:
        settings = AutoConfig.for_model(family, **sizes, **special)
        with torch.device("meta"):
            parameters = AutoModelForCausalLM.from_config(settings, trust_remote_code=False).num_parameters()
        require_space(directory, torch.bfloat16.itemsize * parameters)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(settings, dtype=torch.bfloat16, trust_remote_code=False)
    except ValueError as error:
        raise UserError(
            f"model.shape.model_type={family} is no architecture known here: use qwen2 or llama."
        ) from error
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return f"random weights, {family} of {model.num_parameters():,} parameters", "seed 0", ""


def _from_gguf(config: Model, directory: Path) -> Filled:
    path = Path(config.path)
    check_file(path, config.sha256, "model.path")
    with tempfile.TemporaryDirectory(prefix="cpu_grpo_") as scratch:
        licence = _dequantise(_alone(path, Path(scratch)), directory, config)
    return f"gguf {path.name}", sha256(path), licence


def _alone(gguf: Path, scratch: Path) -> Path:
    """The file in a directory without others, of which transformers would read some."""
    place = scratch / gguf.name
    try:
        place.symlink_to(gguf.absolute())
    except OSError:  # as on Windows, without the right to
        shutil.copyfile(gguf, place)
    return place


def _from_path(config: Model, directory: Path) -> Filled:
    source = Path(config.path)
    check_loadable(source)
    _copy_kept(source, directory)
    return f"path {source.as_posix()}", weights_hash(source), licence_of_card(source)


def _from_hub(config: Model, directory: Path) -> Filled:
    from huggingface_hub import snapshot_download

    try:
        snapshot = snapshot_download(config.repo, revision=config.revision, allow_patterns=[*KEPT, "README.md"])
    except Exception as error:  # hub, HTTP and file-system errors share no base class
        raise UserError(
            f"The hub model {config.repo} at revision {config.revision} could not be had ({type(error).__name__}): "
            "check model.repo, model.revision and the connection."
        ) from error
    check_loadable(Path(snapshot))
    _copy_kept(Path(snapshot), directory)
    return f"hub {config.repo}", Path(snapshot).name, licence_of_card(Path(snapshot))


def _copy_kept(source: Path, directory: Path) -> None:
    """Copies a model's data, following links where they stay with the model.

    Raises:
        UserError: one leads elsewhere, and is not to weights, which nothing else can be taken for; or the disk is full.
    """
    found = sorted(
        {path for pattern in KEPT for path in source.glob(pattern) if path.name != RECORD and not path.is_dir()}
    )
    homes = [source.resolve(), source.resolve().parent.parent / "blobs"]  # the latter of a snapshot in the hub's cache
    for path in found:
        if not path.is_file():
            raise UserError(f"{path} is no ordinary file: remove it.")
        inside = any(path.resolve().is_relative_to(home) for home in homes)
        if not (inside or path.match(WEIGHTS)):
            raise UserError(f"{path} is a link to {path.resolve()}, outside of the model: copy that file there.")
    require_space(directory, sum(path.stat().st_size for path in found))
    for path in found:
        shutil.copyfile(path, directory / path.name)


def _dequantise(gguf: Path, directory: Path, config: Model) -> str:
    """A GGUF file, alone in its directory, as fp32 safetensors with its tokenizer; returns the licence it names."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, modeling_gguf_pytorch_utils

    header = check_gguf(gguf)
    require_space(directory, torch.float32.itemsize * header.numbers)
    hide_bars()
    # This reader's bar is none of those that transformers can turn off; without `disable` it shows on a terminal only.
    modeling_gguf_pytorch_utils.tqdm = partial(tqdm, disable=None)
    source: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True}
    try:
        settings = AutoConfig.from_pretrained(gguf.parent, trust_remote_code=False, **source)
        complete(settings, header, gguf)
        loaded = AutoModelForCausalLM.from_pretrained(
            gguf.parent, config=settings, dtype=torch.float32, trust_remote_code=False, **source
        )
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, trust_remote_code=False, **source)
    except Exception as error:  # the reader raises whatever a broken file makes it stumble over
        raise UserError(
            f"{gguf.name} cannot be read as a GGUF model ({reason(error)}): it may be truncated; fetch it again."
        ) from error
    # A model loaded from GGUF refuses to be saved until it forgets that it was quantised.
    settings = loaded.config
    if hasattr(settings, "quantization_config"):
        del settings.quantization_config
    if config.shape.model_type and config.shape.tie_word_embeddings and not settings.tie_word_embeddings:
        _tie(loaded, gguf)
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(settings, dtype=torch.float32, trust_remote_code=False)
    plain.load_state_dict(loaded.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = loaded.generation_config
    plain.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return identifier(header.values.get("general.license"))


def _tie(model: Any, gguf: Path) -> None:
    """Makes the head's weight the embedding's too: files that round one matrix in two ways round the head's finer.

    Raises:
        UserError: they are two matrices.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if (embedding.weight - head.weight).norm() > ROUNDING * head.weight.norm():
        raise UserError(
            f"model.shape.tie_word_embeddings is true, and the head of {gguf.name} is another matrix than its "
            "embedding: set it to false."
        )
    embedding.weight = head.weight
    model.config.tie_word_embeddings = True
