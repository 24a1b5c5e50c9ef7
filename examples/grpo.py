"""A plain TRL script: python examples/grpo.py [MODEL] [--loss_type dr_grpo]. Only the marked import is not stock."""

import argparse

from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback
from trl import GRPOConfig

from cpu_grpo import CPUGRPOTrainer as GRPOTrainer  # stock: from trl import GRPOTrainer

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("model", nargs="?", default="models/base", help="a directory, or a name on the hub")
parser.add_argument("--loss_type", choices=["dapo", "dr_grpo", "grpo", "bnpo", "cispo", "sapo"], default="dapo")
options = parser.parse_args()


def right_and_short(completions, answer, **columns):
    return [float(right in text) - 0.01 * len(text) for text, right in zip(completions, answer, strict=True)]


class PrintReward(TrainerCallback):
    def on_log(self, args, state, control, logs=None, **kwargs):
        if "reward" in logs:
            print(f"update {state.global_step}: reward {logs['reward']}")


sums = Dataset.from_list([{"prompt": f"{a} + {b} =", "answer": str(a + b)} for a in range(2, 10) for b in range(2, 10)])
recipe = {"learning_rate": 1e-4, "per_device_train_batch_size": 32, "max_completion_length": 16, "max_steps": 3}
config = GRPOConfig("outputs/example", loss_type=options.loss_type, logging_steps=1, use_cpu=True, **recipe)
lora = LoraConfig(task_type="CAUSAL_LM", r=8, target_modules="all-linear")
trainer = GRPOTrainer(options.model, right_and_short, config, sums, peft_config=lora, callbacks=[PrintReward()])
trainer.train()
trainer.save_model()
