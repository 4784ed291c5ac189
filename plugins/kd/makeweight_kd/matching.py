"""Which modules of a student are compared with which ones of its teachers."""

from __future__ import annotations

from collections.abc import Sequence

from makeweight import UsageError

from .features import height
from .options import DistillationOptions
from .sections import find_maps, find_sections
from .teachers import INITIAL
from .trace import Trace


def compared_modules(student: Trace, options: DistillationOptions) -> list[str]:
    """The student's modules that are compared with a teacher's; none unless attention or hints are asked for."""
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
            raise UsageError(f"kd.sections {name}: attention is compared in feature maps, it gives none")
    return names


def matching_modules(
    teacher: str, theirs: Trace, student: Trace, compared: Sequence[str], options: DistillationOptions
) -> list[str]:
    """The teacher's module for each of the student's that is compared.

    Those of the same names where the teacher is what the network was. Raises UsageError where there are not as many.
    """
    if not compared:
        return []
    dimensions = [student.output_of(name).ndim for name in compared]
    there = {call.name: getattr(call.output, "ndim", 0) for call in theirs.calls}
    if options.teacher_sections is not None:
        found = find_sections(theirs, options.teacher_sections, "teacher_sections")
    elif teacher == INITIAL and [there.get(name) for name in compared] == dimensions:
        found = list(compared)
    elif set(dimensions) == {4}:
        found = find_maps(theirs)
    else:
        found = find_sections(theirs)
    if len(found) != len(compared):
        raise UsageError(
            f"kd.teacher {teacher}: its {len(found)} sections ({', '.join(found)}) do not match the student's "
            f"{len(compared)} ({', '.join(compared)}): name both, kd.sections and kd.teacher_sections"
        )
    for name in found:
        theirs.output_of(name, "teacher_sections")
    return found
