"""docs/export.md: its commands run, and its types are those that there are."""

import re
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub

from conftest import ROOT
from cpu_grpo.export.__main__ import main
from cpu_grpo.export.gguf_file import LOSSES

TEXT = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()]
OURS = "python -m cpu_grpo.export "


def test_every_command_of_ours_runs_and_makes_what_is_said(place, monkeypatch):
    done = SimpleNamespace(commit_url="address")
    api = SimpleNamespace(create_repo=lambda *given, **named: None, upload_folder=lambda **named: done)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    for name in ("base", "ultra_fast", "ultra_fast_lora"):
        shutil.copytree("models/tiny", f"models/{name}")
    Path("models/ultra_fast_lora/adapter").mkdir()
    Path("models/ultra_fast_lora/adapter/adapter_config.json").write_text("{}")
    own = [line for line in COMMANDS if line.startswith(OURS)]
    assert len(own) > 5
    for line in own:
        main(shlex.split(line.removeprefix(OURS), comments=True))
    for path in re.findall(r"(?:exports/)?[\w-]+(?:/[\w-]+)?\.gguf", "\n".join(COMMANDS)):
        assert Path(path).is_file()
    assert Path("exports/ultra_fast-ollama/Modelfile").is_file()
    assert Path("exports/ultra_fast_lora-adapter/adapter_config.json").is_file()


def test_every_other_command_says_what_it_needs():
    others = [line for line in COMMANDS if not line.startswith(OURS)]
    assert others and all(re.search(r"# .*(needs|long)", line) for line in others)


def test_the_types_are_listed():
    assert all(f"`{dtype}`" in TEXT for dtype in LOSSES)
