"""Worker: writes a task's model to a directory, for an engine that loads from one; tells the prompts as token ids.

A task has: model, base, directory, groups (a list of Work).
"""

import torch
from processes import Json, serve
from workloads import SEED, WARM_UP_SEED, load, prompt_ids, prompts


def measure(task: Json) -> Json:
    """The prompts, timed and warm-up, of each amount of work."""
    model, tokenizer = load(task, torch.bfloat16)
    model.save_pretrained(task["directory"])
    tokenizer.save_pretrained(task["directory"])
    groups = []
    for given in task["groups"]:
        count, tokens = given["prompts"], given["prompt_tokens"]
        asked, warm_up = (prompt_ids(tokenizer, prompts(tokenizer, count, tokens, s)) for s in (SEED, WARM_UP_SEED))
        groups.append(given | {"prompts": asked, "warm_up_prompts": warm_up})
    return {"groups": groups}


if __name__ == "__main__":
    serve(measure)
