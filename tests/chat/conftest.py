"""A workspace with models that differ, as training leaves them."""

import json
import shutil

import pytest
import torch
from tiny import tiny_config

ASKED = {"name": "sums", "system": "You add.", "template": "", "instruction": "Answer after ####.", "examples": []}


@pytest.fixture
def models(tmp_path, monkeypatch, tokenizer, tiny_directory):
    """models/base as it is, and models/first with other weights and a record of how it was asked."""
    from transformers import LlamaForCausalLM

    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_directory, tmp_path / "models" / "base")
    first = tmp_path / "models" / "first"
    torch.manual_seed(1)
    LlamaForCausalLM(tiny_config(tokenizer)).save_pretrained(first)
    tokenizer.save_pretrained(first)
    (first / "source.json").write_text(json.dumps({"origin": "variant first from base", "asked": ASKED}))
    return tmp_path / "models"
