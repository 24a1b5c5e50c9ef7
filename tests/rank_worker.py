"""One of several processes that train a tiny model together, or one alone: python rank_worker.py TASK, a JSON object.

A task has: model (a directory), out (a directory), scheme, batch (completions of a process), updates; and may have
fixed (completions are functions of their prompts), settings (more of TRL's), kill (SIGKILL of the last rank after so
many updates; torchrun starts all of them again, and they go on), bad (the last rank's loss is NaN in that update).
"""

import json
import os
import signal
import sys
import warnings
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerFast

from cpu_grpo import CPUGRPOTrainer
from cpu_grpo.engine.ranks import rank, ranks
from cpu_grpo.engine.rollout import Completion
from cpu_grpo.engine.rollout.groups import members_of
from trainers import make, with_scheme


class Trained(CPUGRPOTrainer):
    task: dict

    def _rollout(self, prompt_ids):
        if not self.task.get("fixed"):
            found = super()._rollout(prompt_ids)
            self.drawn = [completion.ids for completion in found]
            return found
        self._checked = True  # these completions are not the model's own
        found = [Completion()] * len(prompt_ids)
        for prompt, places in members_of(prompt_ids).items():
            for number, place in enumerate(places):
                draw = torch.Generator().manual_seed(sum(prompt) + 1000 * number)
                ids = torch.randint(40, 120, (int(torch.randint(1, 6, (), generator=draw)),), generator=draw).tolist()
                found[place] = Completion(ids, [-5.0] * len(ids))
        return found

    def _loss_in_parts(self, model, inputs):
        loss = super()._loss_in_parts(model, inputs)
        if self.task.get("bad") == self.state.global_step + 1 and rank() == ranks() - 1:
            self.numbers.see("loss", float("nan"))
        return loss


def main(task):
    model, options, own = with_scheme(task["scheme"], Path(task["model"]))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(task["model"])
    changes = {"per_device_train_batch_size": task["batch"], "max_steps": task["updates"]}
    if "WORLD_SIZE" in os.environ:
        changes["ddp_backend"] = "gloo"
    trainer = make(Trained, model, tokenizer, task["out"], options, **own | changes | task.get("settings", {}))
    trainer.task = task
    again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"

    def after_update():
        if task.get("kill") == trainer.state.global_step and rank() == ranks() - 1 and not again:
            os.kill(os.getpid(), signal.SIGKILL)

    trainer.after_update = after_update
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="TRL's plain path")
        trainer.train(resume_from_checkpoint=True if again else None)
    weights = {name: p.detach().contiguous() for name, p in trainer.model.named_parameters()}
    save_file(weights, Path(task["out"]) / f"weights-{rank()}.safetensors")
    told = {"log": trainer.state.log_history, "drawn": getattr(trainer, "drawn", [])}
    (Path(task["out"]) / f"told-{rank()}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
