"""Match the student's modules with those of a teacher, for attention transfer and hints."""

from __future__ import annotations

from collections.abc import Sequence

from makeweight.plugin import UsageError

from .features import height
from .options import DistillationOptions
from .sections import find_maps, find_sections
from .teachers import INITIAL
from .trace import Trace


def compared_modules(student: Trace, options: DistillationOptions) -> list[str]:
    """The student's modules whose outputs are compared with a teacher's; empty without attention and hints.

    Raises UsageError where attention is asked for and a module does not output a feature map.
    """
    if not (options.attention or options.hints):
        return []
    if options.sections is None:
        try:
            return find_maps(student)
        except UsageError:
            if options.attention:
                raise
            return find_sections(student)
    names = find_sections(student, options.sections)
    for name in names:
        if options.attention and height(student.output_of(name)) is None:
            raise UsageError(f"kd.sections {name}: expected a module that outputs a feature map, attention needs one")
    return names


def matching_modules(
    name: str, teacher: Trace, student: Trace, compared: Sequence[str], options: DistillationOptions
) -> list[str]:
    """The teacher's module for each of the student's modules in `compared`.

    `name` is the teacher's name. For the teacher `initial` these are modules of the same names, where it has them with
    outputs of as many dimensions. Raises UsageError where the numbers of modules differ.
    """
    if not compared:
        return []
    dimensions = [student.output_of(name).ndim for name in compared]
    teacher_dimensions = {call.name: getattr(call.output, "ndim", 0) for call in teacher.calls}
    if options.teacher_sections is not None:
        found = find_sections(teacher, options.teacher_sections, "teacher_sections")
    elif name == INITIAL and [teacher_dimensions.get(module) for module in compared] == dimensions:
        found = list(compared)
    elif set(dimensions) == {4}:
        found = find_maps(teacher)
    else:
        found = find_sections(teacher)
    if len(found) != len(compared):
        raise UsageError(
            f"kd.teacher {name}: its {len(found)} sections ({', '.join(found)}) do not match the student's "
            f"{len(compared)} ({', '.join(compared)}): set both kd.sections and kd.teacher_sections"
        )
    for module in found:
        teacher.output_of(module, "teacher_sections")
    return found
