"""The end of a run: reads the export back, evaluates it, and writes the summary, the programs and the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..errors import MakeweightError, UsageError
from ..files.artifact import Artifact
from ..files.write_programs import explained, program_bytes, programs_among, write_program
from ..files.writing import UnwritableError, json_text, write_text
from ..loading import load
from ..run import Run
from ..training.evaluation import evaluate
from ..training.journal import said
from .confusion import Confusion
from .measured_programs import measure_program
from .report import write_report
from .session import Session
from .summary import export_summary
from .tables import print_summary


def finish(session: Session, run: Run, artifact: Artifact, summary: dict[str, Any], out: Path) -> None:
    """Read the export back, evaluate it, and write the summary, the programs and the report; on the main process.

    If torch cannot export a program, everything else is written first. Raises MakeweightError after that.
    """
    trainer = run.trainer
    trainer.journal.say("reading the export back, and measuring it")
    restored = load(out / "model.safetensors", trainer.fresh_model()).to(session.accelerator.device)
    test = session.batches(session.data.test, trainer.test_batch_size)
    confusion = Confusion()
    again = evaluate(restored, test, session.task, session.accelerator, [confusion])
    summary |= confusion.facts(session.data.classes)
    summary["export"] = export_summary(
        out, artifact, trainer.model, trainer.fresh_model(), again, summary["metric"]
    )  # fmt: skip
    summary["export"] |= {name: value for name, value in again.items() if name in session.task.metrics}
    write_text(out / "summary.json", json_text(summary, indent=2))
    programs: dict[str, Any] = {}
    failures = []
    for form in programs_among(session.options.formats):
        try:
            trainer.journal.say(f"writing model.{form}, and measuring it")
            path = write_program(trainer, form, out)
            programs[path.name] = {"bytes": path.stat().st_size}
            with explained(path.name, "run"):
                programs[path.name] = measure_program(path, session, restored, test)
        except UnwritableError:
            raise
        except MakeweightError as error:
            failures.append(error)
    if programs:
        summary["export"]["programs"] = programs
        write_text(out / "summary.json", json_text(summary, indent=2))
    write_report(out)
    with said():
        print_summary(trainer.journal.console, summary, out)
    if failures:
        raise failures[0]


def try_programs(run: Run, formats: list[str]) -> None:
    """Write each program once before training, in memory. Raises UsageError if torch cannot export the model."""
    forms = programs_among(formats)
    if not forms:
        return
    trainer, refused = run.rehearsal(), None
    if run.accelerator.is_main_process:
        try:
            with torch.random.fork_rng():
                for form in forms:
                    program_bytes(trainer, form, f"model.{form}")
        except MakeweightError as error:
            refused = str(error)
    if (refused := trainer.agree(refused)) is not None:
        raise UsageError(f"{refused}; leave it out of --export")
