"""The tasks that Bedplate knows by name. Each says which files it reads and how a row becomes an example."""

from bedplate.evaluate.tasks.answers import GSM8K, HUMANEVAL, MBPP_PLUS
from bedplate.evaluate.tasks.questions import COMMONSENSEQA, LAMBADA, PIQA
from bedplate.evaluate.tasks.task import Task
from bedplate.evaluate.tasks.texts import TEXTS

TASKS: dict[str, Task] = {task.name: task for task in (TEXTS, LAMBADA, PIQA, COMMONSENSEQA, GSM8K, HUMANEVAL, MBPP_PLUS)}
