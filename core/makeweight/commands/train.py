"""A training run from the command line: set up, train, export, read back, report."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import nn

from ..data.targets import find_targets
from ..errors import UsageError
from ..files.write_programs import check_installed
from ..files.writing import write_text
from ..models import by_name as models
from ..models import pretrained
from ..models.modes import evaluating
from ..run import Run
from ..training.journal import said
from ..training.run_directory import run_directory, saying_what_is_kept, taken
from ..training.settling import check_known
from ..training.threads import settle_threads, threads_of
from . import recipes, trust
from .arguments import Configuration
from .finish import finish, try_programs
from .session import Session
from .tables import print_plan


def train(configuration: Configuration) -> dict[str, Any]:
    """Train, and write the run directory. Returns the content of summary.json; an empty dict for a dry run."""
    started = perf_counter()
    options = configuration.options
    models.check(options.model)
    pretrained.check(options.model, options.weights)
    check_installed(options.formats)
    out = run_directory(options, configuration.name)
    session = Session(options, out)
    model, data = session.network(), session.data
    run = Run(model, data.train, data.validation, configuration.stages, task=session.task, out=out,
              resume=options.resume, accelerator=session.accelerator)  # fmt: skip
    session.task = run.task
    for line in [*configuration.remarks, *session.remarks]:
        run.trainer.journal.say(line)
    batch = run.trainer.sample_batch()
    check_call(session, run.model, batch)
    settle_threads(run.model, batch, options.accumulate, session.task, session.accelerator, options.threads)
    options.threads = threads_of(session.accelerator)
    plan = run.check()
    check_known(session.task, find_targets(data.test), "test")
    try_programs(run, options.formats)
    if options.dry_run:
        with said():
            print_plan(run.trainer.journal.console, configuration.resolved(), plan, run)
        return {}
    with saying_what_is_kept(out), taken(out, options):
        return carry_out(configuration, session, run, out, started)


def carry_out(configuration: Configuration, session: Session, run: Run, out: Path, started: float) -> dict[str, Any]:
    """Train, evaluate on the test data, export, and write all files. Returns the content of summary.json."""
    resolved = configuration.resolved()
    if session.accelerator.is_main_process:
        write_recipe(out / "config.yaml", resolved)
    session.accelerator.init_trackers("makeweight", {key: str(value) for key, value in resolved.items()})
    metrics = run.fit()
    if session.accelerator.is_main_process and resolved["threads"] != threads_of(session.accelerator):  # resumed
        write_recipe(out / "config.yaml", resolved | {"threads": threads_of(session.accelerator)})
    accuracy = run.evaluate(session.data.test)
    artifact = run.export(out / "model.safetensors")
    summary: dict[str, Any] = {}
    if artifact is not None:
        summary = facts(configuration, run, accuracy) | {
            "seconds": round(perf_counter() - started, 3), "metrics": metrics
        }  # fmt: skip
        finish(session, run, artifact, summary, out)
    session.accelerator.wait_for_everyone()
    session.accelerator.end_training()
    return summary


def write_recipe(path: Path, recipe: dict[str, Any]) -> None:
    """Write config.yaml. If it refers to code, record it as trusted, so that the run can be resumed."""
    text = recipes.write(recipe)
    if any(trust.code_in(recipe)):
        trust.remember(path, text)
    write_text(path, text)


def check_call(session: Session, model: nn.Module, batch: Any) -> None:
    """Call a built-in model on a batch. Raises UsageError if it does not accept images of this size.

    Models of the user are not checked; their own exceptions are more informative.
    """
    name = session.options.model
    if models.is_reference(name):
        return
    try:
        with torch.random.fork_rng(), torch.no_grad(), evaluating(model):
            session.task.forward(model, batch)
    except Exception as error:
        size = "x".join(map(str, batch[0].shape[1:]))
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"model {name} does not accept {size} images ({reason}): try --image-size 224") from error


def facts(configuration: Configuration, run: Run, accuracy: dict[str, float]) -> dict[str, Any]:
    """The part of summary.json about the run."""
    options, task = configuration.options, run.task
    name = task.metric_name if task.metric_name in accuracy else "loss"
    return {
        name: accuracy[name],
        **{each: accuracy[each] for each in task.metrics if each in accuracy},
        "loss": accuracy["loss"],
        "metric": name,
        "higher_is_better": task.higher_is_better(name),
        "steps": run.trainer.step,
        "processes": run.accelerator.num_processes,
        "plugins": list(configuration.plugins),
        "model": options.model,
        "data": options.data,
        "parameters": sum(parameter.numel() for parameter in run.model.parameters()),
    }
