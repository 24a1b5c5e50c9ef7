"""Which of the pipeline's commands a study runs, which it leaves out, and what it keeps of them."""

import json
import shlex
import shutil
import subprocess
from dataclasses import replace

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from cpu_grpo.config.compose import compose_pipeline, compose_run, compose_study, study_names, typed
from cpu_grpo.config.schema import Pipeline
from cpu_grpo.config.study_schema import Budget, Study, StudyJob
from cpu_grpo.errors import UserError
from cpu_grpo.experiment.recipe import chosen_problems
from cpu_grpo.files import write_json, write_jsonl
from cpu_grpo.study import jobs
from cpu_grpo.study.outcomes import outcome_file, read_outcome, read_outcomes
from cpu_grpo.tasks.problems import Problem

ARMS = {"base": [], "short": ["levels=[1]"], "long": ["levels=[1]", "levels=[2] problems=3"], "other": ["levels=[2]"]}
FIGURES = {"wall_seconds": 10.0, "train_seconds": 8.0, "no_spread_share": 0.5, "clipped_share": 0.0, "cpu_use": 0.9}
FIGURES |= {
    "grad_norm": 1.0,
    "completions": 16,
    "tokens": 64,
    "peak_rss_bytes": 100,
    "mlflow_run_id": "abc",
    "update_seconds": 2,
}


@pytest.fixture
def config(workspace):
    study = Study(name="s", arms=ARMS, common="variant=ultra_fast", task="task.train=9", seeds=[1, 2])
    return StudyJob(study=study, budget=Budget(name="b", seeds=[1, 2]), arm="base", seed=1, also="engine=trl")


@pytest.fixture
def ran(monkeypatch):
    """Stands for the pipeline's commands: (stage, keys) of all that were run."""
    found = []

    def run(_, stage, keys, directory):
        found.append((stage, keys))
        given = dict(key.split("=", 1) for key in keys)
        if stage == "train":
            (directory / "models" / given["name"]).mkdir(parents=True)
            updates = 1 if given["levels"] == "[1]" else 3
            figures = FIGURES | {"updates": updates, "clipped_share": updates / 10, "peak_rss_bytes": 100 * updates}
            write_json(directory / "results" / "train" / f"{given['name']}.json", figures)
        else:
            rows = [
                {"id": f"p{i}", "difficulty": 1 + i % 2, "right": i < 2, "strict_right": i < 1, "flexible_right": i < 2}
                for i in range(4)
            ]
            model = given["evaluation.models"].strip("[]").split("/")[-1]
            write_jsonl(directory / "results" / "evaluate" / f"{model}.jsonl", rows)
            write_json(directory / "results" / "evaluate" / f"{model}.json", {"mlflow_run_id": "def"})

    monkeypatch.setattr(jobs, "_run", run)
    return found


def test_an_arm_is_trained_stage_by_stage_and_then_evaluated(config, ran, workspace):
    jobs.run_job(replace(config, arm="long"), workspace / "out")
    (first, keys_1), (second, keys_2), (third, keys_3) = ran
    assert (first, second, third) == ("train", "train", "evaluate")
    for keys in (keys_1, keys_2, keys_3):
        assert {"seed=1", "task.train=9", "engine=trl"} <= set(keys)
    model_1, model_2 = (next(key[5:] for key in keys if key.startswith("name=")) for keys in (keys_1, keys_2))
    assert "init_from=base" in keys_1 and "levels=[1]" in keys_1 and "variant=ultra_fast" in keys_1
    assert f"init_from={(workspace / 'out' / model_1 / 'models' / model_1).as_posix()}" in keys_2
    assert f"evaluation.models=[{(workspace / 'out' / model_2 / 'models' / model_2).as_posix()}]" in keys_3


def test_an_outcome_adds_up_its_stages(config, ran, workspace):
    found = jobs.run_job(replace(config, arm="long"), workspace / "out")
    assert found == read_outcome(outcome_file(config, "long", 1))
    assert (found.arm, found.seed, found.runs) == ("long", 1, ["abc", "abc", "def"])
    marks = found.marks["test"]
    assert (marks.right, marks.levels, marks.accuracy) == ("1100", [1, 2, 1, 2], 0.5)
    assert (marks.of_level(2).right, marks.of_level(2).levels) == ("10", [2, 2])
    figures = found.figures
    assert (figures["updates"], figures["wall_seconds"], figures["peak_rss_bytes"]) == (4, 20, 300)
    assert figures["clipped_share"] == pytest.approx((0.1 * 1 + 0.3 * 3) / 4)
    assert figures["completions_per_second"] == 2 and figures["tokens_per_second"] == 8


def test_what_is_done_is_not_run_again(config, ran, workspace):
    first = jobs.run_job(config, workspace / "out")
    assert len(ran) == 1
    assert jobs.run_job(config, workspace / "elsewhere") == first
    assert len(ran) == 1


@pytest.mark.parametrize("change", [{"also": "engine=fast"}, {"budget": Budget(name="b", seeds=[1], problems=2)}])
def test_another_job_of_the_same_name_is_run(config, ran, workspace, change):
    jobs.run_job(config, workspace / "out")
    jobs.run_job(replace(config, **change), workspace / "out")
    assert len(ran) == 2


def test_stages_that_arms_share_are_trained_once_and_kept_as_long(config, ran, workspace):
    short, long = (replace(config, arm=arm) for arm in ("short", "long"))
    shared = jobs.stages(config, "short")[0].name
    assert shared == jobs.stages(config, "long")[0].name
    jobs.run_job(short, workspace / "out")
    assert (workspace / "out" / shared / "models" / shared).is_dir()  # long goes on from it
    jobs.run_job(long, workspace / "out")
    assert [stage for stage, _ in ran] == ["train", "evaluate", "train", "evaluate"]
    assert not list((workspace / "out").glob("*/models"))


def test_seeds_share_nothing(config, ran, workspace):
    other = replace(config, seed=2)
    assert jobs.stages(config, "short")[0].name != jobs.stages(other, "short")[0].name


def test_a_stopped_job_goes_on_after_its_last_whole_stage(config, ran, workspace, monkeypatch):
    job, working = replace(config, arm="long"), jobs._run

    def stopped(job, stage, keys, directory):
        if "levels=[2]" in keys:
            raise KeyboardInterrupt
        working(job, stage, keys, directory)

    monkeypatch.setattr(jobs, "_run", stopped)
    with pytest.raises(KeyboardInterrupt):
        jobs.run_job(job, workspace / "out")
    assert read_outcomes(config) == []
    monkeypatch.setattr(jobs, "_run", working)
    jobs.run_job(job, workspace / "out")
    assert [stage for stage, _ in ran] == ["train", "train", "evaluate"]


def test_training_problems_are_evaluated_as_far_as_they_were_trained_on(config, ran, workspace):
    study = replace(config.study, splits=["train", "test"])
    jobs.run_job(replace(config, study=study, arm="long"), workspace / "out")
    jobs.run_job(replace(config, study=study, arm="short"), workspace / "out")
    limits = [next(key for key in keys if "limit" in key) for stage, keys in ran if stage == "evaluate"]
    assert limits == [f"evaluation.limit={n}" for n in (3, 0, 0, 0)]


def test_a_stage_that_was_killed_is_told_as_such(config, workspace, monkeypatch):
    """Nothing of its own says so."""
    monkeypatch.setattr(jobs, "PIPELINES", workspace)
    (workspace / "train.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    with pytest.raises(UserError, match="short with seed 1 was killed in train"):
        jobs.run_job(replace(config, arm="short"), workspace / "out")


def test_a_failing_stage_stops_the_study_in_a_sentence(config, workspace, monkeypatch):
    monkeypatch.setattr(jobs, "PIPELINES", workspace)  # where there is no train.py
    with pytest.raises(UserError, match="short with seed 1 failed in train"):
        jobs.run_job(replace(config, arm="short"), workspace / "out")
    assert read_outcomes(config) == []


def test_variables_among_the_keys_are_the_commands_environment(config, workspace, monkeypatch):
    (workspace / "train.py").write_text(
        "import os, sys, pathlib\npathlib.Path('said').write_text(os.environ['SOME_SWITCH'] + ' '.join(sys.argv[1:]))"
    )
    monkeypatch.setattr(jobs, "PIPELINES", workspace)
    jobs._run(config, "train", ["SOME_SWITCH=off", "trainer.beta=0"], workspace / "out")
    assert (workspace / "said").read_text() == f"offtrainer.beta=0 hydra.run.dir={(workspace / 'out').as_posix()}"


def test_a_damaged_outcome_is_told(config, workspace):
    path = outcome_file(config, "base", 1)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"arm": "base"}))
    with pytest.raises(UserError, match=r"base-1.json is no outcome of a study .*: remove it"):
        read_outcomes(config)


def test_the_curriculum_takes_as_many_updates_as_what_it_is_compared_with():
    config = compose_study("progressive", "full")
    updates = {
        arm: sum(int(key.split("=")[1]) for keys in stages for key in keys.split() if "max_steps" in key)
        for arm, stages in config.study.arms.items()
    }
    assert updates == {"base": 0, "after_level_1": 7, "curriculum": 20, "mix": 20, "hardest": 20}


@pytest.mark.slow
def test_an_arm_that_asks_otherwise_shares_what_it_does_not_say():
    config = compose_study("gsm8k", "full")
    tasks = {
        arm: typed(compose_pipeline(jobs._evaluation(config, arm, "test")), Pipeline).task
        for arm in ("base", "base_8shot", "base_640")
    }
    assert {arm: (task.name, task.test) for arm, task in tasks.items()} == {
        "base": ("gsm8k_boxed", 819),
        "base_8shot": ("gsm8k_8shot", 819),
        "base_640": ("gsm8k_boxed", 819),
    }
    assert [tasks[arm].max_completion_length for arm in ("base", "base_640")] == [320, 640]


@pytest.mark.slow
@pytest.mark.parametrize("name", study_names())
def test_every_arm_of_a_study_is_a_valid_run_with_problems_enough(name):
    config = compose_study(name, "full")
    for arm in config.study.arms:
        for stage in jobs.stages(config, arm):
            run = compose_run([key for key in stage.keys if not jobs.VARIABLE.match(key)])
            problems = [Problem(f"p{n}", f"{n} + 1", str(n + 1), 1 + n % 3, "train") for n in range(run.task.train)]
            assert chosen_problems(run, problems)


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
@pytest.mark.parametrize("target", ["study", "gsm8k"])
@pytest.mark.parametrize("where", ["/data/gsm8k", "../shared/gsm8k", "/my data/gsm8k"])
def test_make_passes_the_directory_of_gsm8k_on_to_the_stages(target, where):
    told = subprocess.run(
        ["make", "-n", target, "NAME=gsm8k", f"GSM8K={where}"],
        cwd=jobs.PIPELINES.parent,
        capture_output=True,
        text=True,
    )
    (word,) = (word for line in told.stdout.splitlines() for word in shlex.split(line) if "task.path" in word)
    override = OverridesParser.create().parse_override(word)
    if target == "study":  # whose jobs split what they are given, and pass it on
        (word,) = shlex.split(override.value())
        override = OverridesParser.create().parse_override(word)
    assert (override.key_or_group, str(override.value())) == ("task.path", where)
