"""Samples along a pre-training run, for its report: a little of every sense the model has, cheap enough to be made several times."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from bedplate.core.files import write_bytes
from bedplate.data.corpus import Corpus, Split
from bedplate.data.document import COMPONENTS
from bedplate.infer.engine_settings import EngineSettings
from bedplate.infer.generate import Generation
from bedplate.modality import audio, image, series, video
from bedplate.model.foundation import FoundationModel

POINTS = 32
LIVE = EngineSettings(backend="torch", precision="float32", most_running=2)
"""The engine reads the weights where the training loop has them: nothing is packed, nothing is copied. It lives as long as the samples take,
and keeps no more than two sequences, as training fills the memory."""


def sampler(corpus: Path) -> Callable[[nn.Module, int, Path], Sequence[Mapping[str, Any]]]:
    """A function (model, step, folder) -> fields of `sample` events, as the training loop takes it.

    Args:
        corpus: whose held-out captions and series are the prompts.
    """
    opened = Corpus.open(corpus, verify=False)
    tokenizer = (corpus / "tokenizer.json").read_text(encoding="utf-8")
    captions = {component: _caption(opened, component) for component in ("image", "audio", "video")}
    past = _past(opened)

    def make(model: nn.Module, step: int, folder: Path) -> list[dict[str, Any]]:
        assert isinstance(model, FoundationModel)
        was_training = model.training
        with Generation(model, tokenizer, replace(LIVE, device=str(model.head.device))) as made:
            fields = _samples(made, step, folder)
        model.train(was_training)
        return fields

    def _samples(made: Generation, step: int, folder: Path) -> list[dict[str, Any]]:
        senses = made.base.model.config.senses
        fields: list[dict[str, Any]] = [{"sense": "text", "text": made.text("", most_tokens=50, seed=step)[0]}]

        def keep(sense: str, suffix: str, content: bytes, caption: str) -> None:
            path = folder / f"{step:08d}-{sense}{suffix}"
            write_bytes(path, content)
            fields.append({"sense": sense, "path": path.relative_to(folder.parent).as_posix(), "caption": caption})

        if senses.image and captions["image"] is not None:
            keep("image", ".png", image.encode(made.image(captions["image"], seed=step)[0]), captions["image"])
        if senses.audio and captions["audio"] is not None:
            sound = made.audio(captions["audio"], most_s=1.0, seed=step)[0]
            keep("audio", ".wav", audio.encode(sound, senses.audio.sample_rate), captions["audio"])
        if senses.video and captions["video"] is not None:
            keep("video", ".gif", video.encode(made.video(captions["video"], seed=step)[0]), captions["video"])
        if senses.series and past is not None:
            name, values = past
            keep("series", ".csv", series.encode({name: made.series(values, POINTS, name, samples=4, seed=step).median}), name)
        return fields

    return make


def _caption(corpus: Corpus, component: Any) -> str | None:
    """A held-out caption; "" where there are documents but no captions; None where there is no such component."""
    if component not in corpus.components:
        return None
    splits: tuple[Split, ...] = ("validation", "train")
    for split in splits:
        for document in corpus.table(component, split).document[:50].tolist():
            segments = corpus.segments(document)
            if segments[0].sense == "text":
                return corpus.text(document)
    return ""


def _past(corpus: Corpus) -> tuple[str, Any] | None:
    if "series" not in COMPONENTS or "series" not in corpus.components:
        return None
    splits: tuple[Split, ...] = ("validation", "train")
    for split in splits:
        for document in corpus.table("series", split).document[:1].tolist():
            segments = corpus.segments(document)
            named = corpus.tokenizer.decode(segments[0].value.tolist()) if segments[0].sense == "text" else ""
            values = next(segment.value for segment in segments if segment.sense == "series")
            if len(values) > POINTS:
                return named, values[:-POINTS]
    return None
