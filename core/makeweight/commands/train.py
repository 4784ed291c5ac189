"""A training run from the command line: set up, train, export, read back, report."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import nn

from ..errors import UsageError
from ..files.artifact import Artifact
from ..files.programs import check_installed, write_programs
from ..files.writing import json_text, write_text
from ..loading import load
from ..models import by_name as models
from ..models.modes import evaluating
from ..run import Run
from ..training.evaluation import evaluate
from ..training.journal import said
from ..training.run_directory import run_directory, saying_what_is_kept, taken
from ..training.threads import settle_threads, threads_of
from . import recipes, trust
from .arguments import Configuration
from .report import write_report
from .session import Session
from .summary import export_summary
from .tables import print_plan, print_summary


def train(configuration: Configuration) -> dict[str, Any]:
    """Train as configured, and write the run directory. Returns what summary.json holds, empty for a dry run."""
    started = perf_counter()
    options = configuration.options
    models.check(options.model)
    check_installed(options.formats)
    out = run_directory(options, configuration.name)
    session = Session(options, out)
    model, data = session.network(), session.data
    run = Run(model, data.train, data.validation, configuration.stages, task=session.task, out=out,
              resume=options.resume, accelerator=session.accelerator)  # fmt: skip
    batch = run.trainer.sample_batch()
    check_call(session, run.model, batch)
    settle_threads(run.model, batch, options.accumulate, session.task, session.accelerator, options.threads)
    options.threads = threads_of(session.accelerator)
    plan = run.check()
    if options.dry_run:
        with said():
            print_plan(run.trainer.journal.console, configuration.resolved(), plan, run)
        return {}
    with saying_what_is_kept(out), taken(out, options):
        return carry_out(configuration, session, run, out, started)


def carry_out(configuration: Configuration, session: Session, run: Run, out: Path, started: float) -> dict[str, Any]:
    """Train and write everything. Returns what summary.json holds."""
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
    """Write the recipe that repeats the run; one that names code is recorded as the user's own."""
    text = recipes.write(recipe)
    if any(trust.code_in(recipe)):
        trust.remember(path, text)
    write_text(path, text)


def check_call(session: Session, model: nn.Module, batch: Any) -> None:
    """Call a model that was named on a first batch. Raises UsageError when it takes no images of that size.

    A model of the user's own is left to fail with its own traceback.
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
        raise UsageError(f"model {name} takes no {size} images ({reason}): try --image-size 224") from error


def facts(configuration: Configuration, run: Run, accuracy: dict[str, float]) -> dict[str, Any]:
    """What summary.json says of the run itself."""
    options, task = configuration.options, run.task
    name = task.metric_name if task.metric_name in accuracy else "loss"
    return {
        name: accuracy[name],
        "loss": accuracy["loss"],
        "metric": name,
        "steps": run.trainer.step,
        "processes": run.accelerator.num_processes,
        "plugins": list(configuration.plugins),
        "model": options.model,
        "data": options.data,
        "parameters": sum(parameter.numel() for parameter in run.model.parameters()),
    }


def finish(session: Session, run: Run, artifact: Artifact, summary: dict[str, Any], out: Path) -> None:
    """Read the export back, measure it, and write the summary, the programs and the report; on the main process."""
    trainer = run.trainer
    trainer.journal.say("reading the export back, and measuring it")
    restored = load(out / "model.safetensors", trainer.fresh_model()).to(session.accelerator.device)
    test = session.batches(session.data.test, trainer.test_batch_size)
    again = evaluate(restored, test, session.task, session.accelerator)
    summary["export"] = export_summary(
        out, artifact, trainer.model, trainer.fresh_model(), again, summary["metric"]
    )  # fmt: skip
    write_text(out / "summary.json", json_text(summary, indent=2))
    if programs := write_programs(trainer, session.options.formats, out):
        summary["export"]["programs"] = programs
        write_text(out / "summary.json", json_text(summary, indent=2))
    write_report(out)
    with said():
        print_summary(trainer.journal.console, summary, out)
