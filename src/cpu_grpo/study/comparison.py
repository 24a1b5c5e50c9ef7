"""What a study's outcomes show: arms beside each other, paired on the same problems, with intervals over seeds."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import exp, isnan, log
from statistics import mean

from cpu_grpo.config.study_schema import Study, StudyJob
from cpu_grpo.experiment.statistics import OverSeeds, holm, over_seeds, over_seeds_and_problems
from cpu_grpo.study.outcomes import Marks, Outcome

BySeed = dict[str, dict[int, Marks]]  # by arm


@dataclass(frozen=True)
class Difference:
    """Of an arm's accuracy to another's, seed by seed on the same problems."""

    over_seeds: OverSeeds
    p_corrected: float  # by Holm, for all arms that are compared with the same
    smallest: float  # that would have been found among so many


@dataclass(frozen=True)
class Arm:
    """One arm over its seeds. A comparison that cannot be made is None."""

    name: str
    seeds: list[int]
    problems: int  # of all seeds together
    accuracy: dict[str, OverSeeds]  # by split
    levels: dict[int, OverSeeds]  # accuracy on test problems, by difficulty
    gain: Difference | None  # over the base
    difference: Difference | None  # to the study's reference
    figures: dict[str, float]  # means over seeds
    extracted: dict[str, tuple[OverSeeds, Difference | None]]  # by extraction: accuracy and difference to the reference
    first: OverSeeds | None  # accuracy on the first test problems, as many as others have reported on


def arms(config: StudyJob, outcomes: Sequence[Outcome], split: str = "test") -> list[Arm]:
    """Every arm that has outcomes, in the study's order."""
    by_arm = {name: [found for found in outcomes if found.arm == name] for name in config.study.arms}
    by_arm = {name: found for name, found in by_arm.items() if found}
    study = config.study
    marks = {name: {found.seed: found.marks[split] for found in own} for name, own in by_arm.items()}
    gains = corrected(_differences(study, marks, "base"))
    differences = corrected(_differences(study, marks, study.reference))
    extracted = _extracted(study, marks)
    return [
        Arm(
            name=name,
            seeds=[outcome.seed for outcome in found],
            problems=sum(len(outcome.marks[split].right) for outcome in found),
            accuracy={key: _accuracy(study, [outcome.marks[key] for outcome in found]) for key in found[0].marks},
            levels=_levels(study, [outcome.marks[split] for outcome in found]),
            gain=gains.get(name),
            difference=differences.get(name),
            figures={key: mean(outcome.figures[key] for outcome in found) for key in found[0].figures},
            extracted=extracted.get(name, {}),
            first=_first(study, [outcome.marks[split] for outcome in found]),
        )
        for name, found in by_arm.items()
    ]


def _accuracy(study: Study, marks: list[Marks]) -> OverSeeds:
    if study.same_problems:
        return over_seeds_and_problems([[float(own) for own in found.right] for found in marks])
    return over_seeds([found.accuracy for found in marks])


def _first(study: Study, marks: list[Marks]) -> OverSeeds | None:
    few = study.published.problems
    return _accuracy(study, [found.first(few) for found in marks]) if few and study.same_problems else None


def _extracted(study: Study, marks: BySeed) -> dict[str, dict[str, tuple[OverSeeds, Difference | None]]]:
    """By arm and extraction, of all arms whose outcomes have it. All differences are corrected together."""
    own = {
        extraction: {
            name: {seed: found.by(extraction) for seed, found in by_seed.items()}
            for name, by_seed in marks.items()
            if all(found.by(extraction).right for found in by_seed.values())
        }
        for extraction in study.extractions
    }
    differences = corrected(
        {
            f"{extraction} {name}": found
            for extraction, by_arm in own.items()
            for name, found in _differences(study, by_arm, study.reference).items()
        }
    )
    found: dict[str, dict[str, tuple[OverSeeds, Difference | None]]] = {}
    for extraction, by_arm in own.items():
        for name, by_seed in by_arm.items():
            accuracy = _accuracy(study, list(by_seed.values()))
            found.setdefault(name, {})[extraction] = accuracy, differences.get(f"{extraction} {name}")
    return found


def _levels(study: Study, marks: list[Marks]) -> dict[int, OverSeeds]:
    levels = sorted({level for own in marks for level in own.levels})
    return {level: _accuracy(study, [own.of_level(level) for own in marks if level in own.levels]) for level in levels}


def _differences(study: Study, marks: BySeed, reference: str) -> dict[str, OverSeeds]:
    """Of every other arm to the reference, over the seeds whose problems are the same."""
    base = marks.get(reference, {})
    found: dict[str, OverSeeds] = {}
    for name, by_seed in marks.items():
        pairs = [(base[seed], own) for seed, own in by_seed.items() if seed in base]
        pairs = [(before, after) for before, after in pairs if before.problems == after.problems]
        if not pairs or name == reference:
            continue
        if study.same_problems:
            found[name] = over_seeds_and_problems(
                [
                    [float(new) - float(old) for old, new in zip(before.right, after.right, strict=True)]
                    for before, after in pairs
                ]
            )
        else:
            found[name] = over_seeds([after.accuracy - before.accuracy for before, after in pairs])
    return found


def corrected(differences: dict[str, OverSeeds]) -> dict[str, Difference]:
    """Differences of a table, whose p-values may then be read together; some of one seed have none."""
    testable = [name for name, own in differences.items() if not isnan(own.p_value)]
    p_values = dict(zip(testable, holm([differences[name].p_value for name in testable]), strict=True))
    return {
        name: Difference(own, p_values.get(name, float("nan")), own.smallest(max(1, len(testable))))
        for name, own in differences.items()
    }


def forgotten(config: StudyJob, outcomes: Sequence[Outcome]) -> OverSeeds | None:
    """What the study's later stages did to accuracy on an earlier one's level; None where that was not run."""
    asked = config.study.forgetting
    by_arm = {
        arm: {outcome.seed: outcome.marks["test"] for outcome in outcomes if outcome.arm == arm}
        for arm in (asked.before, asked.after)
    }
    pairs = [
        (before.of_level(asked.level), by_arm[asked.after][seed].of_level(asked.level))
        for seed, before in by_arm[asked.before].items()
        if seed in by_arm[asked.after] and by_arm[asked.after][seed].problems == before.problems
    ]
    changes = [after.accuracy - before.accuracy for before, after in pairs if before.right]
    return over_seeds(changes) if changes else None


def speeds(config: StudyJob, outcomes: Sequence[Outcome]) -> dict[str, OverSeeds]:
    """Completions/s of every arm as a multiple of the reference's."""
    reference = config.study.reference
    found = {arm: speed_ratios(config, outcomes, arm, reference) for arm in config.study.arms if arm != reference}
    return {arm: typical_ratio(ratios) for arm, ratios in found.items() if ratios}


def speed_ratios(config: StudyJob, outcomes: Sequence[Outcome], arm: str, reference: str) -> list[float]:
    """Completions/s of an arm's last stage as a multiple of another's, seed by seed."""
    rates = {
        name: {own.seed: _last_rate(config, outcomes, own) for own in outcomes if own.arm == name and own.figures}
        for name in (arm, reference)
    }
    return [rate / rates[reference][seed] for seed, rate in rates[arm].items() if seed in rates[reference]]


def typical_ratio(ratios: Sequence[float]) -> OverSeeds:
    """Their geometric mean, with the interval of their logarithms."""
    found = over_seeds([log(ratio) for ratio in ratios])
    return replace(found, mean=exp(found.mean), low=exp(found.low), high=exp(found.high))


def _last_rate(config: StudyJob, outcomes: Sequence[Outcome], own: Outcome) -> float:
    """Completions/s of the last stage alone, where the stages before it are an arm too, of which it shares the runs."""
    before = config.study.arms[own.arm][:-1]
    if not before:
        return own.figures["completions_per_second"]
    for other in outcomes:
        same_stages = other.seed == own.seed and config.study.arms[other.arm] == before
        if same_stages and other.runs[: len(before)] == own.runs[: len(before)]:
            completions, seconds = (own.figures[key] - other.figures[key] for key in ("completions", "train_seconds"))
            return completions / seconds
    return own.figures["completions_per_second"]
