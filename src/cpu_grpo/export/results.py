"""What was measured of an exported model, as far as it was of these very weights."""

from dataclasses import dataclass
from pathlib import Path

from cpu_grpo.experiment.statistics import Paired
from cpu_grpo.export.source import Source
from cpu_grpo.report.findings import gain_over
from cpu_grpo.report.results import Evaluation, Training, read_evaluations, read_trainings


@dataclass(frozen=True)
class Measured:
    """Of the model, and of its base on the same problems."""

    training: Training | None
    evaluation: Evaluation | None
    base: Evaluation | None
    gain: Paired | None
    others: bool  # an evaluation under this name was of other weights, and is left out


def measured(source: Source) -> Measured:
    """What lies in results/ beside the model.

    Raises:
        UserError: a file is damaged.
    """
    results = source.root / "results"
    evaluations = {Path(name).name: found for name, found in read_evaluations(results / "evaluate").items()}
    own, base = evaluations.get(source.name), evaluations.get("base")
    others = own is not None and own.model_hash not in (None, source.weights_hash)
    own = None if others else own
    trained = read_trainings(results / "train").get(source.name) if source.trained else None
    seed = source.recipe.get("seed", 0)
    gain = gain_over(base, own, seed if isinstance(seed, int) else 0) if source.trained else None
    return Measured(trained, own, base if source.trained and gain else None, gain, others)
