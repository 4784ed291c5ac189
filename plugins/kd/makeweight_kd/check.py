"""Checks before training, and the plugin's line of `--dry-run`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from makeweight.plugin import Task, UsageError, evaluating, logits_of, original_of, require

from .matching import compared_modules, matching_modules
from .options import DistillationOptions
from .self_distillation import shallow_sections
from .teachers import INITIAL, check_name, read_teacher
from .trace import Trace


def check(options: DistillationOptions, model: nn.Module | None, batch: Any, task: Task) -> str:
    """Check a stage's options and return the plugin's line of `--dry-run`.

    `model` is None while its structure is undecided; its sections are then found when the stage begins. Raises
    UsageError for options that cannot work with the model, MakeweightError for a damaged teacher file.
    """
    if not options.teachers:
        for option in ("attention", "hints"):
            require(not getattr(options, option), f"kd.{option}", getattr(options, option), "a teacher: set kd.teacher")
    if not options.weight:
        return "off: weight 0"
    for name in options.teachers:
        check_name(name)
    student = None if model is None else Trace(model, task.forward, batch)
    return _check_teachers(options, student) if options.teachers else _check_self(options, student)


def check_exits(options: DistillationOptions, student: Trace, sections: Sequence[str]) -> list[str]:
    """The sections whose exits are exported.

    Raises UsageError for an exit at which examples cannot leave the batch one by one.
    """
    kept = [sections[index] for index in options.kept_exits(len(sections))] if sections else []
    for name in kept:
        if problem := early_exit_problem(student, name):
            raise UsageError(
                f"kd.exits {options.exits}: examples cannot leave the batch after {name} ({problem}): choose other "
                "modules with --kd.sections"
            )
    return kept


def early_exit_problem(student: Trace, section: str) -> str | None:
    """Remove every second example from the batch after a section: what goes wrong, or None.

    The remaining examples must keep their logits [B, classes]. A connection that bypasses the section fails this.
    """
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
    return None if same else "the remaining examples' logits change"


def _check_self(options: DistillationOptions, student: Trace | None) -> str:
    weight = f"alpha {options.kd_weight:g}"
    if student is None:
        return f"self-distillation, {weight}, shallow classifiers after sections that are found when the stage begins"
    sections = shallow_sections(student, options)
    kept = check_exits(options, student, sections)
    line = f"self-distillation, {weight}, shallow classifiers after {', '.join(sections)}"
    return line + (f", exits exported: after {', '.join(kept)}" if kept else "")


def _check_teachers(options: DistillationOptions, student: Trace | None) -> str:
    names = ", ".join(options.teachers)
    line = f"teacher {names}, temperature {options.temperature:g}, alpha {options.kd_weight:g}"
    if student is None:
        return line
    compared = compared_modules(student, options)
    for name in options.teachers:
        teacher = student
        if name != INITIAL:
            teacher = read_teacher(name, options.teacher_model, student, lambda: original_of(student.model))
        matching_modules(name, teacher, student, compared, options)
    return line + (f", features compared after {', '.join(compared)}" if compared else "")
