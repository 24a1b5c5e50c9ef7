"""What each kind of export consists of."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cpu_grpo.errors import UserError
from cpu_grpo.export.architecture import unread
from cpu_grpo.export.card import Contents, card
from cpu_grpo.export.gguf_file import LOSSES, plan_gguf, write_gguf
from cpu_grpo.export.modelfile import modelfile
from cpu_grpo.export.place import check_free, new_export, new_lone_file
from cpu_grpo.export.source import Source
from cpu_grpo.files import read_object, write_json, write_text
from cpu_grpo.models.checking import weight_files
from cpu_grpo.models.loading import ADAPTERS, hide_bars, load_tokenizer, load_weights

PLAIN = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}  # torch's names


@dataclass(frozen=True)
class Done:
    """An export that lies where it was to."""

    place: Path
    notices: list[str]


@dataclass(frozen=True)
class Format:
    """A kind of export."""

    dtypes: tuple[str, ...]  # the first unless another is asked for
    write: Callable[[Source, str, Path], Done]


def export_gguf(source: Source, dtype: str, target: Path) -> Done:
    """A GGUF file and its card in a directory, or beside one another where `target` ends in .gguf."""
    plan = plan_gguf(source, dtype)
    file = target.name if target.suffix == ".gguf" else f"{source.name}-{dtype}.gguf"
    text = card(source, Contents("gguf", dtype, file))
    if target.suffix == ".gguf":
        with new_lone_file(target, text, plan.size) as partial:
            write_gguf(plan, partial)
        return Done(target, unread(plan.settings))
    with new_export(target, source, "gguf", plan.size) as directory:
        write_gguf(plan, directory / file)
        write_text(directory / "README.md", text)
    return Done(target, unread(plan.settings))


def export_ollama(source: Source, dtype: str, target: Path) -> Done:
    """A GGUF file and the Modelfile that `ollama create` takes."""
    plan = plan_gguf(source, dtype)
    file = f"{source.name}-{dtype}.gguf"
    text, missing = modelfile(plan, load_tokenizer(source.directory), file)
    with new_export(target, source, "ollama", plan.size) as directory:
        write_gguf(plan, directory / file)
        write_text(directory / "Modelfile", text)
        write_text(directory / "README.md", card(source, Contents("ollama", dtype, file)))
    return Done(target, [sentence for sentence in (missing, *unread(plan.settings)) if sentence])


def export_safetensors(source: Source, dtype: str, target: Path) -> Done:
    """A directory as `from_pretrained` takes it."""
    import torch

    if dtype == "as stored":
        dtype = next((name for name, own in PLAIN.items() if own == _stored(source)), "f32")
    kind = getattr(torch, PLAIN[dtype])
    check_free(target, source)
    hide_bars()
    model = load_weights(source.directory, kind)
    if not all(torch.isfinite(parameter).all() for parameter in model.parameters()):
        raise UserError(
            f"{source.directory} has weights that {dtype} cannot hold, or that are no numbers: use --dtype bf16 or f32."
        )
    with new_export(target, source, "safetensors", kind.itemsize * model.num_parameters()) as directory:
        model.save_pretrained(directory)
        load_tokenizer(source.directory).save_pretrained(directory)
        _compare(model, directory)
        write_text(directory / "README.md", card(source, Contents("safetensors", dtype, "")))
    return Done(target, [])


def _stored(source: Source) -> str:
    settings = read_object(source.directory / "config.json", "fetch the model again")
    return str(settings.get("dtype") or settings.get("torch_dtype"))


def _compare(model: object, directory: Path) -> None:
    """Raises UserError where what was written is not the model when read back."""
    import torch
    from safetensors import safe_open

    own = model.state_dict()  # type: ignore[attr-defined]
    for path in weight_files(directory):
        with safe_open(path, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118 - it is no dict
                if not torch.equal(stored.get_tensor(name), own[name]):
                    raise UserError(
                        f"{name} of {path} is not the model's when read back: check the disk, and try again."
                    )


def export_adapter(source: Source, dtype: str, target: Path) -> Done:
    """The adapters that LoRA trained, as PEFT takes them."""
    own = source.directory / ADAPTERS
    if not (own / "adapter_config.json").is_file():
        why = "was trained without LoRA" if _scheme(source) not in ("", "lora") else "has no adapters of its own"
        raise UserError(
            f"{source.name} {why} (there is no {own}): only variants trained with memory=lora keep their adapters; use "
            "--to safetensors for the whole model."
        )
    with new_export(target, source, "adapter", sum(path.stat().st_size for path in own.iterdir())) as directory:
        for path in own.iterdir():
            shutil.copyfile(path, directory / path.name)
        settings = read_object(own / "adapter_config.json", "train the variant again")
        write_json(directory / "adapter_config.json", settings | {"base_model_name_or_path": source.start})
        write_text(directory / "README.md", card(source, Contents("adapter", dtype, "")))
    return Done(target, [])


def _scheme(source: Source) -> str:
    memory = source.recipe.get("memory")
    return str(memory.get("scheme", "")) if isinstance(memory, dict) else ""


FORMATS = {
    "gguf": Format(("f16", *(name for name in LOSSES if name != "f16")), export_gguf),
    "ollama": Format(("q8_0", *(name for name in LOSSES if name != "q8_0")), export_ollama),
    "safetensors": Format(("as stored", *PLAIN), export_safetensors),
    "adapter": Format(("as trained",), export_adapter),
}
