"""The tasks: one class each, in one table."""

from bedplate.adapt.tasks.base import Judged, Task
from bedplate.adapt.tasks.classify import Classify
from bedplate.adapt.tasks.generate import Generate

TASKS: dict[str, type[Task]] = {task.name: task for task in (Generate, Classify)}
"""Name -> task."""

__all__ = ["TASKS", "Judged", "Task"]
