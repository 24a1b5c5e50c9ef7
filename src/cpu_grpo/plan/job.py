"""What an update has to do, in numbers of prompts, completions and tokens."""

from dataclasses import dataclass, replace
from math import ceil

from cpu_grpo.config.schema import Train


@dataclass(frozen=True)
class Job:
    """One training run's work."""

    prompts: int  # of an update
    group: int  # completions of each
    prompt_tokens: int
    completion_tokens: int  # of each on average; before a run, their limit
    micro_batch: int  # completions that TRL hands to the learner at a time
    micro_batch_tokens: int  # and tokens of them whose activations exist at a time, nothing counted twice
    rows: int  # completions decoded together
    updates: int
    iterations: int = 1  # updates on the same completions
    shared_tokens: int = 0  # that all prompts begin with
    reference: bool = False  # whether a second model is held to stay close to
    longest_completion: int = 0  # 0: all are of one length
    learnt_share: float = 1.0  # of the completions that have an advantage, so that the learner sees them
    learn_from: int = 0  # completions of a group that it sees at most; 0: all

    @property
    def sequences(self) -> int:
        return self.prompts * self.group

    @property
    def micro_batches(self) -> int:
        """That TRL hands to the learner in an update."""
        return -(-self.sequences // self.micro_batch)

    @property
    def prefilled(self) -> int:
        """Tokens of an update's prompts: what is common once."""
        return self.shared_tokens + self.prompts * (self.prompt_tokens - self.shared_tokens)

    @property
    def decoded(self) -> int:
        """Completions decoded together."""
        return max(self.group, min(self.rows, self.sequences))

    @property
    def learnt(self) -> int:
        """Completions of a micro-batch that have an advantage and are taken; one at least."""
        of_group = min(self.learn_from or self.group, self.group) / self.group
        return max(1, ceil(min(self.micro_batch, self.sequences) * self.learnt_share * of_group))

    @property
    def completions_at_once(self) -> int:
        """In the learner: as many as the budget of tokens allows, one at least."""
        budget, own = self.micro_batch_tokens - self.shared_tokens, self.prompt_tokens - self.shared_tokens
        whole = own + self.group * self.completion_tokens
        if whole <= budget:
            return min(self.learnt, budget // whole * self.group)
        return max(1, min(self.learnt, (budget - own) // self.completion_tokens))

    def packed(self, completions: int) -> int:
        """Tokens that the model sees of so many completions: what is common once, and all but each one's last token."""
        prompts = -(-completions // self.group)
        own = prompts * (self.prompt_tokens - self.shared_tokens)
        return self.shared_tokens + own + completions * (self.completion_tokens - 1)

    @property
    def parts(self) -> int:
        """Pieces that the learner takes an update's completions in."""
        return self.micro_batches * -(-self.learnt // self.completions_at_once)

    @property
    def last_completions(self) -> int:
        """In the last of a micro-batch's pieces."""
        return self.learnt % self.completions_at_once or self.completions_at_once

    @property
    def longest(self) -> int:
        """Tokens of the longest completion."""
        return max(self.longest_completion, self.completion_tokens)

    def as_it_came(self, completion_tokens: float, learnt_share: float) -> "Job":
        """The same of completions that ended before their limit, of which a share had an advantage."""
        mean = max(1, round(completion_tokens))
        return replace(
            self, completion_tokens=mean, longest_completion=self.completion_tokens, learnt_share=learnt_share
        )


def job_of(config: Train, prompt_tokens: int, shared_tokens: int = 0, updates: int | None = None) -> Job:
    """A run's work.

    Args:
        prompt_tokens: of the longest prompt.
        shared_tokens: that all prompts begin with.
        updates: how many there will be, where max_steps leaves that to the number of problems.
    """
    settings = config.trainer
    sequences = settings.per_device_train_batch_size * settings.gradient_accumulation_steps
    return Job(
        prompts=sequences // settings.num_generations,
        group=settings.num_generations,
        prompt_tokens=prompt_tokens,
        completion_tokens=settings.max_completion_length,
        micro_batch=settings.per_device_train_batch_size,
        micro_batch_tokens=config.engine.micro_batch_tokens,
        rows=config.engine.rows,
        updates=updates or max(1, settings.max_steps),
        iterations=settings.num_iterations,
        shared_tokens=shared_tokens,
        learn_from=config.learn_from,
        reference=settings.beta != 0 and config.memory.scheme != "lora",
    )
