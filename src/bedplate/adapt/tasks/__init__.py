"""The tasks: one class each, in one table."""

from bedplate.adapt.tasks.base import Judged, Task
from bedplate.adapt.tasks.classify import Classify
from bedplate.adapt.tasks.distill import Distill
from bedplate.adapt.tasks.embed import Embed
from bedplate.adapt.tasks.extract import Extract
from bedplate.adapt.tasks.generate import Generate
from bedplate.adapt.tasks.prefer import Prefer
from bedplate.adapt.tasks.rank import Rank
from bedplate.adapt.tasks.regress import Regress

TASKS: dict[str, type[Task]] = {task.name: task for task in (Generate, Classify, Regress, Embed, Rank, Extract, Prefer, Distill)}
"""Name -> task."""

__all__ = ["TASKS", "Judged", "Task"]
