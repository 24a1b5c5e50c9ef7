"""What a model directory must be before anything in it is read: whole, plain data, and of sizes that it can have.

Nothing here runs or unpickles what a directory holds; of weights, the headers alone are read.
"""

from math import prod
from pathlib import Path
from typing import Any

from cpu_grpo import files
from cpu_grpo.errors import UserError
from cpu_grpo.text import one_line, shown

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
LARGEST_JSON = 64 << 20  # bytes
SLACK = 10  # times as large as its weights a configuration may say that a model is: some are stored packed
# What families of models call their sizes.
SIZES = {
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "width": ("hidden_size", "n_embd", "d_model", "dim"),
    "inner": ("intermediate_size", "n_inner", "ffn_dim", "d_ff"),
    "heads": ("num_attention_heads", "n_head", "num_heads"),
    "head_dim": ("head_dim", "d_kv"),
    "vocabulary": ("vocab_size",),
    "experts": ("num_experts", "num_local_experts", "n_routed_experts"),
}


def check_loadable(directory: Path) -> None:
    """Raises UserError unless the directory has whole safetensors, a config that fits them and a tokenizer."""
    if not directory.is_dir():
        raise UserError(f"There is no model directory {directory}: check the path.")
    for name in ("config.json", "tokenizer_config.json"):
        if not (directory / name).is_file():
            raise UserError(f"{directory} has no {name}, so it is no complete model: copy it there.")
        read_object(directory / name)
    if (directory / "adapter_config.json").exists():
        raise UserError(f"{directory} has adapters of another model (adapter_config.json): merge them into it first.")
    settings = read_object(directory / "config.json")
    _check_code(directory, settings)
    shapes = [shape for path in weight_files(directory) for shape in _shapes(path)]
    text = settings.get("text_config")
    sizes = settings | text if isinstance(text, dict) else settings
    if doubt := unbelievable(sizes, len(shapes), sum(map(prod, shapes))):
        raise UserError(f"{directory / 'config.json'} tells of {doubt}: fetch the model again, or mend config.json.")


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object of a model's.

    Raises:
        UserError: it is none, or larger than any model's is.
    """
    if (size := path.stat().st_size) > LARGEST_JSON:
        raise UserError(f"{path} has {size / 1e9:.1f} GB, far more than a model's: fetch the model again.")
    return files.read_object(path, "fetch the model again")


def weight_files(directory: Path) -> list[Path]:
    """The safetensors that hold the model.

    Raises:
        UserError: some are missing, they are pickles, or the index names files elsewhere.
    """
    index = directory / "model.safetensors.index.json"
    paths = _indexed(index) if index.is_file() else sorted(directory.glob("*.safetensors"))
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise UserError(f"{directory} lacks {missing[0]}, which its index lists: fetch the model again.")
    if not paths:
        pickles = [path.name for pattern in PICKLES for path in directory.glob(pattern)]
        if pickles:
            raise UserError(
                f"{directory} has its weights as a pickle ({pickles[0]}), which can run code when opened: convert it "
                "to safetensors first."
            )
        raise UserError(f"{directory} has no *.safetensors: give a directory with a model's weights.")
    return paths


def _indexed(index: Path) -> list[Path]:
    names = read_object(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise UserError(f"{index} has no weight_map from tensors to files: fetch the model again.")
    for name in names.values():
        if not name.endswith(".safetensors") or Path(name).name != name or "\\" in name:
            raise UserError(
                f"{index} takes weights from {shown(name)}, and only *.safetensors beside it are read: fetch the model "
                "again, or mend the index."
            )
    return [index.parent / name for name in sorted(set(names.values()))]


def _shapes(path: Path) -> list[list[int]]:
    """Of all tensors in a file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as tensors:
            return [tensors.get_slice(name).get_shape() for name in tensors.keys()]  # noqa: SIM118 - it is no dict
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged or truncated ({error}): fetch it again.") from error


def _check_code(directory: Path, settings: dict[str, Any]) -> None:
    """Refuses what transformers would have to run or fetch code for."""
    if "auto_map" in settings:
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

        family = settings.get("model_type")
        if not isinstance(family, str) or family not in CONFIG_MAPPING_NAMES:
            raise UserError(
                f"{directory} is a model that needs code of its own (auto_map in config.json), and no model's code is "
                "run here: take one that transformers knows by itself."
            )
    for part in (settings, *(value for value in settings.values() if isinstance(value, dict))):
        for key, value in part.items():
            if key.endswith("_implementation") and "/" in str(value):
                raise UserError(
                    f"{directory / 'config.json'} has {key}={shown(str(value))}, which is code from a hub, and no "
                    "model's code is run here: remove that key."
                )


def unbelievable(settings: dict[str, Any], tensors: int, held: int) -> str:
    """What of a configuration's sizes the weights cannot have, in words; empty where all is well.

    It matters as memory is taken for what a configuration says.

    Args:
        tensors: that the weights are.
        held: numbers in them.
    """
    sizes = _sizes(settings)
    layer = sizes["width"] * (sizes["inner"] * sizes["experts"] + sizes["heads"] * sizes["head_dim"])
    told = sizes["vocabulary"] * sizes["width"] + sizes["layers"] * layer
    if told <= SLACK * held and sizes["layers"] <= SLACK * tensors:
        return ""
    return (
        f"{sizes['layers']:,} layers and {told:,} numbers or more, and its weights are {tensors:,} tensors of {held:,}"
    )


def _sizes(settings: dict[str, Any]) -> dict[str, int]:
    """By our name; 1 for what is not told."""
    found = {}
    for size, names in SIZES.items():
        found[size] = max((own for name in names if isinstance(own := settings.get(name), int) and own > 0), default=1)
    return found


def reason(error: BaseException) -> str:
    """What a library says of a broken file, in a line."""
    return one_line(next(iter(str(error).splitlines()), ""), 200) or type(error).__name__
