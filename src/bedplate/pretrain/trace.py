"""Which documents a step saw. The order is a pure function of the run's settings; where a roll-back jumped over data, the log says how far."""

from __future__ import annotations

from pathlib import Path

from bedplate.core.config import from_mapping
from bedplate.core.errors import ConfigError, DataError, IntegrityError
from bedplate.core.events import read_events
from bedplate.core.files import read_json
from bedplate.data.corpus import Corpus
from bedplate.data.loader import Loader, TracedDocument
from bedplate.pretrain.schedule import Schedule, StepRows
from bedplate.pretrain.settings import PretrainSettings

RESOLVED = "resolved.json"
"""The settings with every "auto" resolved, in the run folder."""


def trace(run: Path, step: int, corpus: Path | None = None) -> list[TracedDocument]:
    """The documents that a step learned from, row by row.

    Args:
        run: a run folder.
        step: counted from 1, as events count it.
        corpus: where the corpus is now, when it was moved; it is known by its digest.
    Raises:
        DataError: the folder holds no run, or the run went back before this step and has not come to it again.
        IntegrityError: the corpus is another one.
        ConfigError: the run has no such step.
    """
    path = run / RESOLVED
    if not path.exists():
        raise DataError(f"{run} holds no pre-training run", "give the folder that `bedplate pretrain run --to` wrote")
    stored = read_json(path)
    settings = from_mapping(PretrainSettings, stored["resolved"])
    opened = Corpus.open(corpus or settings.data.corpus, verify=False)
    if opened.manifest.digest != stored["corpus"]:
        raise IntegrityError(f"{opened.folder} is not the corpus of this run", "give the right one with --corpus")
    steps, rows_per_step, context = settings.run.steps, settings.run.rows_per_step, settings.model.context
    assert isinstance(steps, int) and isinstance(rows_per_step, int) and isinstance(context, int)
    if not 1 <= step <= steps:
        raise ConfigError(f"there is no step {step}", f"the run has steps 1 .. {steps}")
    rows = rows_of_step(run / "events.jsonl", Schedule(settings.schedule, steps, rows_per_step, context), step)
    return Loader(opened, settings.data.loader(settings.run.seed)).documents(rows.first_row, rows.rows, rows.context)


def rows_of_step(events: Path, schedule: Schedule, step: int) -> StepRows:
    """The rows that a step read: as the log tells of its last time, else as the schedule has it.

    Args:
        events: the run's log; a step that was taken again after a crash or a roll-back is in it more than once.
        schedule: of the run.
        step: counted from 1.
    Raises:
        DataError: the run went back, and has not come to this step since.
    """
    planned, told, went_back = schedule.rows(step - 1), None, False
    for event in read_events(events, ("step", "health")):
        if event["event"] == "health":
            went_back |= event.get("action") == "roll_back"
        elif event.get("step") == step and isinstance(event.get("first_row"), int):
            told = int(event["first_row"])
    if told is None and went_back:
        raise DataError(f"the run jumped over data and its log does not tell of step {step}", "only steps that were taken can be traced")
    return planned if told is None else planned._replace(first_row=told)
