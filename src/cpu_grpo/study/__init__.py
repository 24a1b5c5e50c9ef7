"""A question answered by comparing arms of several runs each.

1. `jobs` turns an arm and a seed into the pipeline's own commands and runs them, unless their outcome is there.
2. `outcomes` is what is kept of a job: which problems came out right, and what it cost.
3. `search` proposes a trial's values, where a study looks for good ones.
4. `comparison` says what the outcomes show, with intervals over seeds; `overfitting`, how models do on
   problems that they were trained on; `growth`, how costs grow along an axis.
"""
