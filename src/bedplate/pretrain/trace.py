"""Which documents a step saw: the order is a pure function of the run's settings, so nothing had to be recorded."""

from __future__ import annotations

from pathlib import Path

from bedplate.core.config import from_mapping
from bedplate.core.errors import ConfigError, DataError, IntegrityError
from bedplate.core.events import read_events
from bedplate.core.files import read_json
from bedplate.data.corpus import Corpus
from bedplate.data.loader import Loader, TracedDocument
from bedplate.pretrain.schedule import Schedule
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
        DataError: the folder holds no run, or rolled back over data (then positions shift).
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
    if any(event["action"] == "roll_back" and int(event["step"]) < step for event in read_events(run / "events.jsonl", ("health",))):
        raise DataError(f"the run jumped over data before step {step}", "only steps before its first roll-back can be traced")
    rows = Schedule(settings.schedule, steps, rows_per_step, context).rows(step - 1)
    return Loader(opened, settings.data.loader(settings.run.seed)).documents(rows.first_row, rows.rows, rows.context)
