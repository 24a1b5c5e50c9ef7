"""Trains one variant: models/<variant> and results/train/<variant>.{json,csv,samples.jsonl}."""

from dataclasses import replace
from pathlib import Path

from cpu_grpo.config import Train, launch
from cpu_grpo.experiment.tracking import start_run
from cpu_grpo.files import fingerprint, sha256
from cpu_grpo.hardware import setup
from cpu_grpo.models.integrity import intact_hash
from cpu_grpo.plan.foresight import foresee, settled
from cpu_grpo.tasks.judge import grader_of
from cpu_grpo.tasks.problems import read_problems
from cpu_grpo.workspace.checkpoints import checkpoints_of
from cpu_grpo.workspace.layout import Layout
from cpu_grpo.workspace.models import find_model
from cpu_grpo.workspace.problems import problems_file


def train(config: Train, root: Path, pipeline_id: str) -> None:
    layout = Layout(root)
    hardware = setup(config.hardware)
    print(*(f"hardware: {reason}" for reason in hardware.reasons), sep="\n")
    settled(config, hardware)  # complains before anything is downloaded, and before two seconds of imports
    from cpu_grpo.experiment.figures import write_results
    from cpu_grpo.experiment.recipe import chosen_problems
    from cpu_grpo.experiment.reporters import require_packages
    from cpu_grpo.experiment.rewarding import Rewarding
    from cpu_grpo.experiment.training import train_variant

    require_packages(config.tracking)
    start, data = find_model(config.init_from, config.model), problems_file(config)
    problems = read_problems(data)
    chosen_problems(config, problems)  # complains before a run is recorded
    model_hash, data_hash = intact_hash(start), fingerprint(sha256(data))
    target = layout.model(config.name)
    # Complains of reward code before a run is recorded.
    with Rewarding(config.rewards, grader_of(config.task), layout.reward_faults(config.name)) as rewards:
        kept = checkpoints_of(config, target, model_hash, data_hash, rewards.code)
        with kept.held():
            for sentence in kept.look_around():
                print(f"notice: {sentence}")
            config = kept.fitted(config)
            if kept.precision not in ("", hardware.precision):  # the checkpoint's, whatever was measured now
                hardware = setup(replace(config.hardware, precision=kept.precision))
            config, needs = settled(config, hardware)
            plan = foresee(needs, hardware) if needs else None
            if plan:
                print(f"plan: {plan.told()}")
                plan.require_disk(kept.directory.parent)
            tags = {"variant": config.name, "model": config.model.name, "task": config.task.name}
            tags |= {"data_hash": data_hash, "model_hash": model_hash}
            with start_run(config, f"train {config.name}", "train", pipeline_id, tags, kept.run_id) as run:
                kept.begin(config, hardware.precision, run.run_id)
                run.params(config)
                trained = train_variant(config, hardware, start, problems, target, run, rewards, plan, kept.directory)
                for path in write_results(layout, trained):
                    run.artifact(path)
                figures = trained.figures
                numbers = {f"run_{k}": v for k, v in figures.items() if isinstance(v, float | int)}
                run.metrics(numbers, figures["updates"])
                if config.tracking.register:
                    run.register(target, config.name)
            kept.remove()
    print(
        f"{target}: {figures['updates']} updates, reward {figures['reward_first']:.2f} -> "
        f"{figures['reward_last']:.2f}, {figures['completions_per_second']:.2f} completions/s, "
        f"{figures['wall_seconds']:.0f} s"
    )


if __name__ == "__main__":
    launch(train, "train")
