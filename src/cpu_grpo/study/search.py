"""A study that looks for good values of some keys: Optuna proposes each trial's, given what those before came to.

Nothing but the outcomes is kept: they hold every trial's values and its accuracy, so that a stopped search goes on.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cpu_grpo.config.study_schema import Range, Study
from cpu_grpo.study.outcomes import Outcome

if TYPE_CHECKING:
    from optuna import Study as Trials

SPLIT = "validation"  # whose accuracy is to grow: the test split chooses nothing


def next_values(study: Study, before: Sequence[Outcome], trial: int) -> dict[str, float]:
    """The values to try, by key: of the tree-structured Parzen estimator (Bergstra et al. 2011), seeded by the trial.

    Args:
        before: outcomes of trials before, in any order.
    """
    from optuna.samplers import TPESampler

    trials = _trials(study, before, TPESampler(seed=trial, n_startup_trials=study.trials_at_random))
    asked = trials.ask(_distributions(study.search))
    return {key: float(value) for key, value in asked.params.items()}


def importances(study: Study, outcomes: Sequence[Outcome]) -> dict[str, float]:
    """How much of the accuracy's variance each key explains; empty where all trials are equal.

    By functional ANOVA (Hutter et al. 2014).
    """
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    trials = _trials(study, outcomes, None)
    if len({outcome.marks[SPLIT].accuracy for outcome in outcomes}) < 2:
        return {}
    return dict(get_param_importances(trials, evaluator=FanovaImportanceEvaluator(seed=0)))


def as_keys(values: dict[str, float]) -> list[str]:
    """As a command takes them; whole numbers without a point, as keys of group sizes and the like want them."""
    return [f"{key}={int(value) if value == int(value) else value}" for key, value in values.items()]


def _trials(study: Study, outcomes: Sequence[Outcome], sampler: Any) -> "Trials":
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    trials = optuna.create_study(direction="maximize", sampler=sampler)
    distributions = _distributions(study.search)
    for outcome in sorted(outcomes, key=lambda outcome: outcome.seed):
        done = optuna.trial.create_trial(
            params=outcome.values, distributions=distributions, value=outcome.marks[SPLIT].accuracy
        )
        trials.add_trial(done)
    return trials


def _distributions(search: dict[str, Range]) -> dict[str, Any]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    return {
        key: CategoricalDistribution(own.choices) if own.choices else FloatDistribution(own.low, own.high, log=own.log)
        for key, own in search.items()
    }
