"""Choose the task family by the kind of the data. This is the only place that asks for the kind."""

from __future__ import annotations

from importlib import import_module

from ofmu.data.kinds import TaskKind
from ofmu.tasks.family import TaskFamily

_FAMILIES: dict[TaskKind, tuple[str, str]] = {
    "language": ("ofmu.tasks.language.family", "LanguageFamily"),
    "vision": ("ofmu.tasks.vision.family", "VisionFamily"),
}


def task_family(kind: TaskKind) -> TaskFamily:
    """Return the family of a kind of task. Only the chosen family is imported."""
    module, name = _FAMILIES[kind]
    family: TaskFamily = getattr(import_module(module), name)()
    return family
