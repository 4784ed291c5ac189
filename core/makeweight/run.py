"""A training run from the command line: build, train, export, read back, report."""

from __future__ import annotations

import copy
import json
import os
from contextlib import nullcontext, suppress
from pathlib import Path
from time import perf_counter, strftime
from typing import Any

import torch
from accelerate import Accelerator

from . import data as datasets
from . import models, recipes
from .accelerators import new_accelerator
from .arguments import Configuration
from .artifact import is_export, load, load_any
from .batches import Batches, as_dataset
from .errors import MakeweightError, UsageError
from .evaluation import evaluate
from .files import write_text
from .options import Options
from .programs import check_installed, write_programs
from .report import print_plan, print_summary, write_report
from .state import exported_state, restore
from .summary import export_summary
from .task import Task
from .threads import settle_threads
from .trainer import Trainer


def run(configuration: Configuration) -> dict[str, Any]:
    """Train as configured, and write the run directory. Returns what summary.json holds, empty for a dry run."""
    started = perf_counter()
    options = configuration.options
    models.check(options.model)
    datasets.check(options.data)
    check_installed(options.formats)
    task = Task.named(options.criterion, options.forward, options.metric)
    out = run_directory(options, configuration.name)
    accelerator = new_accelerator(options.precision, options.tracker, out)
    data = load_data(options, accelerator)
    model = build_model(options, data)
    trainer = Trainer(
        model, data.train, data.validation, configuration.plugins, options=options, stages=configuration.stages,
        task=task, out=out, resume=options.resume, accelerator=accelerator,
    )  # fmt: skip
    check_call(options, trainer)
    settle_threads(trainer)
    plan = trainer.set_up()
    if options.dry_run:
        print_plan(trainer.journal.console, configuration.resolved(), plan, trainer)
        return {}
    if accelerator.is_main_process:
        write_text(out / "config.yaml", recipes.write(configuration.resolved()))
    accelerator.init_trackers("makeweight", {key: str(value) for key, value in configuration.resolved().items()})
    metrics = trainer.fit()
    accuracy = trainer.evaluate(data.test)
    artifact = trainer.export(out / "model.safetensors")
    summary: dict[str, Any] = {}
    if artifact is not None:
        trainer.journal.say("reading the export back, and measuring it")
        name = task.metric_name if task.metric_name in accuracy else "loss"
        summary = {
            name: accuracy[name],
            "loss": accuracy["loss"],
            "metric": name,
            "seconds": round(perf_counter() - started, 3),
            "steps": trainer.step,
            "processes": accelerator.num_processes,
            "plugins": list(configuration.plugins),
            "model": options.model,
            "data": options.data,
            "parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
            "metrics": metrics,
        }
        restored = load(out / "model.safetensors", trainer.fresh_model()).to(accelerator.device)
        whole = Batches(as_dataset(data.test, "test"), trainer.test_batch_size, accelerator.device, training=False,
                        channels_last=options.channels_last)  # fmt: skip
        again = evaluate(restored, whole, task, accelerator)
        summary["export"] = export_summary(out, artifact, trainer.model, again, name)
        write_text(out / "summary.json", json_text(summary))
        if programs := write_programs(trainer, options.formats, out):
            summary["export"]["programs"] = programs
            write_text(out / "summary.json", json_text(summary))
        write_report(out)
        print_summary(trainer.journal.console, summary, out)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return summary


def run_directory(options: Options, name: str) -> Path:
    """The run directory; one that holds a run already is refused unless it is to be resumed."""
    if options.resume and options.out is None:
        raise UsageError("--resume: name the run to go on with, --out runs/…")
    out = Path(options.out or f"runs/{name}-{strftime('%Y%m%d-%H%M%S')}")
    first = int(os.environ.get("RANK", 0)) == 0  # the other processes may come when it has begun to write
    if first and not options.resume and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"--out {out}: there is something already: go on with --resume, or name another directory")
    above = next(parent for parent in (out.absolute(), *out.absolute().parents) if os.path.lexists(parent))
    if not (above.is_dir() and os.access(above, os.W_OK)):
        raise UsageError(f"--out {out}: expected a directory that can be written, {above} is none")
    return out


def load_data(options: Options, accelerator: Accelerator | None) -> datasets.Data:
    """The data of a run; the first process comes first, in case that it is downloaded."""
    with accelerator.main_process_first() if accelerator else nullcontext():
        return datasets.load(
            options.data, options.data_dir, image_size=options.image_size,
            smallest=models.smallest_image(options.model), augment=options.augment, validation=options.validation,
            seed=options.seed,
        )  # fmt: skip


def build_model(options: Options, data: datasets.Data) -> Any:
    """The model of a run, with the weights it begins from."""
    model = models.build(options.model, data.input_shape, data.num_classes, options.seed)
    if options.weights is not None:
        if not Path(options.weights).is_file():
            raise UsageError(f"--weights {options.weights}: expected a safetensors file, there is none")
        if is_export(options.weights):
            return weights_of(load(options.weights, copy.deepcopy(model)), model)
        restore(model, load_any(options.weights), options.weights)
    return model


def weights_of(loaded: torch.nn.Module, model: torch.nn.Module) -> torch.nn.Module:
    """The model with the weights of one that was read, without what plugins attached there to compute as in the file.

    Where they made another structure of it, that is what is trained on.
    """
    with suppress(MakeweightError):
        restore(model, exported_state(loaded), "the weights")
        return model
    return loaded


def check_call(options: Options, trainer: Trainer) -> None:
    """Call a model that was named on a first batch. Raises UsageError when it takes no images of that size.

    A model of the user's own is left to fail with its own traceback.
    """
    if models.is_reference(options.model):
        return
    batch = trainer.sample_batch()
    try:
        with torch.random.fork_rng(), torch.no_grad():
            trainer.task.forward(trainer.model.eval(), batch)
    except Exception as error:
        size = "x".join(map(str, batch[0].shape[1:]))
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"model {options.model} takes no {size} images ({reason}): try --image-size 224") from error
    finally:
        trainer.model.train()


def json_text(value: Any) -> str:
    return json.dumps(value, indent=2) + "\n"
