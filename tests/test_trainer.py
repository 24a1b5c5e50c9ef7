"""The drop-in: TRL's contract, the same numbers as TRL, and a model that really learns."""

import inspect

import pytest
import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from cpu_grpo import CPUGRPOTrainer
from cpu_grpo.models import load_model
from cpu_grpo.trainer import FastOptions


def settings(directory, **changes):
    values = {
        "output_dir": str(directory),
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 6,
        "max_steps": 2,
        "learning_rate": 1e-3,
        "use_cpu": True,
        "bf16": False,
        "save_strategy": "no",
        "report_to": [],
        "logging_steps": 1,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
    }
    return GRPOConfig(**(values | changes))


def questions():
    return Dataset.from_list([{"prompt": f"{i} + {i} =", "answer": str(2 * i)} for i in range(8)])


def many_letters(completions, **columns):
    return [float(sum(character.isalpha() for character in completion)) for completion in completions]


def make(kind, model, tokenizer, directory, options=None, **changes):
    return kind(
        **(options or {}),
        model=model,
        reward_funcs=many_letters,
        args=settings(directory, **changes),
        train_dataset=questions(),
        processing_class=tokenizer,
    )


def test_the_overridden_methods_have_trls_signatures():
    theirs = list(inspect.signature(GRPOTrainer._generate_single_turn).parameters)
    assert list(inspect.signature(CPUGRPOTrainer._generate_single_turn).parameters) == theirs
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


def test_lora_takes_trls_own_path_and_trains_only_the_adapter(tiny_model, tokenizer, tmp_path):
    from peft import LoraConfig

    base = tiny_model.model.layers[0].self_attn.q_proj.weight.clone()
    trainer = CPUGRPOTrainer(
        model=tiny_model,
        reward_funcs=many_letters,
        args=settings(tmp_path),
        train_dataset=questions(),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"),
    )
    trainer.train()
    layer = trainer.model.get_base_model().model.layers[0].self_attn.q_proj
    assert torch.equal(layer.base_layer.weight, base)
    assert layer.lora_B["default"].weight.abs().max() > 0


def test_rollout_throughput_is_logged(tiny_model, tokenizer, tmp_path):
    trainer = make(CPUGRPOTrainer, tiny_model, tokenizer, tmp_path)
    trainer.train()
    logged = [entry["rollout/tokens_per_second"] for entry in trainer.state.log_history if "reward" in entry]
    assert len(logged) == 2 and min(logged) > 0
