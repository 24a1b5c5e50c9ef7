"""A GGUF file is the model: it loads back through transformers and through our own source, and answers the same."""

import numpy as np
import pytest
import torch

from cpu_grpo.config.schema import Model
from cpu_grpo.errors import UserError
from cpu_grpo.experiment.candidate import candidate
from cpu_grpo.export import gguf_file
from cpu_grpo.export.architecture import interleaved, settings_of, tensors
from cpu_grpo.export.gguf_file import BLOCK, LOSSES, close, plan_gguf, write_gguf
from cpu_grpo.export.source import find_source
from cpu_grpo.models.loading import load_model
from cpu_grpo.models.sources import prepare_model

PROMPTS = [f"What is {a} + {b}, farmer?" for a, b in zip(range(3, 13), range(20, 30), strict=True)]
KINDS = (
    "llama",
    "llama, untied, linear rope",
    "llama, rope of Llama 3",
    "qwen2",
    "qwen2, untied",
    "qwen3",
    "qwen3, yarn",
)


def written(directory, path, dtype="f16"):
    write_gguf(plan_gguf(find_source(str(directory)), dtype), path)
    return path


def completions(directory):
    """Greedy, of ten prompts, by our engine; the prompts' ids too, which the tokenizer makes."""
    model, tokenizer = load_model(directory)
    prompts = [
        tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False)
        for text in PROMPTS
    ]
    ids = [tokenizer.encode(prompt, add_special_tokens=False) for prompt in prompts]
    return ids, candidate(model, tokenizer, "fp32", 10).greedy(ids, 16, 10, lambda count: None)


@pytest.mark.parametrize("kind", KINDS)
def test_loaded_back_by_our_own_source_it_answers_token_for_token_as_before(kept, tmp_path, kind):
    path = written(kept[kind], tmp_path / "m.gguf")
    prepare_model(Model(name="m", source="gguf", path=str(path)), tmp_path / "back")
    before, after = completions(kept[kind]), completions(tmp_path / "back")
    assert before == after
    assert len({tuple(ids) for ids in before[1]}) > 5  # models that say the same to everything would prove little


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen2, untied"])
def test_transformers_reads_the_same_logits_and_tokens_from_it(kept, tmp_path, kind):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = written(kept[kind], tmp_path / "m.gguf")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32)
    own, plain = load_model(kept[kind])
    for text in ("The farmer  has 12 cows.<|im_end|>\nNaïve 3.14", "<|im_start|>user\n'tis"):
        assert tokenizer.encode(text) == plain.encode(text)
    assert tokenizer.chat_template == plain.chat_template
    assert (tokenizer.eos_token, tokenizer.pad_token) == (plain.eos_token, plain.pad_token)
    ids = torch.tensor([plain.encode("what is the sum of 12 and 7?")])
    assert torch.equal(model(ids).logits, own(ids).logits)


@pytest.mark.parametrize("dtype", sorted(LOSSES))
def test_every_type_comes_back_within_its_rounding(kept, tmp_path, dtype):
    """Against a reference that looks at each block by itself, through the gguf package's own reader."""
    from gguf import GGUFReader, dequantize

    path = written(kept["qwen2"], tmp_path / "m.gguf", dtype)
    found = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    original = dict(tensors(kept["qwen2"], settings_of(kept["qwen2"])))
    assert found.keys() == original.keys()
    assert found["blk.0.ffn_up.weight"].tensor_type.name == dtype.upper()
    assert found["blk.0.attn_q.bias"].tensor_type.name == "F32"
    for name, weight in original.items():
        back = dequantize(found[name].data, found[name].tensor_type).reshape(weight.shape)
        if weight.ndim == 1 or dtype in ("f16", "f32"):
            assert np.array_equal(back, weight)
        elif dtype == "q8_0":
            for block, other in zip(weight.reshape(-1, BLOCK), back.reshape(-1, BLOCK), strict=True):
                step = np.abs(block).max() / 127
                assert np.abs(block - other).max() <= step / 2 + 127 * step * 2**-11 + 1e-7
        else:
            assert np.abs(back - weight).max() <= LOSSES[dtype] * np.abs(weight).max()


def test_a_llamas_rows_are_side_by_side_where_they_are_rotated_together():
    weight = np.arange(12).reshape(12, 1)  # two heads of six rows: pairs (0, 3), (1, 4), (2, 5), and the same from 6 on
    assert interleaved(weight, 2).ravel().tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]


def test_the_header_tells_what_the_model_is(kept, tmp_path):
    from gguf import GGUFReader

    reader = GGUFReader(written(kept["qwen3"], tmp_path / "m.gguf", "q8_0"))

    def told(key):
        return reader.get_field(key).contents()

    _, tokenizer = load_model(kept["qwen3"])
    assert told("general.architecture") == "qwen3" and told("general.file_type") == 7
    assert [told(f"qwen3.{key}") for key in ("block_count", "embedding_length", "feed_forward_length")] == [2, 32, 64]
    assert [told(f"qwen3.attention.{key}") for key in ("head_count", "head_count_kv", "key_length")] == [4, 2, 16]
    assert told("qwen3.rope.freq_base") == 10000.0 and told("qwen3.context_length") == 512
    tokens = told("tokenizer.ggml.tokens")
    assert tokens[: len(tokenizer)] == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert tokens[-1] == f"[PAD{len(tokens) - 1}]" and len(tokens) == told("qwen3.vocab_size")
    assert [told("tokenizer.ggml.token_type")[number] for number in (0, 2, 3, -1)] == [3, 3, 1, 5]
    assert told("tokenizer.ggml.pre") == "qwen2" and told("tokenizer.ggml.model") == "gpt2"
    assert told("tokenizer.ggml.eos_token_id") == tokenizer.eos_token_id
    assert told("tokenizer.ggml.add_bos_token") is False
    assert told("tokenizer.chat_template") == tokenizer.chat_template


def test_scaled_frequencies_of_llama_3_are_a_tensor(kept):
    directory = kept["llama, rope of Llama 3"]
    factors = dict(tensors(directory, settings_of(directory)))["rope_freqs.weight"]
    # Wave lengths 6.3, 62.8, 628 and 6283 tokens: the first is between 16 / 4 and 16, the others are above.
    smooth = (16 / 6.2832 - 1) / 3
    np.testing.assert_allclose(factors, [1 / ((1 - smooth) / 8 + smooth), 8, 8, 8], rtol=1e-4)


def test_numbers_too_large_for_fp16_are_told_with_the_remedy_and_nothing_is_left(place, capsys):
    from safetensors.torch import load_file, save_file

    file = place / "models" / "tiny" / "model.safetensors"
    weights = load_file(file)
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = 1e6
    save_file(weights, file, {"format": "pt"})
    plan = plan_gguf(find_source("tiny"), "f16")
    with pytest.raises(UserError, match=r"blk.0.ffn_up.weight has numbers that f16 cannot hold: use --dtype bf16"):
        write_gguf(plan, place / "m.gguf")
    write_gguf(plan_gguf(find_source("tiny"), "bf16"), place / "m.gguf")


def test_a_file_that_is_not_the_model_is_noticed(place, monkeypatch):
    plan = plan_gguf(find_source("tiny"), "q8_0")
    write_gguf(plan, place / "m.gguf")
    content = bytearray((place / "m.gguf").read_bytes())
    content[-100] ^= 0x40
    (place / "m.gguf").write_bytes(content)
    with pytest.raises(UserError, match=r"of m.gguf is not the model's when read back"):
        gguf_file.verify(plan, place / "m.gguf")


def test_close_knows_how_far_each_type_may_be_off():
    weight = np.linspace(-1, 1, 64, dtype=np.float32).reshape(2, 32)
    assert close(weight, weight + 0.004, "q8_0") and not close(weight, weight + 0.006, "q8_0")
    assert close(weight, weight, "f32") and not close(weight, weight + 1e-6, "f32")


def with_sentencepiece(tokenizer):
    from tokenizers import Tokenizer, models

    tokenizer["model"] = json_of(Tokenizer(models.BPE(byte_fallback=True)))["model"]


def json_of(tokenizer):
    import json

    return json.loads(tokenizer.to_str())


def without_merges(tokenizer):
    tokenizer["model"]["merges"] = []


def split_otherwise(tokenizer):
    tokenizer["pre_tokenizer"] = {"type": "WhitespaceSplit"}


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (with_sentencepiece, "tokenizer is no byte-level BPE"),
        (without_merges, "The tokenizer has no merges"),
        (split_otherwise, "splits texts in a way that has no known name in llama.cpp"),
    ],
)
def test_tokenizers_that_gguf_cannot_tell_of_are_refused(place, spoil, sentence):
    import json

    file = place / "models" / "tiny" / "tokenizer.json"
    content = json.loads(file.read_text())
    spoil(content)
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=sentence):
        plan_gguf(find_source("tiny"), "f16")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"attention_bias": True}, "has biases that GGUF's llama has not"),
        ({"model_type": "gpt2"}, "cannot become GGUF"),
        ({"num_hidden_layers": 1}, "GGUF's llama has not|weights where its config.json speaks of"),
    ],
)
def test_models_that_gguf_cannot_tell_of_are_refused(place, changes, sentence):
    import json

    file = place / "models" / "tiny" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(UserError, match=sentence):
        plan_gguf(find_source("tiny"), "f16")


@pytest.mark.parametrize("name", ["gpt-2", "smollm", "qwen2", "llama-bpe"])
def test_how_texts_are_split_has_llama_cpps_name(name):
    from tokenizers import Regex, pre_tokenizers
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    from cpu_grpo.export.vocabulary import _pre_tokenizer

    whole, bare = (pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex) for regex in (True, False))
    if name == "smollm":
        parts = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), whole])
    elif name == "gpt-2":
        parts = whole
    else:
        split = pre_tokenizers.Split(Regex(GGUF_PRE_TOKENIZER_SPLITS[name]), behavior="isolated")
        parts = pre_tokenizers.Sequence([split, bare])
    from tokenizers import Tokenizer, models

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = parts
    assert _pre_tokenizer(json_of(tokenizer)) == name


@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_answers_the_same_but_where_rounding_decides(kept, tmp_path, kind):
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (it compiles for minutes)")
    engine = llama_cpp.Llama(
        str(written(kept[kind], tmp_path / "m.gguf", "f32")), n_ctx=256, n_threads=1, verbose=False
    )
    same = []
    for prompt, ids in zip(*completions(kept[kind]), strict=True):
        found = [token for token, _ in zip(engine.generate(prompt, temp=0.0), ids[:8], strict=False)]
        same.append(found == ids[:8])
    assert sum(same) >= 8
