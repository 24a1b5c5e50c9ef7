"""The learner against the naive computation: each row by itself, without padding, every position projected."""

import sys
import weakref

import pytest
import torch

from conftest import need_narrow_products, with_lora
from cpu_grpo.engine.decoder import Linear, UnsupportedModel, decoder
from cpu_grpo.engine.kernels import fused
from cpu_grpo.engine.learner import Rounded, attention, completion_logps, forward, head
from cpu_grpo.engine.learner.forward import Joint
from cpu_grpo.engine.learner.packing import pack as pack_rows

PROMPTS = [[5, 6, 7, 8, 9], [10, 11], [12, 13, 14]]
# (prompt, completion): groups are shuffled and completions ragged, as TRL hands them over
ROWS = [
    (0, [20, 21, 22]),
    (1, [23]),
    (0, [24, 25, 26, 27]),
    (2, [28, 29]),
    (1, [30, 31, 32]),
    (0, [20, 21, 22]),
]  # the last repeats the first


BEGINNINGS = {
    "nothing in common": PROMPTS,
    "a common beginning": [[5, 6, 7, 8, 9], [5, 6, 11, 12], [5, 6, 7, 14]],
    "one begins the others": [[5, 6, 7, 8, 9], [5, 6], [5, 6, 14]],
}


@pytest.fixture(params=BEGINNINGS)
def beginning(request, monkeypatch):
    """What the prompts have in common."""
    monkeypatch.setattr(sys.modules[__name__], "PROMPTS", BEGINNINGS[request.param])
    return request.param


def padded():
    """input_ids (B, P + T), attention_mask (B, P + T), and T."""
    width, length = max(map(len, PROMPTS)), max(len(c) for _, c in ROWS)
    ids, mask = [], []
    for prompt, completion in ((PROMPTS[p], c) for p, c in ROWS):
        left, right = width - len(prompt), length - len(completion)
        ids.append([0] * left + prompt + completion + [0] * right)
        mask.append([0] * left + [1] * (len(prompt) + len(completion)) + [0] * right)
    return torch.tensor(ids), torch.tensor(mask), length


def naive(model, temperature):
    """Log-probs and entropies of each row's completion, row by row."""
    logps, entropies = [], []
    for prompt, completion in ((PROMPTS[p], c) for p, c in ROWS):
        scores = model(input_ids=torch.tensor([prompt + completion])).logits[0].float() / temperature
        distribution = torch.log_softmax(scores, dim=-1)[len(prompt) - 1 : -1]
        logps.append(distribution[torch.arange(len(completion)), torch.tensor(completion)])
        entropies.append(-(distribution.exp() * distribution).sum(-1))
    return logps, entropies


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def learned(
    model, temperature=1.0, dtype=torch.float32, recompute=False, tokens=forward.MANY, share=True, narrow=False
):
    """The learner's log-probs and entropies (B, T), and which are real."""
    ids, mask, length = padded()
    rounded = Rounded.of(decoder(model), dtype, tokens, narrow)
    logps, entropies = completion_logps(rounded, ids, mask, length, temperature, recompute, share)
    return logps, entropies, mask[:, -length:].bool()


def worst(model):
    """How far the learner is from the naive log-probs."""
    with torch.no_grad():
        logps, _, real = learned(model)
        return (logps[real] - torch.cat(naive(model, 1.0)[0])).abs().max()


def compare(model, temperature, **options):
    """Values and gradients of a weighted sum of log-probs, against the naive ones."""
    logps, entropies, real = learned(model, temperature, **options)
    weights = torch.linspace(-1, 1, steps=logps.numel()).view(logps.shape)
    found = gradients(model, (logps * weights)[real].sum())
    wanted_logps, wanted_entropies = naive(model, temperature)
    wanted = gradients(model, sum((row * weights[i, : len(row)]).sum() for i, row in enumerate(wanted_logps)))
    torch.testing.assert_close(logps[real], torch.cat(wanted_logps), atol=1e-4, rtol=0)
    torch.testing.assert_close(entropies[real], torch.cat(wanted_entropies), atol=1e-4, rtol=0)
    assert found.keys() == wanted.keys() and found
    for name, gradient in wanted.items():
        assert (found[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-7, name


@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.3])
def test_values_and_gradients_equal_the_naive_ones(any_model, temperature, beginning):
    compare(any_model, temperature)


def test_values_and_gradients_without_sharing_are_the_same(any_model):
    compare(any_model, 1.0, share=False)
    ids, mask, length = padded()
    apart, shared = (pack_rows(ids, mask, length, share) for share in (False, True))
    asked = mask[:, -length:].any(dim=1)  # a row's tokens but its last, if it has a completion
    assert len(apart.ids) == int(mask[asked].sum()) - int(asked.sum()) > len(shared.ids)


@pytest.mark.parametrize("chunk", [1, 5, 7])
def test_chunks_that_do_not_divide(tiny_model, monkeypatch, chunk):
    monkeypatch.setattr(forward, "CHUNK", chunk)
    compare(tiny_model, 0.7)


def test_weights_that_are_not_laid_out_give_the_same(any_model):
    compare(any_model, 0.7, tokens=1)
    few, _, real = learned(any_model, dtype=torch.bfloat16, tokens=1)
    many, _, _ = learned(any_model, dtype=torch.bfloat16)
    assert (few - many)[real].abs().mean() < 0.03


def test_recomputed_layers_and_scores_give_the_same(tiny_model, beginning, monkeypatch):
    monkeypatch.setattr(head, "BLOCK", 100)  # of a vocabulary of 259
    compare(tiny_model, 0.7, recompute=True)


@pytest.mark.parametrize(("long", "times"), [(2, 1), (3, 2)], ids=["long enough", "too short"])
def test_a_long_common_beginning_is_attended_to_once_though_layers_are_computed_twice(
    tiny_model, monkeypatch, long, times
):
    monkeypatch.setattr(sys.modules[__name__], "PROMPTS", BEGINNINGS["a common beginning"])  # of two tokens
    monkeypatch.setattr(attention, "LONG", long)
    right, calls = attention.root_forward, []
    monkeypatch.setattr(attention, "root_forward", lambda *given: calls.append(1) or right(*given))

    def found(recompute):
        logps, _, real = learned(tiny_model, recompute=recompute)
        return gradients(tiny_model, logps[real].sum())

    twice, layers = found(recompute=True), tiny_model.config.num_hidden_layers
    assert len(calls) == times * layers
    once = found(recompute=False)
    assert len(calls) == (times + 1) * layers
    for name, gradient in once.items():
        torch.testing.assert_close(twice[name], gradient, atol=1e-5, rtol=1e-4)


def test_lora_gets_the_naive_gradients_and_the_base_none(any_model, beginning):
    model = with_lora(any_model)
    compare(model, 0.7)
    assert all("lora" in name for name, p in model.named_parameters() if p.grad is not None)


@pytest.fixture(params=["all the same", "inputs in 16 bits"])
def in_8_bits(request, monkeypatch):
    """The learner's head by either kind of products."""
    need_narrow_products(torch.float32, torch.int8)
    monkeypatch.setattr(head, "int8_pays", lambda *_, **__: request.param != "all the same")


@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_frozen_weights_in_8_bits_change_adapters_gradients_a_little(in_8_bits, any_model, dtype, recompute):
    model = with_lora(any_model)
    directions = {}
    for narrow in (False, True):
        logps, _, real = learned(model, 0.9, dtype, recompute, narrow=narrow)
        weights = torch.linspace(-1, 1, steps=logps.numel()).view(logps.shape)
        found = gradients(model, (logps * weights)[real].sum())
        assert found and all("lora" in name for name in found)
        directions[narrow] = torch.cat([gradient.flatten() for gradient in found.values()]), logps[real]
    (exact, right), (rounded, near) = directions[False], directions[True]
    # Random weights magnify it: of a real model of 494M the gradients' cosine is 0.9995, the difference 0.009.
    assert torch.cosine_similarity(exact, rounded, dim=0) > 0.97
    assert (exact.norm() / rounded.norm() - 1).abs() < 0.2
    assert 1e-5 < (right - near).abs().mean() < 0.15


def test_weights_that_learn_stay_as_they_are(in_8_bits, tiny_model):
    exact = gradients(tiny_model, learned(tiny_model)[0].sum())
    rounded = gradients(tiny_model, learned(tiny_model, narrow=True)[0].sum())
    assert all(torch.equal(exact[name], rounded[name]) for name in exact)


def test_the_gradient_of_a_frozen_product_is_the_rounded_ones(in_8_bits):
    """By hand: one output, a weight of one group, and gradients that 8 bits hold exactly."""
    weight = torch.zeros(64, 64).fill_diagonal_(127.0)
    joint = Joint.of(torch.float32, 8, Linear(weight, None), narrow=True)
    x = torch.arange(64.0).expand(3, 64).clone().requires_grad_()
    gradient = torch.arange(64.0) * torch.tensor([[1.0], [2], [-1]])
    gradient[:, 0] = 127.0  # the largest of a group is 127 steps of its scale
    out = joint(x)
    out.backward(gradient)
    step = 63 / 127
    torch.testing.assert_close(out.detach(), 127 * (torch.arange(64.0) / step).round().mul(step).expand(3, 64))
    torch.testing.assert_close(x.grad, 127 * gradient)


def test_a_disabled_adapter_leaves_the_base_model(tiny_model):
    base, _, real = learned(tiny_model)
    base = base.detach()
    model = with_lora(tiny_model)
    assert (learned(model)[0] - base)[real].abs().max() > 0.01
    with model.disable_adapter():
        torch.testing.assert_close(learned(model)[0][real], base[real])


def test_a_layer_that_is_computed_again_drops_the_same(tiny_model):
    model = with_lora(tiny_model, lora_dropout=0.5).train()

    def found(recompute):
        torch.manual_seed(3)
        logps, _, real = learned(model, recompute=recompute)
        return gradients(model, logps[real].sum())

    once, twice = found(recompute=False), found(recompute=True)
    assert once
    for name, gradient in once.items():
        torch.testing.assert_close(twice[name], gradient, atol=1e-5, rtol=1e-4)


def test_lora_dropout_works_in_training_only(tiny_model):
    model = with_lora(tiny_model, lora_dropout=0.5)
    calm = learned(model)[0]
    assert torch.equal(learned(model)[0], calm)
    model.train()
    assert not torch.equal(learned(model)[0], learned(model)[0])


@pytest.mark.parametrize("recompute", [False, True])
def test_bf16_is_close_and_its_gradients_reach_fp32_masters(any_model, monkeypatch, recompute):
    monkeypatch.setattr(head, "BLOCK", 100)
    exact, _, real = learned(any_model)
    rounded, _, _ = learned(any_model, dtype=torch.bfloat16, recompute=recompute)
    assert 0 < (rounded - exact)[real].abs().mean() < 0.1  # tiny models with large weights round worse than real ones
    found = gradients(any_model, rounded[real].sum())
    wanted = gradients(any_model, exact[real].sum())
    for name, gradient in wanted.items():
        assert found[name].dtype == torch.float32
        assert torch.cosine_similarity(found[name].flatten(), gradient.flatten(), dim=0) > 0.98, name


@pytest.mark.parametrize("recompute", [False, True])
def test_a_model_held_in_bf16_is_computed_in_fp32_where_that_is_asked_for(any_model, monkeypatch, recompute):
    monkeypatch.setattr(head, "BLOCK", 100)  # of a vocabulary of 259
    held = any_model.bfloat16()
    logps, entropies, real = learned(held, 0.7, recompute=recompute)
    found = gradients(held, logps[real].sum())
    exact = held.float()
    wanted_logps, wanted_entropies = naive(exact, 0.7)
    wanted = gradients(exact, torch.cat(wanted_logps).sum())
    torch.testing.assert_close(logps[real], torch.cat(wanted_logps), atol=1e-4, rtol=0)
    torch.testing.assert_close(entropies[real], torch.cat(wanted_entropies), atol=1e-4, rtol=0)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert found[name].dtype == torch.bfloat16
        assert (found[name].float() - gradient).norm() <= 2**-8 * gradient.norm(), name


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("recompute", [False, True])
def test_weights_in_bf16_where_they_lie_give_what_copies_of_them_give(any_model, monkeypatch, adapted, recompute):
    monkeypatch.setattr(head, "BLOCK", 100)
    held = any_model.bfloat16()
    held = with_lora(held) if adapted else held
    found = Rounded.of(decoder(held), torch.bfloat16, forward.MANY)
    joints = [joint for joints in found.layers for joint in joints]
    own = {parameter.data_ptr() for parameter in held.parameters()}
    assert {weight.data_ptr() for joint in joints for weight in joint.forward.weights} <= own
    assert found.head.weight.data_ptr() in own
    logps, entropies, real = learned(held, 0.7, torch.bfloat16, recompute)
    gradient = gradients(held, logps[real].sum())
    exact = held.float()  # the same weights, which products in bf16 need copies of
    wanted_logps, wanted_entropies, _ = learned(exact, 0.7, torch.bfloat16, recompute)
    wanted = gradients(exact, wanted_logps[real].sum())
    assert (logps - wanted_logps)[real].abs().mean() < 0.03
    assert (entropies - wanted_entropies)[real].abs().mean() < 0.03
    assert gradient.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.cosine_similarity(gradient[name].flatten().float(), value.flatten(), dim=0) > 0.99, name


@pytest.mark.parametrize("recompute", [False, True])
def test_scores_around_30_are_rounded_when_they_are_small(monkeypatch, recompute):
    """As they come, bf16 would round each by up to 0.06."""
    monkeypatch.setattr(head, "BLOCK", 100)
    draw = torch.Generator().manual_seed(0)
    weight = (torch.randn(300, 64, generator=draw) / 8).bfloat16()
    weight[:, 0] = 30
    states = torch.randn(20, 64, generator=draw).bfloat16()
    states[:, 0] = 1
    targets = torch.randint(300, (20,), generator=draw)
    exact = states.double().requires_grad_()
    wanted = (exact @ weight.double().t()).log_softmax(dim=-1).gather(1, targets[:, None]).squeeze(1)
    wanted.sum().backward()
    held = states.clone().requires_grad_()
    made = head.Head.of(weight, torch.bfloat16)
    found, _ = head.TokenScores.apply(held, made, weight, targets, 1.0, 7, recompute)
    found.sum().backward()
    assert (found.double() - wanted).abs().max() < 3e-3
    assert (held.grad.double() - exact.grad)[:, 1:].norm() < 0.01 * exact.grad[:, 1:].norm()


def test_entropies_carry_no_gradient(tiny_model):
    assert not learned(tiny_model)[1].requires_grad


def test_a_prompt_is_packed_once_equal_completions_too_and_no_padding():
    ids, mask, length = padded()
    packed = pack_rows(ids, mask, length)
    # prompts of 5, 2 and 3 tokens; distinct completions without their last tokens: 2 + 3, 0 + 2, 1
    assert packed.ids.tolist() == [5, 6, 7, 8, 9, 20, 21, 24, 25, 26, 10, 11, 30, 31, 12, 13, 14, 28]
    assert packed.positions.tolist() == [0, 1, 2, 3, 4, 5, 6, 5, 6, 7, 0, 1, 2, 3, 0, 1, 2, 3]
    assert len(packed.targets) == 3 + 4 + 1 + 3 + 2


def test_what_all_prompts_begin_with_is_packed_once(monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "PROMPTS", BEGINNINGS["a common beginning"])
    packed = pack_rows(*padded())
    assert packed.ids.tolist() == [5, 6, 7, 8, 9, 20, 21, 24, 25, 26, 11, 12, 30, 31, 7, 14, 28]
    assert packed.positions.tolist() == [0, 1, 2, 3, 4, 5, 6, 5, 6, 7, 2, 3, 4, 5, 2, 3, 4]
    monkeypatch.setattr(sys.modules[__name__], "PROMPTS", BEGINNINGS["one begins the others"])
    packed = pack_rows(*padded())  # every prompt keeps its last token, whose state predicts the completions' first
    assert packed.ids.tolist() == [5, 6, 7, 8, 9, 20, 21, 24, 25, 26, 6, 30, 31, 6, 14, 28]


def test_a_beginning_that_nobody_sees_would_be_noticed(tiny_model, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "PROMPTS", BEGINNINGS["a common beginning"])
    assert worst(tiny_model) < 1e-4
    right = attention.root_forward
    # Sums of exps as small as that give the beginning no share in what is attended to.
    monkeypatch.setattr(attention, "root_forward", lambda *given: (right(*given)[0], right(*given)[1] - 50))
    assert worst(tiny_model) > 1e-2


def naive_root(queries, k, v, scale):
    """Every query attends to every key of its head."""
    weights = (queries @ k.permute(1, 2, 0) * scale).softmax(dim=-1)
    return weights @ v.transpose(0, 1)


@pytest.mark.parametrize("scores", [1, 1 << 22], ids=["in chunks", "at once"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_attention_to_a_common_beginning_is_the_naive_one(monkeypatch, dtype, scores):
    monkeypatch.setattr(attention, "SCORES", scores)
    torch.manual_seed(0)
    given = [torch.randn(*shape).to(dtype).requires_grad_() for shape in ((2, 150, 8), (20, 2, 8), (20, 2, 8))]
    gradient, tolerance = torch.randn(2, 150, 8).to(dtype), 1e-5 if dtype == torch.float32 else 0.05
    wanted = naive_root(*(own.double() for own in given), 0.3)
    wanted_gradients = torch.autograd.grad(wanted, given, gradient.double())
    with torch.no_grad():
        found, logs = attention.root_forward(*given, 0.3)
        along = (gradient.float() * wanted.float()).sum(dim=-1, keepdim=True)
        found_gradients = attention.root_backward(given[0], gradient, along, *given[1:], logs, 0.3)
    torch.testing.assert_close(found.double(), wanted, atol=tolerance, rtol=tolerance)
    for own, naive in zip(found_gradients, wanted_gradients, strict=True):
        assert own.dtype == dtype
        torch.testing.assert_close(own.double(), naive.double(), atol=2 * tolerance, rtol=tolerance)


def test_rows_without_completion_are_left_out(tiny_model):
    ids, mask, length = padded()
    wanted, _, _ = learned(tiny_model)
    mask[1, -length:] = 0  # as mask_truncated_completions does
    logps, _ = completion_logps(Rounded.of(decoder(tiny_model), torch.float32, forward.MANY), ids, mask, length, 1.0)
    assert logps[1].abs().sum() == 0
    torch.testing.assert_close(logps[2:], wanted[2:])


def test_a_wrong_position_would_be_noticed(tiny_model, monkeypatch):
    assert worst(tiny_model) < 1e-4
    right = forward.Decoder.rope
    monkeypatch.setattr(forward.Decoder, "rope", lambda self, positions: right(self, positions // 2))
    assert worst(tiny_model) > 1e-2


def test_a_missing_mask_would_be_noticed(tiny_model, monkeypatch):
    right = fused.causal_softmax
    monkeypatch.setattr(fused, "causal_softmax", lambda scores, scale, times: right(scores, scale, 1))
    assert worst(tiny_model) > 1e-2


def test_a_completion_that_sees_another_would_be_noticed(tiny_model, monkeypatch):
    right = attention.Block.places

    def neighbour(self):
        places, real = right(self)
        return places.roll(1, dims=0), real

    monkeypatch.setattr(attention.Block, "places", neighbour)
    assert worst(tiny_model) > 1e-2


def test_stale_weights_would_be_noticed(tiny_model):
    ids, mask, length = padded()
    real = mask[:, -length:].bool()
    stale = Rounded.of(decoder(tiny_model), torch.bfloat16, forward.MANY)
    with torch.no_grad():
        for parameter in tiny_model.parameters():
            parameter.mul_(1.5)
        wanted = torch.cat(naive(tiny_model, 1.0)[0])
        fresh = Rounded.of(decoder(tiny_model), torch.bfloat16, forward.MANY)
        far = [
            (completion_logps(model, ids, mask, length, 1.0)[0][real] - wanted).abs().mean() for model in (stale, fresh)
        ]
    assert far[0] > 0.5 and far[1] < 0.1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"hidden_act": "gelu"}, "activation is gelu"),
        ({"attention_dropout": 0.1}, "attention dropout"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}}, "of type dynamic"),
    ],
)
def test_what_the_fast_path_does_not_know_is_named(tokenizer, change, reason):
    from transformers import LlamaForCausalLM

    from conftest import tiny_config

    with pytest.raises(UnsupportedModel, match=reason):
        decoder(LlamaForCausalLM(tiny_config(tokenizer, **change)))


def test_other_architectures_and_adapters_are_named(tokenizer, tiny_model):
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(
        vocab_size=40, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4
    )
    with pytest.raises(UnsupportedModel, match="architecture is mistral"):
        decoder(MistralForCausalLM(config))
    with pytest.raises(UnsupportedModel, match="variant of LoRA"):
        decoder(with_lora(tiny_model, use_dora=True))


def test_an_adapter_on_the_head_is_named(tokenizer):
    from transformers import LlamaForCausalLM

    from conftest import tiny_config

    untied = LlamaForCausalLM(tiny_config(tokenizer, tie_word_embeddings=False))
    with pytest.raises(UnsupportedModel, match="its head has an adapter"):
        decoder(with_lora(untied, target_modules=["lm_head"]))


def test_without_a_gradient_no_scores_are_kept(tiny_model, monkeypatch):
    made, alive = [], []

    def watched(scores, targets, temperature):
        alive.append(sum(reference() is not None for reference in made))
        made.append(weakref.ref(scores))
        return token_scores(scores, targets, temperature)

    token_scores = head.fused.token_scores
    monkeypatch.setattr(head.fused, "token_scores", watched)
    monkeypatch.setattr(forward, "CHUNK", 1)
    learned(tiny_model)
    assert max(alive) > 1, "else this test could not tell"
    made.clear(), alive.clear()
    with torch.no_grad():
        learned(tiny_model)
    assert max(alive) <= 1
