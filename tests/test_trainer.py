"""The drop-in: TRL's contract, the same numbers as TRL, and a model that really learns."""

import inspect

import pytest
import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from cpu_grpo import CPUGRPOTrainer
from cpu_grpo.models import load_model


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


def make(kind, model, tokenizer, directory, **changes):
    return kind(
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


@pytest.mark.parametrize("changes", [{}, {"temperature": 0.7}, {"gradient_accumulation_steps": 2}])
def test_an_update_equals_stock_trls(tokenizer, tiny_directory, tmp_path, changes):
    ends = []
    for kind in (GRPOTrainer, CPUGRPOTrainer):
        model, _ = load_model(tiny_directory)
        trainer = make(kind, model, tokenizer, tmp_path, optim="sgd", **changes)
        trainer.train()
        ends.append({name: parameter.detach().clone() for name, parameter in model.named_parameters()})
    for name, stock in ends[0].items():
        torch.testing.assert_close(ends[1][name], stock, atol=1e-6, rtol=1e-4, msg=lambda text, n=name: f"{n}: {text}")


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
