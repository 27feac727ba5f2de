"""Further pre-training of a base: `continue` with more of what it knows, `grow` with a sense that it lacks. The result is a model, not an adapter.

The loop, its checkpoints and its health are those of pretrain/; here files become a corpus in the base's own tokens and units, and the
base's weights are moved more gently than fresh ones. Units of a new sense learn at the full rate.

    TO/                    a model folder: a base like any other
    TO.run/corpus, build/  what was learned from; TO.run holds what every pre-training run holds
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bedplate.adapt.base import Base
from bedplate.adapt.preview import written
from bedplate.adapt.settings import AdaptSettings
from bedplate.core.artifact import MANIFEST, Manifest, read_manifest, seal
from bedplate.core.config import Resolved, from_mapping, to_mapping
from bedplate.core.errors import DataError
from bedplate.core.files import read_json
from bedplate.core.run import Run
from bedplate.data.build import build
from bedplate.data.build_settings import BuildSettings, TokenizerSettings
from bedplate.data.corpus import Corpus
from bedplate.data.loader import Loader
from bedplate.modality.sequence import Sequence as Positions
from bedplate.model.formats.hugging_face import read_config
from bedplate.model.foundation import FoundationModel
from bedplate.pretrain.evaluate import Evaluation, evaluate
from bedplate.pretrain.loop import pretrain, token_bytes, validation_rows
from bedplate.pretrain.optim import OptimSettings
from bedplate.pretrain.settings import DataSettings, ModelSettings, PretrainSettings, RunSettings
from bedplate.pretrain.start import config_from, model_from
from bedplate.pretrain.trace import RESOLVED

FURTHER = ("continue", "grow")
"""Tasks whose result is a model."""
TOLD = ("progress", "chosen", "counted", "warning")
"""Events of building that the adaptation tells too."""


def further(settings: AdaptSettings, run: Run) -> Manifest | None:
    """Train a base further, or go on where the run in this folder stopped.

    Args:
        settings: of the adaptation.
        run: the open run folder.
    Returns:
        The new model's manifest; None when a signal stopped the run early, which the same call resumes.
    Raises:
        DataError: the files cannot be used, or hold no sense that the base lacks.
    """
    corpus = Corpus.open(corpus_of(settings, run))
    check_senses(settings, corpus)
    folder = pretrain(pretrain_settings(settings, corpus.folder), run)
    if folder is None:
        return None
    made = read_manifest(folder, "model")
    resolved = from_mapping(PretrainSettings, read_json(run.folder / RESOLVED)["resolved"])
    before = judge(model_from(settings.base, config_from(settings.base, corpus), resolved.run.seed), resolved, corpus)
    after = judge(FoundationModel.load(folder), resolved, corpus)
    facts = {
        "task": settings.task,
        "examples": len(corpus.documents),
        "held_out": sum(len(corpus.table(component, "validation").document) for component in corpus.components),
        "scores": _scores(after),
        "scores_before": _scores(before),
    }
    sealed = seal(folder, "model", parents=made.parents, settings=made.settings, about={**made.about, **facts})
    settings.to.parent.mkdir(parents=True, exist_ok=True)
    folder.rename(settings.to)
    run.events.emit("run_finished", seconds=round(run.seconds, 1), model=settings.to.as_posix(), scores=facts["scores"])
    return sealed


def corpus_of(settings: AdaptSettings, run: Run) -> Path:
    """The corpus: `data.file` itself where it is one, else built from the files there, once."""
    if (settings.data.file / MANIFEST).is_file():
        return settings.data.file
    folder = run.folder / "corpus"
    if not (folder / MANIFEST).is_file():
        asked = build_settings(settings, folder)

        def tell(event: dict[str, Any]) -> None:
            if event["event"] in TOLD:
                run.events.emit(event["event"], **{key: value for key, value in event.items() if key not in ("t", "event")})

        with Run.open(run.folder / "build", "data build", Resolved(asked, {}), (tell,)) as building:
            build(asked, building)
    return folder


def build_settings(settings: AdaptSettings, output: Path, most: int = 0) -> BuildSettings:
    """How files are read for a base: its tokens, its units; senses that it lacks only where it is to grow."""
    known = read_config(settings.base).senses.present()
    return BuildSettings(
        inputs=(str(settings.data.file),),
        output=output,
        senses="auto" if settings.task == "grow" else tuple(known),
        specs={name: to_mapping(spec) for name, spec in known.items()},
        validation_share=settings.data.held_out,
        max_documents=most,
        seed=settings.train.seed,
        workers=0 if settings.train.threads == 1 else "auto",
        tokenizer=TokenizerSettings(path=str(settings.base)),
    )


def check_senses(settings: AdaptSettings, corpus: Corpus) -> None:
    """Refuse to grow where nothing is new, and to continue where something is.

    Raises:
        DataError: naming the senses.
    """
    known, held = read_config(settings.base).senses.present(), corpus.specs.present()
    new = [name for name in held if name not in known]
    if settings.task == "grow" and not new:
        told = "".join(f", {name}" for name in known)
        raise DataError(f"{settings.data.file} holds no sense that the base lacks", f"the base knows text{told}; use --task continue")
    if settings.task == "continue" and new:
        raise DataError(f"the corpus {corpus.folder} holds {new[0]}, which the base does not know", "use --task grow")


def pretrain_settings(settings: AdaptSettings, corpus: Path) -> PretrainSettings:
    """The same adaptation as a pre-training run. Every weight is trained, whatever the method."""
    train, usual = settings.train, OptimSettings()
    share = settings.further.lr_share if train.lr == "auto" else train.lr / usual.lr_matrix
    optim = replace(
        usual,
        lr_matrix=usual.lr_matrix * share,
        lr_embedding=usual.lr_embedding * share,
        lr_vector=usual.lr_vector * share,
        lr_head=usual.lr_head * (1.0 if settings.task == "grow" else share),
        clip_norm=train.clip,
    )
    return PretrainSettings(
        model=ModelSettings(base=settings.base, context=settings.data.most_positions),
        data=DataSettings(corpus),
        optim=optim,
        run=RunSettings(
            budget=f"{train.epochs:g} epochs",
            rows_per_step=train.examples_per_step,
            seed=train.seed,
            threads=train.threads,
            device=train.device,
            precision=train.precision,
        ),
        checkpoint=settings.checkpoint,
    )


def judge(model: FoundationModel, resolved: PretrainSettings, corpus: Corpus) -> Evaluation | None:
    """How well a model predicts the held-out rows; None where none are held out."""
    context, device = resolved.model.context, torch.device(resolved.run.device)
    assert isinstance(context, int)
    if not (rows := validation_rows(resolved, corpus, context)):
        return None
    lengths = token_bytes(corpus.tokenizer, corpus.special_ids, corpus.vocabulary)
    dtype = torch.bfloat16 if resolved.run.precision == "bfloat16" else torch.float32
    return evaluate(model.to(device), rows, lengths, device, dtype)


def _scores(told: Evaluation | None) -> dict[str, float]:
    if told is None:
        return {}
    bits = {} if told.bits_per_byte is None else {"bits_per_byte": told.bits_per_byte}
    return {"loss": told.loss, **bits, **told.losses}


def preview_rows(settings: AdaptSettings, base: Base, most: int, folder: Path) -> list[str]:
    """The first rows as the model really sees them, what carries loss marked.

    Args:
        settings: of the adaptation.
        base: writes tokens out.
        most: so many rows.
        folder: an empty one, where a small corpus may be built.
    """
    path = settings.data.file
    if not (path / MANIFEST).is_file():
        asked = build_settings(settings, folder / "corpus", 64 * most)
        path = asked.output
        with Run.open(folder / "run", "data build", Resolved(asked, {})) as building:
            build(asked, building)
    corpus = Corpus.open(path)
    check_senses(settings, corpus)
    context = settings.data.most_positions if settings.data.most_positions != "auto" else min(512, base.model.config.max_position_embeddings)
    batch = Loader(corpus, DataSettings(corpus.folder).loader(settings.train.seed)).batch(0, most, context)
    shown = []
    for row in range(most):
        here = batch.sense[row] >= 0
        one = Positions(batch.tokens[row][here], batch.sense[row][here], batch.block[row][here], np.array(batch.token_loss[row][here]))
        shown.append(f"row {row + 1}: {len(one)} positions, {int(one.token_loss.sum())} tokens carry loss\n{written(one, base)}")
    return shown
