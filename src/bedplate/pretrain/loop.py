"""Pre-training from a corpus to a model folder: resolve -> start or resume -> steps, evaluations, samples, saves -> finish.

    RUN/run.toml, events.jsonl   as every run
    RUN/resolved.json            the settings with every "auto" resolved: decided once, kept for every resume
    RUN/checkpoints/             whole states (checkpoint.py)
    RUN/model/                   the result: the averaged weights of the last part of the run
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bedplate.core.artifact import MANIFEST, read_manifest
from bedplate.core.config import flatten, from_mapping, to_mapping
from bedplate.core.errors import StateError
from bedplate.core.files import read_json, write_json
from bedplate.core.run import Run
from bedplate.data.corpus import Corpus
from bedplate.data.loader import Loader
from bedplate.data.packing import PackingSettings
from bedplate.modality.sequence import Batch
from bedplate.model.config import preset
from bedplate.model.foundation import FoundationModel
from bedplate.pretrain.allocator import keep_freed_memory
from bedplate.pretrain.derive import derive
from bedplate.pretrain.optim import Optimiser
from bedplate.pretrain.parallel import Parallel
from bedplate.pretrain.schedule import Schedule
from bedplate.pretrain.settings import PretrainSettings
from bedplate.pretrain.start import config_from, model_from, tokenizer_from
from bedplate.pretrain.step import Stepper
from bedplate.pretrain.trace import RESOLVED
from bedplate.pretrain.training import Sampler, Training

MODEL = "model"
ALONE = Parallel()

FREE_TABLES = ("checkpoint", "health", "evaluate", "sample")
"""Tables that a resumed run may change: they decide what is told and kept, not what is learned (health only where it acts)."""
FREE_KEYS = ("data.corpus", "run.threads", "run.device", "run.price_per_hour")
"""Keys a resumed run may change. The corpus is known by its digest, not by its place."""


def pretrain(settings: PretrainSettings, run: Run, sampler: Sampler | None = None) -> Path | None:
    """Train a model, or go on where the run in this folder stopped.

    Args:
        settings: what to train, on what, for how long; "auto" values are resolved on the first start and kept.
        run: the open run folder.
        sampler: makes things with the model along the way.
    Returns:
        The model folder; None when a signal stopped the run early, which the same call resumes.
    Raises:
        StateError: the folder holds a run with other settings, or a health check stopped this one.
        DataError: the corpus cannot be used.
    """
    parallel = Parallel.from_environment(settings.run.device)
    path = lead_or_follow(settings, run, parallel, sampler)
    parallel.close()
    return path


def lead_or_follow(settings: PretrainSettings, run: Run, parallel: Parallel, sampler: Sampler | None) -> Path | None:
    """What each of the processes does."""
    corpus = Corpus.open(settings.data.corpus)
    if not parallel.leads:
        parallel.barrier()  # the first one derives and writes down, the others read
    resolved = resolve_once(settings, corpus, run, parallel)
    finished = run.folder / MODEL
    was_finished = (finished / MANIFEST).exists()
    if parallel.leads:
        parallel.barrier()
    if was_finished:
        run.events.emit("run_finished", seconds=0.0, model=finished.as_posix(), detail="was finished before")
        return finished
    training = assemble(resolved, corpus, run, parallel, sampler)
    if not training.train():
        return None
    path = finish(training, corpus)
    run.events.emit("run_finished", seconds=round(run.seconds, 1), model=path.as_posix())
    return path


def resolve_once(settings: PretrainSettings, corpus: Corpus, run: Run, parallel: Parallel = ALONE) -> PretrainSettings:
    """The settings without "auto": derived and written down on the first start, read back on every later one.

    Raises:
        StateError: what was asked for then differs from what is asked for now in more than telling and keeping.
        ResourceError: the model does not fit the memory.
    """
    path = run.folder / RESOLVED
    asked = to_mapping(settings)
    digest = corpus.manifest.digest
    if path.exists():
        stored = read_json(path)
        check_same(stored["asked"], asked, run.folder)
        if stored["corpus"] != digest:
            raise StateError(f"{run.folder} was trained on another corpus than {settings.data.corpus}", "give the same corpus, or another --to")
        resolved = from_mapping(PretrainSettings, stored["resolved"])
        return dataclasses.replace(resolved, **{table: getattr(settings, table) for table in FREE_TABLES if table in ("checkpoint", "health")})
    derived = derive(settings, corpus, world=parallel.world, neighbours=parallel.neighbours)
    if derived.too_large is not None:
        raise derived.too_large
    for choice in derived.choices:
        run.events.emit("chosen", what=choice.what, value=choice.value, reason=choice.reason)
    write_json(path, {"asked": asked, "resolved": to_mapping(derived.settings), "corpus": digest})
    return derived.settings


def check_folder(settings: PretrainSettings, folder: Path) -> None:
    """Refuse a folder that holds a run of other settings, before anything in it changes.

    Raises:
        StateError: naming the first setting that differs.
    """
    if (folder / RESOLVED).exists():
        check_same(read_json(folder / RESOLVED)["asked"], to_mapping(settings), folder)


def check_same(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """Refuse to resume with settings that would learn something else.

    Raises:
        StateError: naming the first setting that differs.
    """
    old, new = dict(flatten(before)), dict(flatten(now))
    for key in sorted(old.keys() | new.keys()):
        free = key in FREE_KEYS or key.partition(".")[0] in FREE_TABLES
        if not free and old.get(key) != new.get(key):
            message = f"{folder} holds a run with {key} = {old.get(key)!r}, not {new.get(key)!r}"
            raise StateError(message, f"resume without changing {key}, or start afresh with another --to")


def assemble(settings: PretrainSettings, corpus: Corpus, run: Run, parallel: Parallel, sampler: Sampler | None = None) -> Training:
    """Everything a run needs, in memory.

    Args:
        settings: without "auto".
        corpus: what is learned from.
        run: the open run.
        parallel: this process's place among those that train together.
        sampler: makes things along the way.
    """
    asked = settings.run
    assert not isinstance(asked.steps, str) and not isinstance(asked.rows_per_step, str) and not isinstance(asked.rows_per_micro, str)
    assert not isinstance(settings.model.context, str) and not isinstance(asked.threads, str)
    device = parallel.device
    prepare_processor(device, asked.threads)
    if settings.model.base is not None:
        model = model_from(settings.model.base, config_from(settings.model.base, corpus), asked.seed)
    else:
        model = FoundationModel(preset(settings.model.size, corpus.vocabulary, corpus.specs, corpus.special_ids, settings.model.overrides))
        model.initialise(asked.seed)
    model.to(device)
    parallel.broadcast(list(model.parameters()))
    if asked.compile == "on":
        model.run_trunk = torch.compile(model.model.forward)  # the method: a compiled module would become a part of the model
    dtype = torch.bfloat16 if asked.precision == "bfloat16" else torch.float32
    stepper = Stepper(
        model,
        Optimiser(model.named_parameters(), settings.optim),
        device,
        dtype,
        seed=asked.seed,
        rank=parallel.rank,
        sum_counts=parallel.sum_counts,
        sum_tensors=parallel.sum_tensors if parallel.world > 1 else None,
    )
    loader = Loader(corpus, settings.data.loader(asked.seed))
    context = settings.model.context
    return Training(
        settings,
        run,
        model,
        stepper,
        Schedule(settings.schedule, asked.steps, asked.rows_per_step, context),
        loader,
        validation_rows(settings, corpus, context),
        token_bytes(corpus.tokenizer, corpus.special_ids, corpus.vocabulary),
        lambda positions: loader.epochs(math.ceil(positions / context), context),
        sampler=sampler,
        about={"corpus": corpus.manifest.digest},
        parallel=parallel,
    )


def prepare_processor(device: torch.device, threads: int) -> None:
    """What makes a processor's products fast and the same every time: a fixed number of threads, kept memory, no denormal numbers."""
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    if device.type == "cpu":
        keep_freed_memory()
    else:
        torch.set_float32_matmul_precision("high")


def validation_rows(settings: PretrainSettings, corpus: Corpus, context: int) -> Sequence[Batch]:
    """The same held-out rows for every evaluation: nothing dropped and no middle filled in, so that bits per byte means what it says."""
    packing = PackingSettings(fim_text=0, fim_code=0, known_share=0, caption_first=1, caption_drop=0)
    held_out = {c: w for c, w in settings.data.mixture.items() if len(corpus.table(c, "validation").document)}  # type: ignore[arg-type]
    if not any(len(corpus.table(c, "validation").document) for c in corpus.components) or (settings.data.mixture and not held_out):
        return ()
    loader = Loader(corpus, dataclasses.replace(settings.data.loader(settings.run.seed), packing=packing, mixture=held_out), "validation")
    assert not isinstance(settings.run.rows_per_micro, str)
    return loader.batches(0, settings.evaluate.rows, context, settings.run.rows_per_micro)


def token_bytes(tokenizer: Any, special_ids: Mapping[str, int], vocabulary: int) -> np.ndarray:
    """Bytes that each token of a byte-level tokenizer stands for [v]: one a character of its name; 0 for special tokens."""
    counts = np.zeros(vocabulary, np.int64)
    for name, number in tokenizer.get_vocab().items():
        if number < vocabulary and name not in special_ids:
            counts[number] = len(name)
    return counts


def finish(training: Training, corpus: Corpus) -> Path:
    """Write the model folder with the averaged weights."""
    model = training.model
    assert isinstance(model, FoundationModel)
    folder, base = training.run.folder / MODEL, training.settings.model.base
    if training.parallel.rank == 0:
        with training.average.in_place():
            model.save(
                folder,
                tokenizer=corpus.folder / "tokenizer.json" if base is None else tokenizer_from(base, corpus, training.run.folder / "tokenizer"),
                parents={"corpus": corpus.manifest.digest} | ({} if base is None else {"base": read_manifest(base, "model").digest}),
                settings=to_mapping(training.settings),
                about={"steps": training.schedule.steps, "positions": training.schedule.positions(training.schedule.steps)},
            )
    training.parallel.barrier()
    return folder
