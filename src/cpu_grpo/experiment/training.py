"""One variant's training: from a start model and problems to a trained model, its history and its figures."""

import shutil
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from cpu_grpo.config.schema import Train
from cpu_grpo.engine.checkpoint import Interrupted, newest_whole
from cpu_grpo.engine.schemes.lora import keep_adapters, merged
from cpu_grpo.engine.soundness import Diverged
from cpu_grpo.errors import Stopped, UserError
from cpu_grpo.experiment.figures import Trained, comparison, summarise
from cpu_grpo.experiment.interruption import CheckpointTimer, Signals, heeded
from cpu_grpo.experiment.progress import UpdateLog
from cpu_grpo.experiment.recipe import grpo_config, recipe, scheme, trainer_class, training_set
from cpu_grpo.experiment.reporters import reporters
from cpu_grpo.experiment.rewarding import Rewarding
from cpu_grpo.experiment.tracking import Run, warn
from cpu_grpo.experiment.validation import Validator
from cpu_grpo.files import new_directory, write_json
from cpu_grpo.hardware import DTYPES, ResourceMonitor, Setup
from cpu_grpo.models.integrity import file_hashes
from cpu_grpo.models.loading import ADAPTERS, RECORD, load_model, model_record
from cpu_grpo.plan.foresight import Foresight
from cpu_grpo.tasks.problems import Problem
from cpu_grpo.tasks.prompts import form


def train_variant(
    config: Train,
    hardware: Setup,
    start: Path,
    problems: list[Problem],
    target: Path,
    run: Run,
    rewards: Rewarding,
    plan: Foresight | None = None,
    checkpoints: Path | None = None,
) -> Trained:
    """Trains `config`'s variant from the model in `start` and saves it to `target`, whole or not at all.

    What has been learnt when memory runs out is saved beside `target`, as `unfinished` names it.

    Args:
        rewards: the reward functions, ready to be called.
        plan: what the run is expected to take, to be recorded beside what it took.
        checkpoints: where the run's are; it goes on from the newest, and makes more as `config.checkpoint` says.

    Raises:
        UserError: too few problems for one update, a start model that cannot be loaded, no memory left, or a reward
            function that failed too often.
        Stopped: a signal ended it, with a checkpoint of its last update.
    """
    from transformers import set_seed

    name = checkpoints.name if checkpoints else config.name
    if config.engine.name != "fast":  # stock TRL's checkpoints do not go on exactly
        checkpoints = None
    with ResourceMonitor() as monitor, heeded(checkpoints is not None) as signals:
        run.tag("hardware", "\n".join(hardware.reasons))
        set_seed(config.seed)
        begin = time.perf_counter()
        model, tokenizer = load_model(start, DTYPES["fp32" if config.memory.scheme == "full" else "bf16"])
        load_seconds = time.perf_counter() - begin
        timer = CheckpointTimer(config.checkpoint, plan.training if plan else None)
        newest = _newest(checkpoints)
        with tempfile.TemporaryDirectory() as scratch:
            place = checkpoints or Path(scratch)
            log = UpdateLog(run, monitor, config.tracking.samples_every, place, newest)
            validators = _validators(config, problems, tokenizer, hardware, log, checkpoints)
            callbacks = [log, timer, *validators] if checkpoints else [log]
            trainer = _trainer(config, hardware, model, tokenizer, problems, rewards, place, callbacks)
            for reporter in reporters(config.tracking, name, place, newest is not None):
                trainer.add_callback(reporter)
            try:
                _train(trainer, config, start, target, signals, rewards, newest)
            finally:
                if rewards.faults.path.is_file():
                    run.artifact(rewards.faults.path)
            history, samples = log.history.rows(), log.samples.rows()
        train_seconds = log.train_seconds
        validated = {key: value for validator in validators for key, value in validator.settle().items()}
        with new_directory(target) as directory:
            if config.memory.scheme == "lora":  # apart, too, as adding them to the weights rounds
                keep_adapters(trainer.accelerator.unwrap_model(trainer.model), directory / ADAPTERS)
            save(_whole(config, trainer), tokenizer, directory, config, start)
    shutil.rmtree(unfinished(target), ignore_errors=True)
    figures = summarise(config, history, monitor, hardware, load_seconds, train_seconds)
    figures |= {"checkpoints": log.checkpoints, "checkpoint_seconds": log.checkpoint_seconds}
    figures |= (comparison(plan, history) if plan else {}) | validated
    return Trained(figures | {"mlflow_run_id": run.run_id}, history, samples)


def _trainer(
    config: Train,
    hardware: Setup,
    model: Any,
    tokenizer: Any,
    problems: list[Problem],
    rewards: Rewarding,
    place: Path,
    callbacks: list[Any],
) -> Any:
    """The trainer, watched by the callbacks; `place` is where its checkpoints go."""
    from transformers import PrinterCallback

    trainer = trainer_class(config, hardware, problems, tokenizer)(
        model=model,
        reward_funcs=rewards.functions,
        args=grpo_config(config, hardware, rewards.weights, place),
        train_dataset=training_set(config, problems, tokenizer),
        processing_class=tokenizer,
        callbacks=callbacks,
        **scheme(config, model),
    )
    trainer.remove_callback(PrinterCallback)
    for callback in callbacks:
        callback.watch(trainer)
    return trainer


def _train(
    trainer: Any,
    config: Train,
    start: Path,
    target: Path,
    signals: Signals,
    rewards: Rewarding,
    newest: Path | None,
) -> None:
    """Trains, from the newest checkpoint on if there is one; words what ends it before its time."""
    keep = partial(_keep, trainer.processing_class, config, start, unfinished(target))
    if config.engine.name == "fast":
        trainer.bad_batches = target.with_name(f"{target.name}-bad-batches")
        trainer.shortage.alarm = partial(keep, trainer.accelerator.unwrap_model(trainer.model))
        trainer.stop_asked = signals.asked
    if newest is None:
        rewards.faults.forget()
    try:
        trainer.train(resume_from_checkpoint=newest and str(newest))
    except UserError:  # of rewards, before which a started update has changed nothing
        if config.engine.name == "fast":
            trainer.save_last_update()
        raise
    except MemoryError as error:
        keep(_whole(config, trainer))
        raise UserError(
            f"Memory ran out in update {trainer.state.global_step + 1} ({error}): what was learnt until then is in "
            f"{unfinished(target)}; free some memory and go on from it with init_from={unfinished(target)}, or "
            "ask `python -m cpu_grpo.plan` for a configuration that takes less."
        ) from error
    except Diverged as error:
        good, _ = newest_whole(Path(trainer.args.output_dir))
        raise UserError(
            f"{error}. Lower trainer.learning_rate (now {config.trainer.learning_rate:g}) or set "
            f"hardware.precision=fp32; {f'the last good checkpoint is {good}' if good else 'no checkpoint was made'}."
        ) from error
    except Interrupted as error:
        raise Stopped(_told(trainer.save_last_update(), trainer.state), signals.code) from error


def _validators(
    config: Train, problems: list[Problem], tokenizer: Any, hardware: Setup, log: UpdateLog, checkpoints: Path | None
) -> list[Validator]:
    """One, if the run is to be validated on the way."""
    if not config.validation.every or checkpoints is None:
        return []
    return [Validator(config, problems, tokenizer, hardware.precision, log, checkpoints)]


def _newest(checkpoints: Path | None) -> Path | None:
    """The checkpoint that a run goes on from, if there is one; says so, and of damaged ones that they are not it."""
    if checkpoints is None:
        return None
    found, passed_over = newest_whole(checkpoints)
    for sentence in passed_over:
        warn(sentence)
    if found:
        print(f"goes on from {found}")
    return found


def _told(kept: Path | None, state: Any) -> str:
    """What is left of a run that a signal has ended."""
    if kept is None:
        return "before the first update was whole; the same command begins anew"
    return f"after update {state.global_step} of {state.max_steps}, which is kept; the same command goes on from there"


def unfinished(target: Path) -> Path:
    """Where a run's weights are kept while memory is short."""
    return target.with_name(f"{target.name}-unfinished")


def _keep(tokenizer: Any, config: Train, start: Path, target: Path, model: Any) -> None:
    """Saves the weights as the last update left them; of a model with adapters, these alone."""
    with new_directory(target) as directory:
        save(model, tokenizer, directory, config, start)


def _whole(config: Train, trainer: Any) -> Any:
    """The trained model; adapters are added to it, so that nothing can be trained any more."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    return merged(model, config.seed) if config.memory.scheme == "lora" else model


def save(model: Any, tokenizer: Any, directory: Path, config: Train, start: Path) -> None:
    """Weights, tokenizer and source.json: the recipe, how the model was asked, and what its start was made from."""
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    before = model_record(start)
    record = {
        "origin": f"variant {config.name} from {config.init_from}",
        "revision": before.get("revision", ""),
        "base": before.get("base") or {key: before.get(key, "") for key in ("origin", "revision", "license")},
        "recipe": recipe(config),
        "asked": form(config.task),
        "sha256": file_hashes(directory),
    }
    write_json(directory / RECORD, record)
