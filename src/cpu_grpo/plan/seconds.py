"""How long an update takes, put together from the costs of its pieces."""

from dataclasses import dataclass

from cpu_grpo.engine.shape import Shape
from cpu_grpo.plan.job import Job
from cpu_grpo.plan.rehearsal import Costs


@dataclass(frozen=True)
class Seconds:
    """Of one update."""

    rollout: float
    learner: float
    optimizer: float

    @property
    def update(self) -> float:
        return self.rollout + self.learner + self.optimizer


def update_seconds(shape: Shape, job: Job, costs: Costs) -> Seconds:
    """A rollout serves `job.iterations` updates."""
    layers = shape.layers
    lots = job.sequences / job.decoded
    rollout = (
        costs.lay_out.of(layers)
        + costs.prefill.of(layers) * job.prefilled / costs.prefilled
        + _decoding(layers, job, costs) * lots
    )
    batches = job.micro_batches
    tokens = (job.parts - batches) * job.packed(job.completions_at_once) + batches * job.packed(job.last_completions)
    learner = batches * costs.round.of(layers) + costs.learn.of(layers) * tokens / costs.learnt
    return Seconds(rollout / job.iterations, learner, costs.optimize.of(layers))


def _decoding(layers: int, job: Job, costs: Costs) -> float:
    """Of completions that are decoded together: steps until the longest is done, in which others leave their rows.

    A step costs so much by itself and so much a row, so that only the lengths' mean and maximum matter.
    """
    step, thin_step = costs.step.of(layers), costs.thin_step.of(layers)
    row = max(0.0, step - thin_step) / max(1, job.decoded - costs.thin_rows)
    alone = step - job.decoded * row
    return alone * (job.longest - 1) + row * job.decoded * (job.completion_tokens - 1)
