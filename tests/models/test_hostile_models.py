"""Models that want to run code, reach other files or take more than there is: refused in a sentence, nothing runs."""

import ast
import json
import os
import pickle
import shutil
import struct
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest
import torch

from conftest import ROOT
from cpu_grpo import files
from cpu_grpo.config.schema import Model, Task
from cpu_grpo.errors import UserError
from cpu_grpo.models import sources, trial, wheels
from cpu_grpo.models.loading import load_model, load_tokenizer
from cpu_grpo.models.sources import prepare_model
from cpu_grpo.models.trial import try_out
from cpu_grpo.tasks.problems import Problem
from cpu_grpo.tasks.prompts import prompt, prompt_ids
from cpu_grpo.workspace.models import find_model


class Bomb:
    """Leaves a trace where it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return (os.mkdir, (str(self.trace),))


def change(path: Path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def refused(source: Path, sentence: str) -> str:
    """What is said of a directory that is refused; nothing may be left of it."""
    out = source.parent / "out"
    with pytest.raises(UserError, match=sentence) as caught:
        prepare_model(Model(name="m", source="path", path=str(source)), out / "base")
    assert not out.exists() or not list(out.iterdir())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def taken(source: Path) -> Path:
    target = source.parent / "out" / "base"
    prepare_model(Model(name="m", source="path", path=str(source)), target)
    return target


# Code


def test_every_call_that_could_fetch_code_says_that_it_must_not():
    seen = 0
    for path in (ROOT / "src").rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)):
                continue
            owner = call.func.value.id if isinstance(call.func.value, ast.Name) else ""
            if owner.startswith("Auto") and call.func.attr in ("from_pretrained", "from_config"):
                given = {word.arg: word.value for word in call.keywords}
                assert ast.unparse(given["trust_remote_code"]) == "False", f"{path}:{call.lineno}"
                seen += 1
            assert (owner, call.func.attr) not in {("pickle", "load"), ("pickle", "loads"), ("joblib", "load")}
            if (owner, call.func.attr) == ("torch", "load"):
                assert ast.unparse(next(w.value for w in call.keywords if w.arg == "weights_only")) == "True"
    assert seen >= 7


def test_pickles_beside_the_weights_are_neither_opened_nor_copied(source):
    trace = source.parent / "trace"
    for name in ("pytorch_model.bin", "model.pt", "x.pkl", "training_args.bin", "optimizer.pt", "rng_state.pth"):
        (source / name).write_bytes(pickle.dumps(Bomb(trace)))
    load_model(taken(source))
    load_model(source)
    assert not trace.exists()
    assert {path.suffix for path in (source.parent / "out" / "base").iterdir()} == {".json", ".jinja", ".safetensors"}


@pytest.fixture
def code(source, monkeypatch):
    """Adds a module to the model that leaves a trace where it is imported; somebody says yes to every question."""
    import io

    trace = source.parent / "trace"
    (source / "own.py").write_text(f"import os\nos.mkdir({str(trace)!r})\n")
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 99))
    yield source
    assert not trace.exists()


def test_a_model_that_needs_its_own_code_is_refused_and_its_code_is_not_run(code):
    change(code / "config.json", model_type="own", auto_map={"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"})
    refused(code, r"needs code of its own \(auto_map in config.json\), and no model's code is run here: take one that")


def test_a_known_model_that_brings_code_is_read_without_it(code):
    change(code / "config.json", auto_map={"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"})
    target = taken(code)
    assert type(load_model(target)[0]).__name__ == "LlamaForCausalLM"
    assert not list(target.glob("*.py"))


def test_a_tokenizer_that_needs_its_own_code_is_refused_and_its_code_is_not_run(code):
    change(code / "tokenizer_config.json", tokenizer_class="Own", auto_map={"AutoTokenizer": ["own.T", None]})
    with pytest.raises(
        UserError, match=r"cannot be read as a model and tokenizer .*: fetch it again, or take one that"
    ):
        load_tokenizer(code)


def test_attention_from_a_hub_is_refused(source):
    change(source / "config.json", attn_implementation="somebody/kernel")
    refused(source, "attn_implementation='somebody/kernel', which is code from a hub")


def test_adapters_of_another_model_are_refused(source):
    (source / "adapter_config.json").write_text('{"base_model_name_or_path": "somebody/model", "peft_type": "LORA"}')
    refused(source, r"adapters of another model \(adapter_config.json\): merge them into it first")


# Other files


@pytest.mark.parametrize(
    "name", ["../../../etc/passwd", "/etc/passwd", "..", "pytorch_model.bin", "a/b.safetensors", "..\\x.safetensors"]
)
def test_weights_elsewhere_are_refused(source, name):
    shutil.copy(source / "model.safetensors", source.parent / "x.safetensors")
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    refused(source, r"takes weights from '.*', and only \*.safetensors beside it are read")


@pytest.mark.parametrize("index", ["{}", "[]", "{", '{"weight_map": []}', '{"weight_map": {"a": 5}}', "[" * 100_000])
def test_an_index_that_is_none_is_refused(source, index):
    (source / "model.safetensors.index.json").write_text(index)
    refused(source, r"index.json (has no weight_map|is not JSON|is no JSON object)")


@pytest.mark.skipif(sys.platform == "win32", reason="links need a right there")
def test_links_that_lead_out_of_a_model_are_refused_but_those_to_weights(source):
    secret = source.parent / "secret"
    secret.write_text("password")
    (source / "vocab.txt").symlink_to(secret)
    refused(source, "vocab.txt is a link to .*secret, outside of the model: copy that file there")
    (source / "vocab.txt").unlink()
    (source / "model.safetensors").rename(source.parent / "large.safetensors")
    (source / "model.safetensors").symlink_to(source.parent / "large.safetensors")
    (source / "same.txt").symlink_to("config.json")
    assert not (taken(source) / "model.safetensors").is_symlink()


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="POSIX's")
@pytest.mark.parametrize("make", [lambda path: path.symlink_to("/dev/zero"), os.mkfifo], ids=["endless", "pipe"])
def test_what_is_no_ordinary_file_is_refused(source, make):
    make(source / "vocab.txt")
    refused(source, "vocab.txt is no ordinary file: remove it")


def test_a_gguf_file_is_read_without_what_lies_beside_it(gguf_file, tmp_path):
    shutil.copy(gguf_file, tmp_path / "tiny.gguf")
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "somebody/model"}')
    (tmp_path / "generation_config.json").write_text("{")
    prepare_model(Model(name="m", source="gguf", path=str(tmp_path / "tiny.gguf")), tmp_path / "out" / "base")
    assert load_model(tmp_path / "out" / "base")[0].config.hidden_size == 32


# Sizes


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        ({"num_hidden_layers": 10**9}, "1,000,000,000 layers"),
        ({"num_hidden_layers": 10**30}, "layers"),
        ({"vocab_size": 10**12}, "32,000,000,006,144 numbers"),
        ({"hidden_size": 10**7}, "numbers"),
        ({"intermediate_size": 10**9}, "numbers"),
        ({"head_dim": 10**9}, "numbers"),
        ({"num_local_experts": 10**9}, "numbers"),
        ({"text_config": {"vocab_size": 10**12}}, "numbers"),
    ],
)
def test_sizes_that_the_weights_cannot_have_are_refused(source, sizes, told):
    change(source / "config.json", **sizes)
    assert told in refused(source, r"config.json tells of .* and its weights are 20 tensors of 26,880: fetch the model")


@pytest.mark.parametrize("sizes", [{"num_hidden_layers": "2"}, {"vocab_size": -1}, {"hidden_act": "evil"}])
def test_settings_that_make_no_model_are_told_in_a_sentence(source, sizes):
    change(source / "config.json", **sizes)
    with pytest.raises(UserError, match=r"cannot be read as a model and tokenizer \(.*\): fetch it again"):
        load_model(source)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("text", ["", "{", "[]", "5", "\x00", "[" * 100_000])
def test_a_file_that_is_no_json_object_is_named(source, name, text):
    (source / name).write_text(text)
    refused(source, rf"{name} is (not JSON|no JSON object)")


def test_a_json_file_of_gigabytes_is_not_read(source):
    with (source / "config.json").open("r+b") as stream:
        stream.truncate(3_000_000_000)  # takes no space
    refused(source, "config.json has 3.0 GB, far more than a model's")


def tensors(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


TENSOR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        struct.pack("<Q", 2**62) + b"{}",
        struct.pack("<Q", 10**6) + b"{}",
        tensors({"a": TENSOR, "b": TENSOR | {"data_offsets": [4, 12]}}, bytes(12)),
        tensors({"a": TENSOR | {"shape": [2**40, 2**40]}}, bytes(8)),
        tensors({"a": TENSOR | {"data_offsets": [0, 2**60]}}, bytes(8)),
        tensors({"a": TENSOR | {"dtype": "EVIL"}}, bytes(8)),
        tensors(b'{"a":' + b"[" * 100_000),
    ],
)
def test_headers_of_weights_that_lie_are_refused(source, content):
    (source / "model.safetensors").write_bytes(content)
    refused(source, r"model.safetensors is damaged or truncated \(.*\): fetch it again")


# Chat templates


ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
TOO_MUCH = {
    "endless": ENDLESS,
    "endless where a part is marked": f"{{% generation %}}{ENDLESS}{{% endgeneration %}}",
    "a power": "{{ 10 ** (10 ** 10) }}",
    "memory": "{{ 'a' * 10 ** 10 }}",
    "long": "{{ 'a' * 2000000 }}",
}


@pytest.mark.slow
@pytest.mark.parametrize("template", TOO_MUCH.values(), ids=TOO_MUCH)
def test_a_template_that_takes_too_much_is_refused(source, template):
    (source / "chat_template.jinja").write_text(template)
    with pytest.raises(UserError, match=r"chat template or tokenizer of the model m does not make .* within 1 s"):
        try_out(source, "m", 1)


@pytest.mark.slow
def test_a_template_in_the_settings_is_tried_out_too(source):
    (source / "chat_template.jinja").unlink()
    change(source / "tokenizer_config.json", chat_template=[{"name": "default", "template": "{{ 'a' * 2000000 }}"}])
    with pytest.raises(UserError, match="does not make a short conversation into a prompt"):
        try_out(source, "m", 1)


@pytest.mark.slow
def test_a_tokenizer_whose_pattern_backtracks_for_ever_is_refused(source):
    settings = json.loads((source / "tokenizer.json").read_text())
    settings["pre_tokenizer"] = {
        "type": "Split", "pattern": {"Regex": r"(.+)+[^\s\S]"}, "behavior": "Isolated", "invert": False,
    }  # fmt: skip
    (source / "tokenizer.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="chat template or tokenizer of the model m"):
        try_out(source, "m", 1)


@pytest.mark.parametrize("call", ["prepare", "find"])
def test_every_model_is_tried_out_before_it_is_used(source, call, monkeypatch, tmp_path):
    tried = []
    monkeypatch.setattr(sources, "try_out", lambda directory, name: tried.append(name))
    monkeypatch.setattr("cpu_grpo.workspace.models.try_out", lambda directory, name: tried.append(name))
    if call == "prepare":
        prepare_model(Model(name="m", source="path", path=str(source)), tmp_path / "base")
    else:
        find_model(str(source), Model())
    assert tried == ["m" if call == "prepare" else str(source)]


def test_a_usual_model_passes_the_trial(source):
    try_out(source, "m")
    (source / "chat_template.jinja").unlink()
    try_out(source, "m")


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{% for %}", "Expected"),
        ("{{ raise_exception('no system here') }}", "no system here"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "Range too big"),
        ("{{ messages[7].content }}{{ 1 / 0 }}", "division by zero|no element"),
    ],
)
def test_a_template_that_fails_passes_the_trial_and_is_told_where_it_is_used(source, template, reason):
    (source / "chat_template.jinja").write_text(template)
    tokenizer = load_tokenizer(source)
    with pytest.raises(UserError, match=rf"The model's chat template fails on a question \(.*({reason}).*\): mend its"):
        prompt_ids(prompt(Problem("p", "1 + 1 =", "2"), Task(), tokenizer), tokenizer)


def test_the_trial_renders_what_transformers_does(source, tokenizer):
    rendered = trial._rendered(tokenizer.chat_template, {})
    assert rendered == tokenizer.apply_chat_template(trial.TURNS, tokenize=False, add_generation_prompt=True)


# Wheels


def wheel_of(path: Path, gguf: Path, member: str) -> Model:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo(member), gguf.read_bytes())  # `write` would mend the name
    return Model(name="m", source="wheel", path=str(path), member=member)


@pytest.mark.parametrize("member", ["../../tiny.gguf", "/tiny.gguf", "a/../../../tiny.gguf"])
def test_a_wheels_file_is_written_where_it_may_be_whatever_it_is_called(gguf_file, tmp_path, monkeypatch, member):
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    wheel_of(folder / "tiny.whl", gguf_file, member)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with wheels.gguf_in_wheels(Model(source="wheel", path=str(folder / "tiny.whl"), member=member)) as found:
        assert found.read_bytes() == gguf_file.read_bytes()
        assert {path.name for path in tmp_path.rglob("*.gguf")} == {"tiny.gguf"}
        assert list(tmp_path.rglob("*.gguf")) == [found] and found.is_relative_to(folder)


def test_a_member_that_is_not_there_or_a_folder_is_told(gguf_file, tmp_path):
    config = wheel_of(tmp_path / "tiny.whl", gguf_file, "tiny/tiny.gguf")
    with zipfile.ZipFile(config.path, "a") as archive:
        archive.mkdir("folder")
    for member, told in (("../../x", r"has no file ../../x"), ("folder/", r"has a folder folder/ and no file")):
        config.member = member
        with pytest.raises(UserError, match=rf"tiny.whl {told}: correct model.member"):
            prepare_model(config, tmp_path / "base")


def test_a_bomb_is_refused_before_anything_of_it_is_written(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "tiny.whl", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tiny.gguf", bytes(30_000_000))
    free = shutil._ntuple_diskusage(10**12, 10**12, 20_000_000)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: free)
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_: pytest.fail("opened"))
    with pytest.raises(UserError, match=r"has 0.0 GB of free disk and 0.0 GB are needed: free some space"):
        wheels.gguf_in_wheels(Model(source="wheel", path=str(tmp_path / "tiny.whl"), member="tiny.gguf")).__enter__()


def test_a_wheel_that_holds_more_than_it_declares_is_refused(gguf_file, tmp_path):
    config = wheel_of(tmp_path / "tiny.whl", gguf_file, "tiny.gguf")
    content = bytearray(Path(config.path).read_bytes())
    place = content.rindex(b"PK\x01\x02") + 24  # the size in the directory of the archive
    content[place : place + 4] = struct.pack("<I", 1000)
    Path(config.path).write_bytes(content)
    with pytest.raises(UserError, match=r"tiny.whl is damaged or truncated"):
        prepare_model(config, tmp_path / "base")


@pytest.mark.parametrize("place", [60, 200, 2000])
def test_a_damaged_wheel_says_so(gguf_file, tmp_path, place):
    config = wheel_of(tmp_path / "tiny.whl", gguf_file, "tiny.gguf")
    content = bytearray(Path(config.path).read_bytes())
    content[place : place + 20] = b"\xff" * 20
    Path(config.path).write_bytes(content)
    with pytest.raises(UserError, match=r"tiny.whl is damaged or truncated"):
        prepare_model(config, tmp_path / "base")


@pytest.mark.parametrize(("place", "value"), [(6, b"\x01\x00"), (8, b"\x63\x00")], ids=["encrypted", "unknown method"])
def test_a_wheel_that_cannot_be_unpacked_says_so(gguf_file, tmp_path, place, value):
    config = wheel_of(tmp_path / "tiny.whl", gguf_file, "tiny.gguf")
    content = bytearray(Path(config.path).read_bytes())
    directory = content.rindex(b"PK\x01\x02")
    for at in (place, directory + place + 2):
        content[at : at + 2] = value
    Path(config.path).write_bytes(content)
    with pytest.raises(UserError, match=r"tiny.whl is damaged or truncated"):
        prepare_model(config, tmp_path / "base")


def test_dequantising_asks_for_the_space_that_it_takes(gguf_file, tmp_path, monkeypatch):
    free = shutil._ntuple_diskusage(10**12, 10**12, 50_000)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: free)
    monkeypatch.setattr(torch, "load", lambda *_: pytest.fail("loaded"))
    with pytest.raises(UserError, match="free some space"):
        prepare_model(Model(name="m", source="gguf", path=str(gguf_file)), tmp_path / "out" / "base")
