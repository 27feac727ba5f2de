"""An adaptation from examples to an adapter folder: read -> encode -> start from the frozen base -> steps -> calibrate -> seal.

    TO/                  the adapter: weights of the method, head.safetensors, words.safetensors, task.json, manifest.json
    TO.run/run.toml, events.jsonl, asked.json, checkpoints/      what happened, and what a stopped run goes on from
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from bedplate.adapt import methods
from bedplate.adapt.base import Base
from bedplate.adapt.course import Course, hold_out
from bedplate.adapt.encode import Item
from bedplate.adapt.examples import MissingCell, Row, each, read_rows
from bedplate.adapt.further import FURTHER, further
from bedplate.adapt.progress import Progress, silent, told
from bedplate.adapt.settings import AdaptSettings, MethodSettings
from bedplate.adapt.tasks import TASKS, Task
from bedplate.adapt.tasks.distill import Answerer, Distill
from bedplate.adapt.train import Training
from bedplate.core.artifact import MANIFEST, Manifest, read_manifest, seal
from bedplate.core.config import flatten, from_mapping, to_mapping
from bedplate.core.errors import ConfigError, DataError, StateError, did_you_mean
from bedplate.core.files import read_json, sha256_file, write_json
from bedplate.core.run import Run
from bedplate.model.arithmetic import memory
from bedplate.pretrain.loop import prepare_processor

TASK = "task.json"
ASKED = "asked.json"


@dataclass(frozen=True)
class Prepared:
    """Everything that is known before the first step."""

    task: Task
    items: list[Item]
    held_out: list[Item]
    lost_loss: int
    """Examples that were left out, since no position of them carries loss."""
    repeated: int
    """Held-out examples that are the same as one that is learned from."""


def adapt(settings: AdaptSettings, run: Run, answerer: Answerer | None = None) -> Manifest | None:
    """Adapt a base to a job, or go on where the run in this folder stopped.

    Args:
        settings: what to learn, from what, how.
        run: the open run folder.
        answerer: makes answers, where a teacher's are learned from; generation lives above adaptation.
    Returns:
        The manifest of the adapter, or of the model where the task makes one; None when a signal stopped the run early, which the same call resumes.
    Raises:
        DataError: base or examples cannot be used.
        StateError: the folder holds something else.
    """
    check_same(settings, run.folder)
    if (settings.to / MANIFEST).exists():
        run.events.emit("run_finished", seconds=0.0, adapter=settings.to.as_posix(), detail="was finished before")
        return read_manifest(settings.to, "model" if settings.task in FURTHER else "adapter")
    if settings.task in FURTHER:
        return further(settings, run)
    device, dtype = place(settings)
    base = Base.load(settings.base, device)
    settings = replace(settings, method=methods.as_started(settings.method, base.digest))
    prepared = prepare(settings, base, answerer=answerer, progress=told(run))
    tell(prepared, run)
    training = assemble(settings, prepared, run, dtype)
    before = training.judge() if prepared.held_out else None
    if not training.train():
        return None
    scores: dict[str, float] = {}
    if prepared.held_out:
        after = training.judge()
        scores = {"loss": after.loss, **after.scores, **prepared.task.calibrate(prepared.held_out)}
        run.events.emit("evaluated", step=training.step, loss=after.loss, **{f"score_{name}": value for name, value in scores.items() if name != "loss"})
    facts = {
        "examples": len(prepared.items),
        "held_out": len(prepared.held_out),
        "steps": training.step,
        "best_step": training.best_look.step if training.looks else training.step,
        "trained_s": round(training.trained_s, 1),
        "scores": scores,
        "scores_before": {} if before is None else {"loss": before.loss, **before.scores},
    }
    manifest = write(settings, base, prepared.task, facts)
    run.events.emit("run_finished", seconds=round(run.seconds, 1), adapter=settings.to.as_posix(), scores=scores)
    return manifest


def prepare(
    settings: AdaptSettings, base: Base, most: int | None = None, answerer: Answerer | None = None, progress: Progress = silent
) -> Prepared:
    """Read, hold out and encode.

    Args:
        settings: of the adaptation.
        base: the loaded base.
        most: only so many examples, for a preview.
        answerer: makes a teacher's answers.
        progress: is told how far it is.
    Raises:
        DataError: the examples cannot be used, or none of them carries loss.
    """
    if settings.task not in TASKS:
        raise ConfigError(f"no task {settings.task!r}", did_you_mean(settings.task, TASKS))
    task = TASKS[settings.task](base, settings)
    task.progress = progress
    if isinstance(task, Distill):
        task.answerer = answerer
    rows = read_rows(settings.data.file, settings.data.columns)
    try:
        if settings.data.held_out_file is not None:
            kept, judged = rows, read_rows(settings.data.held_out_file, settings.data.columns)
            task.survey(kept)
        else:
            learn, held = hold_out(rows, settings.data, settings.train.seed)
            task.survey(rows)
            kept, judged = [rows[i] for i in learn], [rows[i] for i in held]
        items, held_out = encode(task, kept[:most]), encode(task, judged[:most])
    except MissingCell as error:
        raise DataError(error.message, f"{error.hint}; {settings.task} wants {task.wants}") from error
    lost = sum(item.weight == 0 for item in items)
    items = [item for item in items if item.weight > 0]
    if not items:
        raise DataError(f"none of the {lost} examples has a position that carries loss", f"{settings.task} wants the columns {task.wants}")
    learned = set(map(_seen, items))
    held_out = [item for item in held_out if item.weight > 0]
    return Prepared(task, items, held_out, lost, sum(_seen(item) in learned for item in held_out))


def _seen(item: Item) -> bytes:
    """Names what the model sees of an item."""
    parts = [part for one in item.sequences for part in (one.tokens.tobytes(), one.token_loss.tobytes(), *(units.tobytes() for units in one.units.values()))]
    return hashlib.sha256(b"".join(parts)).digest()


def encode(task: Task, rows: Sequence[Row]) -> list[Item]:
    """Items of rows."""
    done = itertools.count(1)

    def one(row: Row) -> Item:
        task.progress("examples as the base sees them", next(done), len(rows), "examples")
        return task.encode(row)

    return each(rows, one)


def tell(prepared: Prepared, run: Run) -> None:
    """Say what will be learned from."""
    items = prepared.items
    counts = {
        "examples": len(items),
        "held out": len(prepared.held_out),
        "positions": sum(item.positions for item in items),
        "carrying loss": sum(int(s.token_loss.sum()) for item in items for s in item.sequences) or len(items),
        "longest": max(item.length for item in items),
    }
    run.events.emit("counted", what="examples", counts=counts)
    if census := labels(prepared.task):
        run.events.emit("counted", what="labels", counts=census)

    def warn(message: str, hint: str) -> None:
        run.events.emit("warning", message=message, hint=hint)

    for one, other in alike(prepared.task.census):
        warn(f"the labels {one!r} and {other!r} differ in their capitals alone", "they are learned as two; write both alike if they are one")
    if prepared.lost_loss:
        warn(f"{prepared.lost_loss} examples have no position that carries loss and were left out", "--preview shows why")
    if cut := [sum(one.left_out for one in item.sequences) for item in (*items, *prepared.held_out) if any(one.left_out for one in item.sequences)]:
        longest, held = prepared.task.most_positions, prepared.task.model.config.max_position_embeddings
        more = f"set data.most_positions to {longest + max(cut):,}, or cut them yourself" if longest + max(cut) <= held else f"the base holds {held:,} at most"
        warn(f"{len(cut):,} examples are longer than {longest:,} positions and lost up to {max(cut):,} from their middle", more)
    if prepared.repeated:
        message = f"{prepared.repeated:,} of {len(prepared.held_out):,} held-out examples are the same as some that are learned from"
        warn(f"{message}: on these, scores say nothing of new ones", "give each example once; data.group keeps those together that resemble each other")
    if not prepared.held_out:
        few = f"{len(items):,} examples are too few; give more, or data.held_out_file" if prepared.task.settings.data.held_out else "set data.held_out above 0"
        warn("nothing is held out: no early stop, no calibration, no score", few)


MOST_LABELS = 20
"""Labels that are told."""


def labels(task: Task) -> dict[str, int]:
    """How many examples have each label, the most common ones by name."""
    named = list(task.census.items())
    rest = named[MOST_LABELS:]
    return dict(named[:MOST_LABELS]) | ({f"{len(rest)} more labels": sum(count for _, count in rest)} if rest else {})


def alike(census: Mapping[str, int]) -> list[tuple[str, str]]:
    """Pairs of labels that differ in their capitals alone."""
    first: dict[str, str] = {}
    return [(known, name) for name in census if (known := first.setdefault(name.casefold(), name)) != name]


def assemble(settings: AdaptSettings, prepared: Prepared, run: Run, dtype: torch.dtype) -> Training:
    """The training with every "auto" resolved and told."""
    task, asked = prepared.task, settings.train

    def chosen(what: str, value: Any, reason: str) -> Any:
        run.events.emit("chosen", what=what, value=value, reason=reason)
        return value

    per_step, per_micro, lr = asked.examples_per_step, asked.positions_per_micro, asked.lr
    if per_step == "auto":
        usual = task.examples_per_step
        per_step = chosen("train.examples_per_step", max(1, min(usual, len(prepared.items) // 8)), f"{usual}, or an eighth of the examples")
    if per_micro == "auto":
        one = memory(task.model.config, 1, 512).activations // 512
        fits = max(task.most_positions, int(psutil.virtual_memory().available / 4 / one))
        per_micro = chosen("train.positions_per_micro", min(4096, fits), "4,096, or what a quarter of the free memory holds")
    if lr == "auto":
        peak = task.lr_share * methods.peak_lr(settings.method, task.model.config.hidden_size)
        lr = chosen("train.lr", round(peak, 9), "by the task, the method and the base's width")
    weights: dict[str, nn.Parameter] = methods.prepare(task.model, settings.method, asked.seed)
    task.start(prepared.items, prepared.held_out)
    if not weights and task.head is None:
        raise ConfigError(f"a probe has nothing to learn in the task {task.name!r}", 'give method.name = "lora"')
    steps = asked.epochs if weights else 0.0  # a probe is solved at the start, and done
    course = Course(tuple(item.length for item in prepared.items), per_step, max(steps, 1e-9), asked.warmup_share, asked.seed)
    every = max(1, course.steps_per_epoch // 2) if asked.evaluate_every == "auto" else asked.evaluate_every
    head = {} if task.head is None else {f"head.{name}": p for name, p in task.head.named_parameters()}
    training = Training(
        task,
        run,
        course,
        prepared.items,
        prepared.held_out,
        {**weights, **head},
        lr,
        asked.weight_decay,
        asked.clip,
        per_micro,
        every,
        asked.patience,
        asked.seed,
        dtype,
        settings.checkpoint,
    )
    if not weights:
        training.step = course.steps
    return training


def write(settings: AdaptSettings, base: Base, task: Task, facts: Mapping[str, Any]) -> Manifest:
    """The adapter folder, manifest last."""
    folder = settings.to
    folder.mkdir(parents=True, exist_ok=True)
    methods.save(base.model, task.head, settings.method, folder, settings.base.name)
    task.keep(folder)
    learned = {
        "task": task.name,
        "method": to_mapping(replace(settings.method, start=None)),
        "most_positions": task.most_positions,
        "template": settings.data.template,
        "chat_template": base.template.digest,
        **task.facts(),
    }
    write_json(folder / TASK, learned)
    start = settings.method.start
    parents = {"base": base.digest, **task.parents} | ({} if start is None else {"start": read_manifest(start, "adapter").digest})
    return seal(folder, "adapter", parents=parents, settings=_plain(to_mapping(settings)), about={"task": task.name, **facts})


def restore(base: Base, folder: Path) -> Task:
    """The task of an adapter folder with its weights in the base.

    Raises:
        DataError: it was made for another base, or is no adapter of ours.
    """
    task, method = task_of(base, folder)
    methods.load(base.model, task.head, method, folder)
    task.recall(folder)
    return task


def task_of(base: Base, folder: Path) -> tuple[Task, MethodSettings]:
    """The task of an adapter folder, its head still without weights, and the method that made it. The base stays as it is.

    Raises:
        DataError: it was made for another base, or is no adapter of ours.
    """
    learned = read_json(folder / TASK)
    manifest = read_manifest(folder, "adapter")
    if (made_for := manifest.parents.get("base")) != base.digest:
        raise DataError(f"{folder} was made for another base", f"give the base whose manifest has the digest {str(made_for)[:12]}…")
    settings = AdaptSettings()
    data = replace(settings.data, most_positions=learned["most_positions"], template=learned["template"])
    method = from_mapping(MethodSettings, learned["method"])
    return TASKS[learned["task"]](base, replace(settings, data=data, method=method)).restore(learned), method


def place(settings: AdaptSettings) -> tuple[str, torch.dtype]:
    """Device and number type of the products."""
    asked = settings.train
    device = asked.device if asked.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    low = asked.precision == "bfloat16" or (asked.precision == "auto" and device.startswith("cuda"))
    prepare_processor(torch.device(device), torch.get_num_threads() if asked.threads == "auto" else asked.threads)
    return device, torch.bfloat16 if low else torch.float32


FREE = ("checkpoint", "to")
"""Settings that a resumed run may change."""


def check_same(settings: AdaptSettings, folder: Path) -> None:
    """Refuse to go on with settings, a base or examples that would learn something else; on the first start, write down what was asked for.

    Raises:
        StateError: naming the first that differs.
    """
    files = [settings.data.file, *([settings.data.held_out_file] if settings.data.held_out_file else [])]
    asked = {key: value for key, value in to_mapping(settings).items() if key not in FREE}
    asked["train"] = {key: value for key, value in asked["train"].items() if key not in ("threads", "device")}
    models = {"base": settings.base, **({} if settings.distill.teacher is None else {"teacher": settings.distill.teacher})}
    digests = {role: read_manifest(folder, "model").digest for role, folder in models.items()}
    if settings.method.start is not None:
        digests["start"] = read_manifest(settings.method.start, "adapter").digest
    asked["digests"] = {**digests, "data": [sha256_file(path) for path in files if path.is_file()]}
    asked = json.loads(json.dumps(asked))
    path = folder / ASKED
    if not path.exists():
        write_json(path, asked)
        return
    usual, before, now = (dict(flatten(tree)) for tree in (to_mapping(AdaptSettings()), read_json(path), asked))
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key, usual.get(key)), now.get(key, usual.get(key))  # a setting that a newer version added stood at its default
        if old == new:
            continue
        if key.startswith("digests."):
            what = {"digests.base": f"the base {settings.base}", "digests.data": f"the examples {settings.data.file}"}.get(key, "the teacher")
            raise StateError(f"{folder} holds a run that began when {what} held something else", "restore what it began with, or give another --to")
        raise StateError(f"{folder} holds a run with {key} = {_said(old)}, not {_said(new)}", f"go on without changing {key}, or give another --to")


def _said(value: Any) -> str:
    """A setting as it is written."""
    return "none" if value is None else json.dumps(value, ensure_ascii=False)


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))
