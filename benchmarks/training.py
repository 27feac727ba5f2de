"""What the training benchmarks share: a corpus of real text, its rows, and runs of the product's own loop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bedplate.core.artifact import MANIFEST
from bedplate.core.config import load
from bedplate.core.run import Run
from bedplate.data.corpus import Corpus, CorpusWriter, Split, StoredSegment
from bedplate.data.document import Document
from bedplate.data.loader import Loader, LoaderSettings
from bedplate.data.packing import PackingSettings
from bedplate.data.sources import SourceSettings, read
from bedplate.data.tokenizer import Encoder, train
from bedplate.modality.specs import SenseSpecs
from bedplate.model.config import ModelConfig, preset
from bedplate.model.foundation import FoundationModel
from bedplate.pretrain.loop import pretrain
from bedplate.pretrain.settings import PretrainSettings

VOCABULARY = 8192


def build_text_corpus(sources: list[str], folder: Path, max_text_bytes: int = 1 << 16) -> Corpus:
    """A corpus of text alone, uncleaned, so that a benchmark of training depends on nothing else. Built once."""
    if not (folder / MANIFEST).exists():
        documents = [d for d in read(sources, SourceSettings(max_text_bytes=max_text_bytes), SenseSpecs()) if isinstance(d, Document)]
        tokenizer = train((str(d.segments[0].value) for d in documents[::4]), VOCABULARY)
        encoder = Encoder(tokenizer.to_str())
        writer = CorpusWriter(folder, specs=SenseSpecs(), tokenizer=tokenizer)
        for document in documents:
            text = str(document.segments[0].value)
            writer.add("text", [StoredSegment("text", encoder.encode(text))], document.origin, text_bytes=len(text.encode()))
        writer.seal(settings={"sources": sources})
    return Corpus.open(folder)


def model_config(corpus: Path, size: str = "micro") -> ModelConfig:
    """A preset's config for a corpus."""
    opened = Corpus.open(corpus, verify=False)
    return preset(size, opened.vocabulary, opened.specs, opened.special_ids)


def token_rows(corpus: Path, context: int, count: int, split: Split = "train") -> np.ndarray:
    """Rows of token ids [r t] as our loader packs them, nothing filled in."""
    loader = Loader(Corpus.open(corpus, verify=False), LoaderSettings(packing=PackingSettings(fim_text=0, fim_code=0)), split)
    return np.concatenate([loader.batch(first, min(64, count - first), context).tokens for first in range(0, count, 64)])


Listeners = tuple[Callable[[dict[str, Any]], None], ...]


def run_training(corpus: Path, folder: Path, overrides: list[str], listeners: Listeners = ()) -> tuple[FoundationModel, dict[str, Any]]:
    """Train with the product's loop; the model and the values that were chosen."""
    resolved = load(PretrainSettings, overrides=["data.packing.fim_text=0", *overrides], given={"data.corpus": str(corpus)})
    chosen: dict[str, Any] = {}

    def note(record: dict[str, Any]) -> None:
        if record["event"] == "chosen":
            chosen[record["what"]] = record["value"]

    with Run.open(folder, "pretrain", resolved, (note, *listeners)) as run:
        path = pretrain(resolved.value, run)
    assert path is not None
    return FoundationModel.load(path), chosen


def speed_run(corpus: Path, folder: Path, *, context: int, rows_per_step: int, threads: int, listeners: Listeners) -> None:
    """Steps without end for the speed benchmark: no evaluation, no samples, no saves."""
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
    settings = {
        "model.size": "micro", "model.context": context, "run.steps": 100_000, "run.rows_per_step": rows_per_step, "run.threads": threads,
        "run.compile": "on", "evaluate.every_steps": 0, "sample.every_steps": 0, "checkpoint.every_s": 1e9,
    }  # fmt: skip
    run_training(corpus, folder, [f"{key}={value!r}".replace("'", '"') for key, value in settings.items()], listeners)


def train_ours(corpus: Path, folder: Path, budget_s: float, context: int) -> tuple[FoundationModel, float, dict[str, Any]]:
    """The product's defaults within a time budget: (model, seconds of its steps, what was chosen)."""
    spent: list[float] = []

    def listen(record: dict[str, Any]) -> None:
        if record["event"] == "step":
            spent.append(record["step_s"])

    settings = {"model.size": "micro", "model.context": context, "run.budget": f"{budget_s:.0f}s", "evaluate.every_steps": 0, "sample.every_steps": 0}
    overrides = [f"{key}={value!r}".replace("'", '"') for key, value in settings.items()]
    model, chosen = run_training(corpus, folder, overrides, (listen,))
    return model, sum(spent), chosen
