"""Worker for another environment, one with vLLM's CPU build (VLLM_PYTHON names its python): seconds of a rollout.

A task has: directory (of the model), temperature, plain_precision (of the weights, fp32 or bf16), groups (a list of:
completions, completion_tokens, prompts and warm_up_prompts as token ids).
"""

import os
import time

from processes import Json, serve

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "4")  # GiB
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")


def measure(task: Json) -> Json:
    """One warm-up and one timed rollout for each amount of work."""
    import vllm

    longest = max(len(group["prompts"][0]) + group["completion_tokens"] for group in task["groups"])
    engine = vllm.LLM(model=task["directory"], dtype=DTYPES[task["plain_precision"]], max_model_len=longest + 8)
    seconds = []
    for group in task["groups"]:
        tokens = group["completion_tokens"]
        sampling = vllm.SamplingParams(
            n=group["completions"],
            temperature=task["temperature"],
            max_tokens=tokens,
            min_tokens=tokens,
            ignore_eos=True,
            detokenize=False,
        )
        for prompts in (group["warm_up_prompts"], group["prompts"]):
            asked = [{"prompt_token_ids": ids} for ids in prompts]
            start = time.perf_counter()
            answers = engine.generate(asked, sampling, use_tqdm=False)
            took = time.perf_counter() - start
            lengths = [len(completion.token_ids) for answer in answers for completion in answer.outputs]
            if lengths != [tokens] * (len(prompts) * group["completions"]):
                raise ValueError(f"not {len(prompts) * group['completions']} completions of {tokens} tokens")
        seconds.append(took)
    return {"seconds": seconds, "vllm": vllm.__version__}


if __name__ == "__main__":
    serve(measure)
