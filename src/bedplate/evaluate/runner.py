"""Running an evaluation: task by task, portion by portion, each portion's values on disk before the next begins.

A run that was stopped goes on where it was: portions follow from all examples, so what is left is judged exactly as it would have been.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from bedplate.adapt.loop import place
from bedplate.adapt.settings import AdaptSettings, TrainSettings
from bedplate.core.artifact import Manifest
from bedplate.core.errors import ConfigError, DataError, StateError, did_you_mean
from bedplate.core.run import Run
from bedplate.evaluate import report
from bedplate.evaluate.contamination import look_for
from bedplate.evaluate.files import Files
from bedplate.evaluate.kinds import Example, Values
from bedplate.evaluate.report import Judged
from bedplate.evaluate.settings import EvaluateSettings
from bedplate.evaluate.subject import Subject
from bedplate.evaluate.tasks import TASKS
from bedplate.evaluate.tasks.own import own_task
from bedplate.evaluate.tasks.task import Task
from bedplate.pretrain.interrupt import StopSignal

JUDGED = "judged"
"""Folder in the run with the values of what was judged so far."""


def evaluate(settings: EvaluateSettings, run: Run) -> Manifest | None:
    """Measure a model; the report's manifest, or None when a signal stopped the run: the same call goes on.

    Raises:
        ConfigError: there is no such task, or the model cannot do it.
        DataError: a task's files are missing or damaged.
        StateError: the folder holds values of another model, data or conditions.
    """
    tasks = [replace(task, kind=task.kind.resolved(settings)) for task in map(find, settings.tasks)]
    if not tasks:
        raise ConfigError("no task is named", f"known: {', '.join(TASKS)}")
    device, dtype = place(AdaptSettings(train=TrainSettings(device=settings.device, precision=settings.precision, threads=settings.threads)))
    opened = {task.name: _open(task, settings) for task in tasks}  # before the model: a missing file is said at once
    subject = Subject.load(settings.model, settings.adapter, device=device, dtype=dtype, positions=settings.positions, template=settings.template)
    conditions = {
        "template": subject.template,
        "precision": str(dtype).removeprefix("torch."),
        "positions": settings.positions,
        "limit": settings.limit,
        "seed": settings.seed,
        "device": device.partition(":")[0],
    }
    searched = None if settings.corpus is None else look_for({task.name: opened[task.name][0] for task in tasks}, settings.corpus, run)
    done: list[Judged] = []
    with StopSignal() as signal:
        for task in tasks:
            examples, files = opened[task.name]
            began = time.monotonic()
            asked = {"kind": type(task.kind).__name__.lower(), "shots": _shots(task, settings), **asdict(task.kind)}
            key = {"subject": subject.digests, "conditions": conditions, "data": files.digests, "asked": asked}
            values = _judge(task, examples, subject, run, settings.to / JUDGED / f"{task.name}.jsonl", key, signal)
            if values is None:
                run.events.emit("run_stopped", reason=signal.reason)
                return None
            more = {"asked": asked, "seconds": round(time.monotonic() - began, 2)} | ({"computed_by": subject.computed_by} if subject.computed_by else {})
            done.append(Judged(task.name, task.kind.measures, files.digests, values, more))
            if searched is not None:
                done[-1] = done[-1]._replace(more={**more, "contamination": searched.of(done[-1], settings.seed)})
            found = report.scores(done[-1], settings.seed)
            told = {f"{part}_{name}": getattr(s, part if part != "score" else "value") for name, s in found.items() for part in ("score", "low", "high")}
            run.events.emit("evaluated", task=task.name, examples=len(values), **told)
    if searched is not None:
        conditions["corpus"] = searched.corpus
        if subject.trained_on not in (None, searched.corpus):
            hint = f"give the corpus whose manifest has the digest {str(subject.trained_on)[:12]}…"
            run.events.emit("warning", message="the model was trained on another corpus than the one that was searched", hint=hint)
    named = {"name": (settings.adapter or settings.model).name, "digests": subject.digests}
    manifest = report.write(settings.to / report.FOLDER, named, conditions, done, settings.seed)
    run.events.emit("run_finished", seconds=round(run.seconds, 1), report=str(settings.to / report.FOLDER))
    return manifest


def find(name: str) -> Task:
    """A task by its name, or by the TOML file that says it.

    Raises:
        ConfigError: there is none.
    """
    if name.endswith(".toml"):
        return own_task(Path(name))
    if name not in TASKS:
        raise ConfigError(f"there is no task {name!r}", did_you_mean(name, TASKS))
    return TASKS[name]


def _shots(task: Task, settings: EvaluateSettings) -> int:
    return task.shots if settings.shots == "auto" else settings.shots


def _open(task: Task, settings: EvaluateSettings) -> tuple[list[Example], Files]:
    files = Files(task.folder or settings.data, task.name)
    examples = task.read(files, _shots(task, settings))
    if not examples:
        raise DataError(f"{task.name} has no examples", f"its files are empty: {', '.join(files.digests)}")
    if len({example.id for example in examples}) < len(examples):
        raise DataError(f"{task.name}: two examples have the same id", "give each its own, so that reports can be paired")
    if 0 < settings.limit < len(examples):
        chosen = np.sort(np.random.default_rng(settings.seed).permutation(len(examples))[: settings.limit])
        examples = [examples[i] for i in chosen]
    return examples, files


def _judge(
    task: Task, examples: Sequence[Example], subject: Subject, run: Run, path: Path, key: Mapping[str, Any], signal: StopSignal
) -> dict[str, Values] | None:
    """The values of all examples by id, those on disk not made again; None when stopped."""
    known = _known(path, json.loads(json.dumps(key)))
    job = task.kind.prepare(subject, examples)
    count = sum(all(examples[i].id in known for i in part) * len(part) for part in job.portions)
    with path.open("ab") as handle:
        for part in job.portions:
            if all(examples[i].id in known for i in part):
                continue
            if signal.reason:
                return None
            made = {examples[i].id: dict(values) for i, values in zip(part, job.judge(part))}
            lines = "".join(json.dumps({"id": name, **values}, ensure_ascii=False) + "\n" for name, values in made.items())
            handle.write(lines.encode())
            handle.flush()
            known |= made
            count += len(part)
            run.events.emit("progress", done=count, total=len(examples), unit="examples", label=task.name)
        os.fsync(handle.fileno())
    return {example.id: known[example.id] for example in examples}


def _known(path: Path, key: Mapping[str, Any]) -> dict[str, Values]:
    """What a judged file holds; a new one is begun with its key. A torn last line is cut off.

    Raises:
        StateError: it is of another model, data or conditions.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    data = path.read_bytes() if path.exists() else b""
    whole = data[: data.rfind(b"\n") + 1]
    lines = [json.loads(line) for line in whole.splitlines()]
    if not lines:
        path.write_bytes(json.dumps({"key": key}).encode() + b"\n")
        return {}
    if (before := lines[0].get("key")) != key:
        different = [name for name in key if key[name] != before.get(name)]
        raise StateError(f"{path} holds values of another {different[0]}", "give another --to")
    if len(whole) < len(data):
        path.write_bytes(whole)
    return {line.pop("id"): line for line in lines[1:]}
