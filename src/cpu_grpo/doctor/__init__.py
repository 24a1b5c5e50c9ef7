"""Whether everything is in place for a run, in a line each: `python -m cpu_grpo.doctor`.

1. `finding` is what a check yields; one that cannot be made is a finding, too.
2. `machine` looks at Python, compiler, CPU, memory and disk, `project` at the checkout, `records` at MLflow.
"""
