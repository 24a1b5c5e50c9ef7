"""Which of a study's arms this machine can run."""

import re
from collections.abc import Sequence

from cpu_grpo.config.study_schema import Study, StudyJob
from cpu_grpo.hardware import usable_cores
from cpu_grpo.study.outcomes import Outcome

THREADS = re.compile(r"hardware\.threads=(\d+)")


def runnable(study: Study) -> list[str]:
    """Arms that ask for fewer threads than there are cores, or leave that open: these take all cores."""
    cores = usable_cores()
    return [
        arm
        for arm, stages in study.arms.items()
        if all(int(threads) < cores for threads in THREADS.findall(" ".join([study.common, *stages])))
    ]


def job_count(config: StudyJob, outcomes: Sequence[Outcome]) -> int:
    """Of the arms that this machine can run, and of those that another one has run."""
    return len({*runnable(config.study), *(outcome.arm for outcome in outcomes)}) * len(config.budget.seeds)
