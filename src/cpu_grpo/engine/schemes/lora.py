"""The LoRA scheme: adapters on a model that is held in bf16 and does not change, and a model of both at the end."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cpu_grpo.engine.decoder import decoder
from cpu_grpo.engine.schemes.lean import rounded


def adapters(rank: int, alpha: float) -> Any:
    """PEFT's configuration: adapters on all projections of the layers."""
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear", task_type="CAUSAL_LM")


def keep_adapters(model: Any, directory: Path) -> None:
    """Saves a PEFT model's adapters as PEFT reads them: adapter_config.json and adapter_model.safetensors."""
    model.save_pretrained(directory, save_embedding_layers=False)  # told so, PEFT does not look for the base on a hub
    (directory / "README.md").unlink(missing_ok=True)  # PEFT's card, a form with nothing filled in


@torch.no_grad()
def merged(model: Any, seed: int) -> Any:
    """The base model of a PEFT model, its adapters added to its weights in place.

    What adapters add is mostly less than bf16 can tell apart from a weight, so sums are rounded up or down at random,
    in proportion.
    """
    random = torch.Generator().manual_seed(seed)
    for layer in decoder(model).layers:
        for part in (layer.q, layer.k, layer.v, layer.o, layer.gate, layer.up, layer.down):
            wide = replace(part, weight=part.weight.float()).merged()
            part.weight.copy_(rounded(wide, part.weight.dtype, random))
    return model.unload()
