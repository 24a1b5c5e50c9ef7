"""Exports as a user makes them: what lies there afterwards, what it says, and what is refused."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import metadata_load
from safetensors.torch import load_file

from conftest import with_lora
from cpu_grpo import files
from cpu_grpo.errors import UserError
from cpu_grpo.experiment.statistics import wilson
from cpu_grpo.export import formats
from cpu_grpo.export.__main__ import main
from cpu_grpo.export.source import find_source
from cpu_grpo.files import sha256, write_json, write_jsonl, write_sealed
from cpu_grpo.models.integrity import file_hashes, intact_hash
from cpu_grpo.models.loading import RECORD, load_model

RECIPE = {
    "name": "tiny",
    "init_from": "base",
    "method": "grpo",
    "seed": 7,
    "memory": {"scheme": "lora"},
    "trainer": {"learning_rate": 1e-5},
    "task": {"name": "gsm8k_8shot", "kind": "gsm8k"},
}


@pytest.fixture
def trained(place):
    """models/tiny as training leaves it, with its results and the base's."""
    model = place / "models" / "tiny"
    base = {"origin": "hub someone/small", "revision": "0123abcd", "license": "apache-2.0"}
    record = {"origin": "variant tiny from base", "revision": "0123abcd", "base": base, "recipe": RECIPE}
    write_json(model / RECORD, record | {"sha256": file_hashes(model)})
    figures = {"variant": "tiny", "updates": 12, "completions": 768, "reward_first": 0.2, "reward_last": 0.4}
    write_sealed(place / "results" / "train" / "tiny.json", figures)
    evaluated(place, "base", [True] * 3 + [False] * 17, "whatever")
    evaluated(place, "tiny", [True] * 13 + [False] * 7, intact_hash(model))
    return place


def evaluated(place, name, right, model_hash):
    rows = place / "results" / "evaluate" / f"{name}.jsonl"
    answer = {"question": "q", "answer": "1", "completion": "1"}
    write_jsonl(rows, [answer | {"id": str(number), "right": one} for number, one in enumerate(right)])
    interval = wilson(sum(right), len(right))
    figures = {"model": name, "model_hash": model_hash, "task": "gsm8k_8shot", "split": "test", "extraction": "strict"}
    figures |= {"n": len(right), "sha256.jsonl": sha256(rows)}
    for key in ("accuracy", "strict", "flexible"):
        own = "accuracy" if key == "accuracy" else f"{key}_accuracy"
        figures |= {own: sum(right) / len(right), f"{key}_low": interval.low, f"{key}_high": interval.high}
    write_sealed(rows.with_suffix(".json"), figures)


def export(*arguments):
    main(["tiny", *arguments])


def test_gguf_goes_to_a_directory_with_its_card_or_to_a_file(place, capsys):
    export("--to", "gguf")
    assert sorted(path.name for path in Path("exports/tiny-gguf").iterdir()) == [
        "README.md",
        "source.json",
        "tiny-f16.gguf",
    ]
    export("--to", "gguf", "--dtype", "q8_0", "--out", "out/mine.gguf")
    assert sorted(path.name for path in Path("out").iterdir()) == ["mine.README.md", "mine.gguf"]
    told = capsys.readouterr().out.splitlines()
    assert told == ["exports/tiny-gguf: tiny as gguf", "out/mine.gguf: tiny as gguf"]
    intact_hash(Path("exports/tiny-gguf"))


def test_ollama_gets_a_modelfile_beside_the_file_that_it_names(place):
    export("--to", "ollama")
    text = Path("exports/tiny-ollama/Modelfile").read_text()
    assert text.startswith("FROM ./tiny-q8_0.gguf\n") and 'TEMPLATE """' in text
    assert Path("exports/tiny-ollama/tiny-q8_0.gguf").is_file()


@pytest.mark.parametrize(("dtype", "kind"), [("", torch.float32), ("f16", torch.float16), ("bf16", torch.bfloat16)])
def test_safetensors_are_the_model_in_another_type(place, dtype, kind):
    export("--to", "safetensors", *(["--dtype", dtype] if dtype else []), "--out", "out")
    _, tokenizer = load_model(Path("out"))
    before = load_file(place / "models" / "tiny" / "model.safetensors")
    after = load_file(place / "out" / "model.safetensors")
    assert before.keys() == after.keys() and tokenizer.chat_template
    assert all(torch.equal(after[name], weight.to(kind)) for name, weight in before.items())
    intact_hash(Path("out"))
    find_source("out")


def test_adapters_come_apart_and_give_the_trained_model_on_their_base(trained, kept):
    from peft import PeftModel

    from cpu_grpo.engine.schemes.lora import keep_adapters, merged

    adapted = with_lora(load_model(kept["llama"], torch.bfloat16)[0])
    keep_adapters(adapted, trained / "models" / "tiny" / "adapter")
    merged(adapted, 0).save_pretrained(trained / "models" / "tiny")
    record = json.loads((trained / "models" / "tiny" / RECORD).read_text())
    write_json(trained / "models" / "tiny" / RECORD, record | {"sha256": file_hashes(trained / "models" / "tiny")})

    export("--to", "adapter")
    out = Path("exports/tiny-adapter")
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == "someone/small"
    assert metadata_load(out / "README.md")["base_model_relation"] == "adapter"
    again = PeftModel.from_pretrained(load_model(kept["llama"])[0], out).merge_and_unload().eval()
    whole, _ = load_model(trained / "models" / "tiny")
    for (name, one), (_, other) in zip(again.named_parameters(), whole.named_parameters(), strict=True):
        assert (one - other).abs().max() <= 2**-7 * one.abs().max(), name  # bf16 rounds to one neighbour or the other


def test_an_adapter_that_was_altered_is_noticed(trained, kept):
    folder = trained / "models" / "tiny" / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    record = json.loads((trained / "models" / "tiny" / RECORD).read_text())
    whole = intact_hash(trained / "models" / "tiny")
    write_json(trained / "models" / "tiny" / RECORD, record | {"sha256": file_hashes(trained / "models" / "tiny")})
    assert intact_hash(trained / "models" / "tiny") == whole  # what is trained from it begins from the whole model
    (folder / "adapter_config.json").write_text("{ }")
    with pytest.raises(UserError, match=r"adapter_config.json was truncated or altered"):
        find_source("tiny")


def test_a_model_without_adapters_says_why(trained, place):
    with pytest.raises(
        UserError, match=r"tiny has no adapters of its own .* memory=lora keep their adapters; use --to"
    ):
        export("--to", "adapter")
    record = json.loads((place / "models" / "tiny" / RECORD).read_text())
    record["recipe"]["memory"]["scheme"] = "full"
    write_json(place / "models" / "tiny" / RECORD, record)
    with pytest.raises(UserError, match=r"tiny was trained without LoRA"):
        export("--to", "adapter")
    assert not Path("exports").exists()


def test_the_card_has_recipe_figures_data_and_licences(trained):
    export("--to", "gguf")
    card = Path("exports/tiny-gguf/README.md")
    front = metadata_load(card)
    assert (front["license"], front["base_model"], front["library_name"]) == ("apache-2.0", "someone/small", "gguf")
    assert front["datasets"] == ["openai/gsm8k"] and "grpo" in front["tags"]
    (result,) = front["model-index"][0]["results"]
    (metric,) = result["metrics"]
    interval = wilson(13, 20)
    assert (metric["type"], metric["value"], metric["args"]["n"]) == ("accuracy", 13 / 20, 20)
    assert metric["args"]["interval_95"] == [interval.low, interval.high]
    text = card.read_text()
    assert f"65.0 % | {100 * interval.low:.1f} to {100 * interval.high:.1f} %" in " ".join(text.split())
    assert "Gain over the base model on the same problems: +50.0 points" in text
    assert "trainer.learning_rate | 1e-05" in " ".join(text.split()) and "| updates " in text
    assert "Licence of the data: MIT" in text and "name apache-2.0" in text


def test_the_card_says_what_is_not_known(place):
    export("--to", "safetensors")
    card = Path("exports/tiny-safetensors/README.md")
    assert metadata_load(card)["license"] == "unknown" and "model-index" not in metadata_load(card)
    assert "It was not evaluated" in card.read_text() and "licence of the base model is unknown" in card.read_text()


def test_figures_of_other_weights_under_the_same_name_are_left_out(trained):
    evaluated(trained, "tiny", [True] * 20, "of another run")
    export("--to", "gguf")
    card = Path("exports/tiny-gguf/README.md")
    assert "An evaluation under this name was of other weights" in card.read_text()
    assert "model-index" not in metadata_load(card)


def test_an_export_takes_the_place_of_an_earlier_one_and_of_nothing_else(place):
    mine = place / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    for out in ("mine", "models/tiny", "models", "."):
        for kind in ("gguf", "ollama", "safetensors"):
            with pytest.raises(UserError, match=r"give another --out"):
                export("--to", kind, "--out", out)
    (place / "file").write_text("")
    with pytest.raises(UserError, match=r"file is a file, and a directory is to be written"):
        export("--to", "gguf", "--out", "file")
    (mine / "other.gguf").write_text("of another model")
    with pytest.raises(UserError, match=r"other.gguf is there already, and is no earlier export"):
        export("--to", "gguf", "--out", "mine/other.gguf")
    assert sorted(path.read_text() for path in mine.iterdir()) == ["of another model", "years of work"]
    for _ in range(2):
        export("--to", "gguf", "--out", "out.gguf")
    for kind in ("gguf", "ollama"):
        export("--to", kind, "--out", "out")
    assert (place / "out" / "Modelfile").is_file() and not (place / "out" / "tiny-f16.gguf").exists()


@pytest.mark.parametrize("kind", ["gguf", "ollama", "safetensors"])
def test_a_full_disk_is_told_before_anything_is_written(place, monkeypatch, kind):
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 10**12, 10**4))
    with pytest.raises(UserError, match=r"has 0.0 GB of free disk and 0.0 GB are needed"):
        export("--to", kind, "--out", "out/x")
    assert list(Path("out").iterdir()) == []


@pytest.mark.parametrize("out", ["out/x", "out/x.gguf"])
def test_what_fails_on_the_way_leaves_nothing(place, monkeypatch, out):
    def broken(plan, path):
        path.write_bytes(b"half")
        raise UserError("it broke")

    monkeypatch.setattr(formats, "write_gguf", broken)
    with pytest.raises(UserError, match="it broke"):
        export("--to", "gguf", "--out", out)
    assert list(Path("out").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nobody", "--to", "gguf"], r"There is no model nobody: .* train it with `dvc repro train@nobody`"),
        (["base", "--to", "gguf"], r"There is no model base: .* make it with `python pipelines/model.py`"),
        (["tiny", "--to", "gguf", "--dtype", "q3"], r"--dtype q3 is no type of gguf: use one of f16, f32"),
        (["tiny", "--to", "adapter", "--dtype", "f16"], r"--dtype f16 is no type of adapter: use one of as trained"),
        (["tiny", "--to", "ollama", "--out", "m.gguf"], r"m.gguf is a GGUF file, and --to ollama writes a directory"),
    ],
)
def test_bad_arguments_are_told_in_a_sentence(place, arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        main(arguments)
    assert not Path("exports").exists()


def test_a_damaged_model_is_not_exported(trained):
    file = trained / "models" / "tiny" / "tokenizer.json"
    file.write_text(file.read_text() + " ")
    with pytest.raises(UserError, match=r"tokenizer.json was truncated or altered"):
        export("--to", "gguf")


@pytest.mark.slow
def test_the_command_is_quiet_and_ends_with_one_sentence_and_no_traceback(place):
    command = [sys.executable, "-m", "cpu_grpo.export", "tiny", "--out", "out"]
    done = [
        subprocess.run([*command, "--to", kind], capture_output=True, text=True, check=False)
        for kind in ("safetensors", "adapter")
    ]
    assert (done[0].returncode, done[0].stdout, done[0].stderr) == (0, "out: tiny as safetensors\n", "")
    assert done[1].returncode == 1 and not done[1].stdout
    assert done[1].stderr.startswith("error: tiny has no adapters") and len(done[1].stderr.splitlines()) == 1
