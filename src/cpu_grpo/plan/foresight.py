"""What is known of a run before it starts, and what that foretells."""

import warnings
from dataclasses import dataclass
from pathlib import Path

from cpu_grpo.config.schema import Model, Train
from cpu_grpo.engine.shape import Shape, of_config, of_directory, stored_bytes
from cpu_grpo.errors import UserError
from cpu_grpo.files import require_space
from cpu_grpo.hardware import DTYPES, Setup
from cpu_grpo.plan.choice import Known, Option, budget, settle, with_scheme
from cpu_grpo.plan.job import Job
from cpu_grpo.plan.memory import Peak
from cpu_grpo.plan.rehearsal import Costs, rehearse
from cpu_grpo.plan.saving import Saving, checkpoint_count, saving
from cpu_grpo.plan.seconds import Seconds, update_seconds
from cpu_grpo.units import duration, gigabytes
from cpu_grpo.workspace.models import made_model
from cpu_grpo.workspace.problems import drawn_card


def known_of(config: Train, hardware: Setup) -> Known | None:
    """From the model's config.json or `model.shape`, and from the data card if problems were drawn.

    None where nothing says how large the model is, or where the engine does not compute it.
    """
    made = made_model(config.init_from, config.model)
    shape = of_directory(made) if made else _shape_unmade(config)
    if shape is None or config.engine.name != "fast":
        return None
    card = drawn_card(config)
    lengths = card.get("splits", {}).get("train", {})
    prompt_tokens = lengths.get("prompt_tokens_max", config.task.max_prompt_length)
    if config.keep_prompt_tokens:
        prompt_tokens = min(prompt_tokens, config.keep_prompt_tokens)
    shared = 0 if config.keep_prompt_tokens or not config.engine.share_prefixes else card.get("prompt_tokens_shared", 0)
    stored = stored_bytes(made) if made else 0
    return Known(shape, prompt_tokens, shared, DTYPES[hardware.precision].itemsize, stored)


def _shape_unmade(config: Train) -> Shape | None:
    """Of a model that is not here yet; None where that is not known, or not of a kind that we know."""
    return of_config(config.model.shape) or (_of_source(config.model) if config.init_from == "base" else None)


def _of_source(model: Model) -> Shape | None:
    if model.source == "path":
        return of_directory(Path(model.path))
    if model.source != "hub":
        return None
    from huggingface_hub import hf_hub_download

    try:
        path = hf_hub_download(model.repo, "config.json", revision=model.revision)
    except Exception:  # hub, HTTP and file-system errors share no base class; the caller says what to do
        return None
    return of_directory(Path(path).parent)


@dataclass(frozen=True)
class Foresight:
    """What a run is expected to take."""

    option: Option
    costs: Costs

    @property
    def seconds(self) -> Seconds:
        """Of an update whose completions all go to their limit and have an advantage."""
        return self.seconds_of(self.option.job)

    def seconds_of(self, job: Job) -> Seconds:
        """Of an update of this work."""
        return update_seconds(self.option.known.shape, job, self.costs)

    def peak_of(self, job: Job) -> Peak:
        """Memory for this work."""
        return self.option.known.peak(job, self.option.scheme)

    @property
    def training(self) -> float:
        """Seconds of all updates, at most."""
        return self.seconds.update * self.option.job.updates

    @property
    def saving(self) -> Saving:
        """Disk that is taken."""
        return saving(self.option.known.shape, self.option.scheme, self.option.config)

    @property
    def checkpoint_seconds(self) -> float:
        """Of one."""
        return self.saving.checkpoint / self.costs.write_rate

    @property
    def checkpoints(self) -> int:
        """How many are made on the way."""
        job = self.option.job
        return checkpoint_count(self.option.config, job.updates, self.training, self.checkpoint_seconds)

    @property
    def disk(self) -> int:
        """Bytes of disk, at most."""
        return self.saving.with_checkpoints if self.checkpoints else self.saving.without_checkpoints

    @property
    def whole(self) -> float:
        """Seconds of all updates and checkpoints, at most."""
        return self.training + self.checkpoints * self.checkpoint_seconds

    def told(self) -> str:
        """In a line."""
        changes = f"{' '.join(self.option.changes)} to fit into memory: " if self.option.changes else ""
        kept = f" with {self.checkpoints} checkpoints of {gigabytes(self.saving.checkpoint)}" * bool(self.checkpoints)
        return (
            f"{changes}{gigabytes(self.option.peak.total)} of memory, {gigabytes(self.disk)} of disk, "
            f"{self.seconds.update:.1f} s an update and {duration(self.whole)} for {self.option.job.updates} updates"
            f"{kept}, at most"
        )

    def require_disk(self, directory: Path) -> None:
        """Raises UserError where the directory's disk has too little room."""
        remedy = ", or set checkpoint.minutes=0 and checkpoint.updates=0" if self.checkpoints else ""
        require_space(directory, self.disk, remedy)


def settled(config: Train, hardware: Setup) -> tuple[Train, Option | None]:
    """The configuration with what it takes to fit into memory, and its needs; None where they cannot be told.

    Raises:
        UserError: it does not fit.
    """
    if known := known_of(config, hardware):
        option = settle(config, known, budget(config.memory.limit))
        return option.config, option
    return (with_scheme(config, "full") if config.memory.scheme == "auto" else config), None


def foresee(option: Option, hardware: Setup) -> Foresight | None:
    """Measures the pieces of an update where the cache does not have them: some seconds.

    None, with a warning, where that fails: a run need not know its time to start.
    """
    shape = option.known.shape
    try:
        costs = rehearse(shape, option.job, option.scheme, hardware.precision, hardware.threads)
    except UserError as error:
        warnings.warn(f"There is no plan of the time: {error}", stacklevel=2)
        return None
    return Foresight(option, costs)
