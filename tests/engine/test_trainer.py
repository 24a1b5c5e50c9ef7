"""The drop-in: TRL's contract, the same numbers as TRL, and a model that really learns."""

import inspect

import pytest
import torch
from peft import LoraConfig
from transformers import LlamaForCausalLM, TrainerCallback
from trl import GRPOTrainer

from conftest import tiny_config
from cpu_grpo import CPUGRPOTrainer, FastOptions, Lean
from cpu_grpo.engine.decoder import Decoder
from cpu_grpo.engine.learner import scoring
from cpu_grpo.models.loading import load_model
from trainers import make, many_letters, questions, settings


def test_the_overridden_methods_have_trls_signatures():
    theirs = list(inspect.signature(GRPOTrainer._generate_single_turn).parameters)
    assert list(inspect.signature(CPUGRPOTrainer._generate_single_turn).parameters) == theirs
    for name in ("_compute_loss", "_prepare_inputs"):
        theirs = list(inspect.signature(getattr(GRPOTrainer, name)).parameters)
        assert list(inspect.signature(getattr(CPUGRPOTrainer, name)).parameters) == theirs
    theirs = list(inspect.signature(GRPOTrainer._get_grad_norm).parameters)
    assert list(inspect.signature(CPUGRPOTrainer._get_grad_norm).parameters) == theirs
    theirs = list(inspect.signature(GRPOTrainer._get_per_token_logps_and_entropies).parameters)
    ours = list(inspect.signature(CPUGRPOTrainer._get_per_token_logps_and_entropies).parameters)
    assert theirs[: len(ours) - 1] == ours[:-1]  # the rest of theirs is multimodal, and taken by keyword


@pytest.mark.parametrize(
    "changes", [{}, {"beta": 0.1}, {"loss_type": "dr_grpo"}, {"num_iterations": 2}, {"loss_type": "grpo"}]
)
def test_training_changes_every_parameter(tiny_directory, tokenizer, tmp_path, changes):
    model, _ = load_model(tiny_directory)  # from a directory: TRL loads the reference policy of beta > 0 from there
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    trainer = make(CPUGRPOTrainer, model, tokenizer, tmp_path, **changes)
    trainer.train()
    unchanged = [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])]
    assert unchanged == []


def scripted(kind):
    """`kind` with completions that do not depend on the engine: ragged, some equal, some cut off."""

    class Scripted(kind):
        def _generate_single_turn(self, prompt_ids, *rest, **more):
            draw = torch.Generator().manual_seed(self.state.global_step)
            completions = []
            for _ in prompt_ids:
                length = int(torch.randint(1, 7, (), generator=draw))
                end = [self.eos_token_ids[0]] if length < 6 else []
                completions.append(torch.randint(3, 60, (length - len(end),), generator=draw).tolist() + end)
            completions[1] = completions[0]
            return completions, None

    return Scripted


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"temperature": 0.7},
        {"gradient_accumulation_steps": 2},
        {"loss_type": "grpo", "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4},
        {"loss_type": "dr_grpo"},
        {"loss_type": "bnpo"},
        {"loss_type": "cispo", "epsilon_high": 0.3},
        {"loss_type": "sapo"},
        {"loss_type": "vespo"},
        {"loss_type": "luspo", "importance_sampling_level": "sequence"},
        {"beta": 0.1},
        {"beta": 0.1, "loss_type": "bnpo"},
        {"num_iterations": 2, "max_steps": 4},
        {"max_grad_norm": 0.1},
        {"gradient_checkpointing": True},
        {"mask_truncated_completions": True},
        {"steps_per_generation": 4},
        {"scale_rewards": "none"},
    ],
    ids=str,
)
@pytest.mark.parametrize("budget", [10, 4096])
def test_updates_equal_stock_trls(tokenizer, tiny_directory, tmp_path, changes, budget):
    ends, losses = [], []
    for kind in (GRPOTrainer, CPUGRPOTrainer):
        model, _ = load_model(tiny_directory)
        options = {"fast": FastOptions(micro_batch_tokens=budget)} if kind is CPUGRPOTrainer else {}
        trainer = make(scripted(kind), model, tokenizer, tmp_path, options, optim="sgd", **changes)
        trainer.train()
        ends.append({name: parameter.detach().clone() for name, parameter in model.named_parameters()})
        losses.append([entry["loss"] for entry in trainer.state.log_history if "reward" in entry])
    assert losses[1] == pytest.approx(losses[0], abs=2e-4)
    start = dict(load_model(tiny_directory)[0].named_parameters())
    for name, stock in ends[0].items():
        moved = (stock - start[name]).abs().max()
        assert moved > 0
        assert (ends[1][name] - stock).abs().max() <= 1e-3 * moved + 1e-7, name


@pytest.mark.slow
@pytest.mark.parametrize("off", ["share_prefixes", "skip_useless"])
def test_parts_of_the_engine_that_are_off_change_no_result(tokenizer, tiny_directory, tmp_path, off):
    ends, useful = [], []
    for on in (True, False):
        torch.manual_seed(5)
        model, _ = load_model(tiny_directory)
        trainer = make(
            CPUGRPOTrainer, model, tokenizer, tmp_path, {"fast": FastOptions("fp32", **{off: on})}, optim="sgd"
        )
        trainer.train()
        ends.append({name: parameter.detach().clone() for name, parameter in model.named_parameters()})
        useful.append([entry["rollout/entropy"] for entry in trainer.state.log_history if "reward" in entry])
    assert useful[0] == pytest.approx(useful[1], rel=1e-4)  # the completions are the same
    start = dict(load_model(tiny_directory)[0].named_parameters())
    for name, with_it in ends[0].items():
        moved = (with_it - start[name]).abs().max()
        assert (ends[1][name] - with_it).abs().max() <= 1e-3 * moved + 1e-7, name


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"beta": 0.1}, {"gradient_checkpointing": True}], ids=str)
def test_lora_updates_equal_stock_trls_and_leave_the_base_alone(tokenizer, tiny_directory, tmp_path, changes):
    ends = []
    for kind in (GRPOTrainer, CPUGRPOTrainer):
        model, _ = load_model(tiny_directory)
        torch.manual_seed(3)
        lora = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
        trainer = make(scripted(kind), model, tokenizer, tmp_path, {"peft_config": lora}, optim="sgd", **changes)
        start = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
        trainer.train()
        ends.append({name: parameter.detach() for name, parameter in trainer.model.named_parameters()})
        for name in start:
            assert torch.equal(start[name], ends[-1][name]) or "lora" in name
    moved = {name: (stock - start[name]).abs().max() for name, stock in ends[0].items() if "lora_B" in name}
    assert len(moved) == 4 and min(moved.values()) > 0
    for name, stock in ends[0].items():
        assert (ends[1][name] - stock).abs().max() <= 1e-3 * max(moved.values()), name


class Gradients(TrainerCallback):
    """How many parameters have a gradient when the optimizer's step is due."""

    def __init__(self):
        self.counts = []

    def on_pre_optimizer_step(self, args, state, control, model, **_):
        self.counts.append(sum(parameter.grad is not None for parameter in model.parameters()))


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{}, {"gradient_accumulation_steps": 2}, {"gradient_checkpointing": True}, {"max_grad_norm": 1e9}],
    ids=str,
)
@pytest.mark.parametrize("budget", [10, 4096])
def test_lean_updates_within_backward_equal_those_of_stock_trl_after_it(
    tokenizer, tiny_directory, tmp_path, changes, budget
):
    ends, norms, counts = [], [], []
    for kind in (GRPOTrainer, CPUGRPOTrainer):
        model, _ = load_model(tiny_directory)
        options = {"fast": FastOptions(micro_batch_tokens=budget)} if kind is CPUGRPOTrainer else {}
        options |= {"optimizers": (Lean(model.parameters(), lr=1e-3), None), "callbacks": [gradients := Gradients()]}
        # One update: its normalised steps make much of rounding, which a second one would start from.
        changes = {"max_steps": 1, "max_grad_norm": 0} | changes
        trainer = make(scripted(kind), model, tokenizer, tmp_path, options, **changes)
        trainer.train()
        ends.append({name: parameter.detach() for name, parameter in model.named_parameters()})
        norms.append([entry["grad_norm"] for entry in trainer.state.log_history if "reward" in entry])
        counts.append(set(gradients.counts))
    assert counts == [{len(ends[0])}, {0}]
    assert norms[1] == pytest.approx(norms[0], rel=1e-3) and min(norms[0]) > 0
    start = dict(load_model(tiny_directory)[0].named_parameters())
    for name, stock in ends[0].items():
        moved = (stock - start[name]).norm()
        assert moved > 0
        assert (ends[1][name] - stock).norm() <= 0.01 * moved, name


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"beta": 0.1}, {"max_grad_norm": 0}], ids=str)
def test_a_model_held_in_bf16_trains_and_its_small_updates_arrive(tokenizer, tiny_directory, tmp_path, changes):
    model, _ = load_model(tiny_directory, torch.bfloat16)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    options = {"optimizers": (Lean(model.parameters(), lr=1e-4), None)}
    trainer = make(CPUGRPOTrainer, model, tokenizer, tmp_path, options, gradient_checkpointing=True, **changes)
    trainer.train()
    weight, start = model.model.layers[0].mlp.up_proj.weight, before["model.layers.0.mlp.up_proj.weight"]
    # Two updates of about 1e-4 each; where bf16's steps are 1e-3 to 4e-3, a few of a hundred weights make one.
    steps = (weight - start)[start.abs() > 0.2].float()
    assert 0.01 < (steps != 0).float().mean() < 0.5
    assert weight.dtype == torch.bfloat16
    assert all(entry["grad_norm"] > 0 for entry in trainer.state.log_history if "reward" in entry)


def test_masters_keep_updates_too_small_for_bf16(tokenizer, tiny_directory, tmp_path):
    model, _ = load_model(tiny_directory)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    options = {"fast": FastOptions(precision="bf16")}
    make(CPUGRPOTrainer, model, tokenizer, tmp_path, options, learning_rate=1e-6, max_steps=4).train()
    weight, start = model.model.layers[0].mlp.up_proj.weight, before["model.layers.0.mlp.up_proj.weight"]
    moved = (weight - start)[start.abs() > 0.1].abs()  # bf16's steps are 2e-4 and more there
    assert moved.max() > 1e-6 and moved.max() < 1e-5


def test_completions_without_advantage_do_not_go_through_the_model(tokenizer, tiny_directory, tmp_path, monkeypatch):
    packs = []
    original = scoring.pack
    monkeypatch.setattr(scoring, "pack", lambda *inputs: packs.append(original(*inputs)) or packs[-1])
    model, _ = load_model(tiny_directory)
    trainer = make(scripted(CPUGRPOTrainer), model, tokenizer, tmp_path, max_steps=1)
    # A group of four gets no spread of reward; so the other group's prompt and completions are all there is to compute.
    trainer.reward_funcs = [lambda completions, **columns: [0.0] * 4 + [1.0, 0.0, 0.0, 0.0]]
    trainer.train()
    assert len(packs) == 1 and len(packs[0].trees) == 1
    assert len(set(packs[0].rows.tolist())) == 4


def test_only_the_better_completions_go_through_the_model_where_that_is_asked(
    tokenizer, tiny_directory, tmp_path, monkeypatch
):
    packs = []
    original = scoring.pack
    monkeypatch.setattr(scoring, "pack", lambda *inputs: packs.append(original(*inputs)) or packs[-1])
    model, _ = load_model(tiny_directory)
    options = {"fast": FastOptions(learn_better=True)}
    trainer = make(scripted(CPUGRPOTrainer), model, tokenizer, tmp_path, options, max_steps=1)
    trainer.reward_funcs = [lambda completions, **columns: [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0]]
    trainer.train()
    (packed,) = packs
    assert len(packed.trees) == 2 and len(set(packed.rows.tolist())) == 3


def test_no_advantage_at_all_is_a_zero_gradient_not_none(tokenizer, tiny_directory, tmp_path):
    model, _ = load_model(tiny_directory)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trainer = make(CPUGRPOTrainer, model, tokenizer, tmp_path)
    trainer.reward_funcs = [lambda completions, **columns: [1.0] * len(completions)]
    trainer.train()
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    assert trainer.state.log_history[0]["grad_norm"] == 0


def test_truncated_importance_weights_scale_the_gradient(tokenizer, tiny_directory, tmp_path):
    """Log-probs that say that the rollout gave every token half its probability: weights of 2, truncated to 1.5."""

    class HalfAsLikely(scripted(CPUGRPOTrainer)):
        def _generate_single_turn(self, prompt_ids, *rest, **more):
            ids, _ = super()._generate_single_turn(prompt_ids, *rest, **more)
            width = max(map(len, ids))
            rows = [p + c + [0] * (width - len(c)) for p, c in zip(prompt_ids, ids, strict=True)]
            logps = []
            for row, completion, prompt in zip(rows, ids, prompt_ids, strict=True):
                scores = self.model(torch.tensor([row])).logits[0].log_softmax(-1)
                places = torch.arange(len(completion)) + len(prompt) - 1
                logps.append((scores[places, torch.tensor(completion)] - torch.tensor(2.0).log()).tolist())
            return ids, logps

    moves = []
    for cap in (0.0, 1.5):
        model, _ = load_model(tiny_directory)
        start = model.lm_head.weight.detach().clone()
        options = {"fast": FastOptions(importance_cap=cap)}
        trainer = make(
            HalfAsLikely,
            model,
            tokenizer,
            tmp_path,
            options,
            optim="sgd",
            max_steps=1,
            max_grad_norm=0.0,
            num_iterations=1,
        )
        trainer.train()
        moves.append(model.lm_head.weight.detach() - start)
        logged = trainer.state.log_history[0]
        assert logged["rollout/logp_difference_mean"] == pytest.approx(0.6931, abs=1e-3)
        assert logged["rollout/logp_difference_max"] == pytest.approx(0.6931, abs=1e-3)
    torch.testing.assert_close(moves[1], 1.5 * moves[0], rtol=1e-3, atol=1e-6)


def test_rollouts_follow_the_learned_weights_and_their_log_probs_agree(tokenizer, tiny_directory, tmp_path):
    model, _ = load_model(tiny_directory)
    trainer = make(CPUGRPOTrainer, model, tokenizer, tmp_path, learning_rate=3e-3, max_steps=4)
    trainer.train()
    logged = [entry["rollout/logp_difference_max"] for entry in trainer.state.log_history if "reward" in entry]
    assert len(logged) == 4 and max(logged) < 1e-3  # stale weights would be off by far more after such updates


def test_stale_rollout_weights_would_be_noticed(tokenizer, tiny_directory, tmp_path, monkeypatch):
    import cpu_grpo.engine.trainer as module

    first, original = [], module.packed
    monkeypatch.setattr(
        module,
        "packed",
        lambda *inputs: first[0] if first else first.append(original(*inputs)) or first[0],
    )
    model, _ = load_model(tiny_directory)
    trainer = make(CPUGRPOTrainer, model, tokenizer, tmp_path, learning_rate=3e-2, max_steps=4)
    trainer.train()
    logged = [entry["rollout/logp_difference_max"] for entry in trainer.state.log_history if "reward" in entry]
    assert logged[0] < 1e-3 and max(logged) > 1e-2


@pytest.mark.parametrize("part", ["rollout", "learner"])
def test_a_fast_path_that_disagrees_is_left_with_a_warning(tokenizer, tiny_directory, tmp_path, monkeypatch, part):
    import cpu_grpo.engine.trainer as module

    right = Decoder.rope
    wrong = {"rollout": "generate", "learner": "completion_logps"}[part]
    original = getattr(module, wrong)

    def with_wrong_positions(*inputs, **more):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Decoder, "rope", lambda self, positions: right(self, positions // 2))
            return original(*inputs, **more)

    monkeypatch.setattr(module, wrong, with_wrong_positions)
    model, _ = load_model(tiny_directory)
    trainer = make(CPUGRPOTrainer, model, tokenizer, tmp_path)
    with pytest.warns(UserWarning, match=f"the {part}'s log-probs differ from TRL's by"):
        trainer.train()
    assert trainer.state.global_step == 2
    assert "rollout/logp_difference_mean" not in trainer.state.log_history[-2]


def test_trls_rounding_is_not_taken_for_our_mistake(tokenizer, tiny_directory, tmp_path, recwarn):
    # TRL rounds to bf16 unless told otherwise, on CPUs that are slower with it too; there we compute in fp32.
    model, _ = load_model(tiny_directory)
    trainer = make(CPUGRPOTrainer, model, tokenizer, tmp_path, {"fast": FastOptions("fp32")}, bf16=True)
    trainer.train()
    assert not [warning for warning in recwarn if "plain path" in str(warning.message)]


def test_a_model_the_engine_does_not_know_trains_on_trls_path_with_one_notice(tokenizer, tmp_path):
    model = LlamaForCausalLM(tiny_config(tokenizer, hidden_act="gelu"))
    before = model.lm_head.weight.detach().clone()
    trainer = make(CPUGRPOTrainer, model, tokenizer, tmp_path)
    with pytest.warns(UserWarning) as caught:
        trainer.train()
    said = [str(warning.message) for warning in caught if "plain path" in str(warning.message)]
    assert said == ["TRL's plain path is taken instead of the fast one: its activation is gelu."]
    assert not torch.equal(model.lm_head.weight, before)


def test_generation_options_the_engine_does_not_know_leave_rollouts_to_trl(tokenizer, tiny_directory, tmp_path):
    model, _ = load_model(tiny_directory)
    trainer = make(CPUGRPOTrainer, model, tokenizer, tmp_path, repetition_penalty=1.2)
    with pytest.warns(UserWarning, match="it does not know repetition_penalty"):
        trainer.train()


def test_evaluation_during_training_works(tokenizer, tiny_directory, tmp_path):
    model, _ = load_model(tiny_directory)
    trainer = CPUGRPOTrainer(
        model=model,
        reward_funcs=many_letters,
        args=settings(tmp_path, eval_strategy="steps", eval_steps=1, per_device_eval_batch_size=8),
        train_dataset=questions(),
        eval_dataset=questions(),
        processing_class=tokenizer,
    )
    trainer.train()
    assert any("eval_reward" in entry for entry in trainer.state.log_history)


def test_a_checkpoint_resumes(tokenizer, tiny_directory, tmp_path):
    model, _ = load_model(tiny_directory)
    make(CPUGRPOTrainer, model, tokenizer, tmp_path, save_strategy="steps", save_steps=1).train()
    trainer = make(CPUGRPOTrainer, model, tokenizer, tmp_path, max_steps=3)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [({"precision": "fp16"}, "precision is 'fp16'"), ({"rows": 0}, "at least 1"), ({"importance_cap": -1}, "at least")],
)
def test_wrong_options_are_refused_in_a_sentence(change, message):
    with pytest.raises(ValueError, match=message):
        FastOptions(**change)


def test_rollout_throughput_is_logged(tiny_model, tokenizer, tmp_path):
    trainer = make(CPUGRPOTrainer, tiny_model, tokenizer, tmp_path)
    trainer.train()
    logged = [entry["rollout/tokens_per_second"] for entry in trainer.state.log_history if "reward" in entry]
    assert len(logged) == 2 and min(logged) > 0
