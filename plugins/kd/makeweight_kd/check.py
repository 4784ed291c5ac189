"""What can be refused before anything trains, and what is said of the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from makeweight import UsageError
from makeweight.plugin import Task, evaluating, logits_of, original_of, require

from .matching import compared_modules, matching_modules
from .options import DistillationOptions
from .own_teacher import shallow_sections
from .teachers import INITIAL, check_name, read_teacher
from .trace import Trace


def check(options: DistillationOptions, model: nn.Module | None, batch: Any, task: Task) -> str:
    """The line of a dry run. Raises UsageError, or MakeweightError for a teacher's file, for what cannot be trained.

    Without a model, whose structure is not known yet, its sections are looked for when the stage begins.
    """
    if not options.teachers:
        for option in ("attention", "hints"):
            require(not getattr(options, option), f"kd.{option}", getattr(options, option), "a teacher, kd.teacher")
    if not options.weight:
        return "weight 0: nothing is added"
    for name in options.teachers:
        check_name(name)
    student = None if model is None else Trace(model, task.forward, batch)
    return _of_teachers(options, student) if options.teachers else _of_itself(options, student)


def check_exits(options: DistillationOptions, student: Trace, sections: Sequence[str]) -> list[str]:
    """The sections after which exits are kept. Raises UsageError where examples cannot leave the batch there."""
    kept = [sections[index] for index in options.kept_exits(len(sections))] if sections else []
    for name in kept:
        if wrong := leaving(student, name):
            raise UsageError(
                f"kd.exits {options.exits}: after {name} no example can leave the batch ({wrong}): name others with "
                "--kd.sections"
            )
    return kept


def leaving(student: Trace, section: str) -> str | None:
    """What goes wrong where every second example is taken out of the batch after a section; None if nothing does."""
    model, expected = student.model, student.logits[::2]
    handle = model.get_submodule(section).register_forward_hook(lambda module, inputs, output: output[::2])
    try:
        with evaluating(model), torch.no_grad():
            rest = logits_of(student.forward(model, student.batch))
    except (RuntimeError, ValueError, IndexError) as error:
        return str(error).partition("\n")[0]
    finally:
        handle.remove()
    same = rest.shape == expected.shape and torch.allclose(rest, expected, rtol=1e-3, atol=1e-3)
    return None if same else "the others' logits change with it"


def _of_itself(options: DistillationOptions, student: Trace | None) -> str:
    said = "the network is its own teacher, shallow classifiers after "
    if student is None:
        return f"{said}sections of the structure to come, alpha {options.share:g}"
    sections = shallow_sections(student, options)
    kept = check_exits(options, student, sections)
    said += f"{', '.join(sections)}, alpha {options.share:g}"
    return said + (f", exits kept after {', '.join(kept)}" if kept else "")


def _of_teachers(options: DistillationOptions, student: Trace | None) -> str:
    said = f"the teacher is {', '.join(options.teachers)}, temperature {options.temperature:g}, alpha {options.share:g}"
    if student is None:
        return said
    compared = compared_modules(student, options)
    for name in options.teachers:
        theirs = student
        if name != INITIAL:
            theirs = read_teacher(name, options.teacher_model, student, lambda: original_of(student.model))
        matching_modules(name, theirs, student, compared, options)
    return said + (f", compared in {', '.join(compared)}" if compared else "")
