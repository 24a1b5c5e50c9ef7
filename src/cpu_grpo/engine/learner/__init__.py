"""The learner: token log-probs of completions and their gradient, a group's prompt going through the model once.

It knows no text, rewards or sampling. `scoring` is the way in, `packing` makes one sequence of a group, `forward`
runs it through the decoder, `attention`, `ops` and `head` are its steps with their gradients, `batches` splits a batch
into micro-batches, `size` tells its memory.
"""

from cpu_grpo.engine.learner.forward import Rounded
from cpu_grpo.engine.learner.scoring import completion_logps

__all__ = ["Rounded", "completion_logps"]
