"""The plan against what a run really takes: models small enough for a test, and large beside the libraries."""

import json
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from control_groups import NoGroup, memory_group

from conftest import need_narrow_products
from cpu_grpo.engine.shape import Shape
from cpu_grpo.plan.job import Job
from cpu_grpo.plan.memory import LIBRARIES, Scheme, peak

pytestmark = pytest.mark.slow

SHAPE = Shape(512, 6, 8, 4, 64, 2048, 32_768)  # 41 million parameters
TRAIN = """
import json, sys
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig
from datasets import Dataset
from cpu_grpo import CPUGRPOTrainer
from cpu_grpo.hardware import ResourceMonitor
from cpu_grpo.engine.schemes.lean import Lean
from cpu_grpo.engine.schemes.lora import adapters
from cpu_grpo.engine.trainer import FastOptions

scheme, recompute, learner, shape, job, scratch, watch = json.loads(sys.argv[1])
config = LlamaConfig(
    vocab_size=shape["vocabulary"], hidden_size=shape["hidden"], intermediate_size=shape["inner"],
    num_hidden_layers=shape["layers"], num_attention_heads=shape["heads"], num_key_value_heads=shape["kv_heads"],
    head_dim=shape["head_dim"], tie_word_embeddings=True, eos_token_id=1, pad_token_id=0, bos_token_id=None,
)
with ResourceMonitor() as monitor:
    libraries = monitor.rss()
    torch.manual_seed(0)
    model = LlamaForCausalLM._from_config(config, dtype=torch.float32 if scheme == "full" else torch.bfloat16)
    options = {"fast": FastOptions("fp32", job["micro_batch_tokens"], job["rows"], learner=learner)}
    if scheme == "lean":
        options["optimizers"] = (Lean(model.parameters(), 1e-5), None)
    if scheme == "lora":
        options["peft_config"] = adapters(8, 16)
    trainer = CPUGRPOTrainer(
        model=model,
        reward_funcs=lambda completion_ids, **_: [float(sum(ids) % 7) for ids in completion_ids],
        args=GRPOConfig(
            output_dir=scratch, per_device_train_batch_size=job["micro_batch"], num_generations=job["group"],
            gradient_accumulation_steps=job["prompts"] * job["group"] // job["micro_batch"],
            max_completion_length=job["completion_tokens"], max_steps=2, use_cpu=True, bf16=False, report_to=[],
            save_strategy="no", disable_tqdm=True, gradient_checkpointing=recompute,
        ),
        train_dataset=Dataset.from_list([{"prompt": "abcdefgh" * (job["prompt_tokens"] // 8) + c} for c in "12345678"]),
        processing_class=PreTrainedTokenizerFast.from_pretrained(TOKENIZER),
        **options,
    )
    trainer.eos_token_ids = [2**31 - 1]
    if not watch:
        trainer.shortage.room_for = lambda needed, patience=0: True
    parts, next_part = {}, trainer.step_sizes.next_part
    def counted(*arguments):
        parts[trainer.state.global_step] = parts.get(trainer.state.global_step, 0) + 1
        return next_part(*arguments)
    trainer.step_sizes.next_part = counted
    trainer.train()
print(json.dumps({"peak": monitor.peak_rss, "libraries": libraries, "parts": parts[1]}))
"""


@pytest.fixture
def run(tiny_directory, tmp_path):
    """Trains two updates in a process of its own; returns its peak, what the libraries took of it, and the parts of the
    last update; None if it was killed."""

    def train(scheme, job, watch=True, before=None):
        places = f"TOKENIZER = {str(tiny_directory)!r}\n"
        command = [sys.executable, "-c", places + TRAIN]
        held = [scheme.name, scheme.recompute, scheme.learner]
        command.append(json.dumps([*held, vars(SHAPE), vars(job), str(tmp_path), watch]))
        done = subprocess.run(command, capture_output=True, text=True, preexec_fn=before, check=False)
        if done.returncode == -signal.SIGKILL:
            return None
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout.splitlines()[-1])

    return train


def job(**changes):
    settings = {"prompts": 2, "group": 8, "prompt_tokens": 65, "completion_tokens": 48, "micro_batch": 16}
    return Job(**settings | {"micro_batch_tokens": 4096, "rows": 128, "updates": 2} | changes)


@pytest.mark.parametrize(
    "scheme",
    [
        Scheme("full", False),
        Scheme("lean", True),
        Scheme("lean", False),
        Scheme("lora", True, 8),
        Scheme("lora", False, 8),
    ],
    ids=lambda scheme: f"{scheme.name}{', layers computed twice' * scheme.recompute}",
)
def test_the_planned_peak_is_within_a_tenth_of_the_measured_one(run, scheme):
    measured = run(scheme, job())
    planned = peak(SHAPE, job(), scheme, compute=4)
    assert measured["libraries"] + planned.total - LIBRARIES == pytest.approx(measured["peak"], rel=0.1)


def test_a_learner_in_8_bits_takes_no_more_than_planned(run):
    """And little less: its copies are counted, and what it need not convert is not taken off."""
    need_narrow_products(torch.float32, torch.int8)
    scheme = Scheme("lora", False, 8, learner="int8")
    measured = run(scheme, job())
    planned = measured["libraries"] + peak(SHAPE, job(), scheme, compute=4).total - LIBRARIES
    assert measured["peak"] < planned < 1.2 * measured["peak"]


def test_a_file_of_wider_numbers_is_in_memory_while_it_is_read():
    lean, tiny_job = Scheme("lean", True), job(prompts=1, group=2, prompt_tokens=8, completion_tokens=2)
    narrow, wide = (peak(SHAPE, tiny_job, lean, 2, stored).loading for stored in (2, 4))
    assert (narrow, wide) == (2 * SHAPE.parameters, 6 * SHAPE.parameters)
    large = replace(SHAPE, layers=100)
    assert peak(large, tiny_job, lean, 2, 4).total == LIBRARIES + 6 * large.parameters


def test_smaller_micro_batches_take_as_little_as_planned(run):
    full, smaller = Scheme("full", False), job(completion_tokens=160, micro_batch_tokens=256)
    measured = run(full, smaller)
    planned = peak(SHAPE, smaller, full, 4).total
    assert measured["libraries"] + planned - LIBRARIES == pytest.approx(measured["peak"], rel=0.1)
    assert planned < 0.75 * peak(SHAPE, replace(smaller, micro_batch_tokens=4096), full, 4).total


def test_a_run_goes_on_in_smaller_steps_under_a_hard_limit_that_kills_one_without_the_watch(run):
    asked, full = job(completion_tokens=160), Scheme("full", False)
    most, least = (peak(SHAPE, replace(asked, micro_batch_tokens=tokens), full, 4).total for tokens in (4096, 256))
    try:
        with memory_group((most + least) // 2) as group:
            assert run(full, asked, watch=False, before=group.enter) is None
            held = run(full, asked, before=group.enter)
    except NoGroup as error:
        pytest.skip(str(error))
    assert held is not None and held["parts"] > 1
