"""`bedplate get` and `bedplate export`: models of other houses in, ours out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from bedplate.cli.app import Here, ModelFolder
from bedplate.core.errors import ConfigError


def get(
    model: str = "",
    *,
    to: Path | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    bits: Literal[8, 4] | None = None,
    base: ModelFolder | None = None,
    labels: str = "",
    template: Literal["chat", "raw"] = "chat",
    console: Here,
) -> None:
    """Fetch a model and make a model folder of it, or with --base an adapter folder of an adapter that PEFT made; without a name, list the models that are
    known.

    Args:
        model: a name in the catalogue, a Hugging Face folder, a GGUF file, or hf:OWNER/NAME; with --base an adapter's folder or hf:OWNER/NAME.
        to: the folder to write. By default the model's name in Bedplate's home folder ($BEDPLATE_HOME, else in the user's cache).
        dtype: type of the stored weights. By default as they come; those of a GGUF file as float32, of large ones as bfloat16.
        bits: keep the matrices of a model's layers in so many bits, in memory and on disk: a base for adapters where the whole one would not fit.
        base: the model that an adapter was made for.
        labels: an adapter that classifies: names of its outputs in their order, such as spam,ham. By default LABEL_0, LABEL_1 and so on.
        template: an adapter that generates: how prompts are written for it, by the base's chat template or as they are.
    """
    if not model:
        _list(console)
        return
    if base is None and labels:
        raise ConfigError("--labels names the outputs of an adapter, and this is a model", "name the model that the adapter was made for: --base MODEL")
    if base is not None and (bits or dtype):
        raise ConfigError("an adapter keeps its own numbers", f"leave {'--bits' if bits else '--dtype'} out")
    if base is not None:
        from bedplate.adapt.foreign import bring

        names = [name.strip() for name in labels.split(",") if name.strip()]
        _tell(bring(model, base, to, labels=names, template=template, say=console.say), console)
        return
    import torch

    from bedplate.model.formats.get import get as fetch

    _tell(fetch(model, to, getattr(torch, dtype) if dtype else None, console.say, bits=bits), console)


def _tell(got: Any, console: Any) -> None:
    about = got.manifest.about
    licence = about.get("licence") or about.get("license") or "not said"
    console.say(f"{got.folder} {'made' if got.made else 'was there already'}; licence: {licence}")
    console.print(str(got.folder))
    console.data({"folder": str(got.folder), "made": got.made, "digest": got.manifest.digest, "parents": dict(got.manifest.parents), "licence": licence})


def _list(console: Any) -> None:
    from bedplate.core.home import home
    from bedplate.model.formats.catalogue import catalogue

    known = catalogue()
    here = {name: (home() / "models" / name / "manifest.json").is_file() for name in known}
    rows = [(name, entry.what, entry.licence, entry.source, "yes" if here[name] else "") for name, entry in known.items()]
    console.table(("name", "what", "licence", "source", "fetched"), rows, title="catalogue")
    console.data({name: {**vars(entry), "fetched": here[name]} for name, entry in known.items()})


def export(model: ModelFolder, *, to: Path, type: Literal["f32", "f16", "q8_0", "q4_0"] = "f16", console: Here) -> None:
    """Take the text half of a model out: as a GGUF file that llama.cpp has read and agreed with, or as a plain Hugging Face folder.

    Args:
        model: a model folder.
        to: the file to write, named .gguf; or a folder.
        type: how the matrices of a GGUF file are stored.
    """
    from bedplate.core.errors import DataError
    from bedplate.modality.chat_template import template_of
    from bedplate.model.foundation import FoundationModel

    loaded = FoundationModel.load(model)
    loaded.write_out()
    if not (model / "tokenizer.json").is_file():
        raise DataError(f"{model} has no tokenizer.json", "give a model folder that brings its tokenizer along")
    if to.suffix != ".gguf":
        _export_folder(loaded, model, to, console)
        return
    from bedplate.model.formats.gguf.write import export as write

    agreement = write(loaded, model / "tokenizer.json", to, type, template=template_of(model), name=model.resolve().name)
    console.say(
        f"{to}: llama.cpp computes the same: logits within {agreement.logits:.2%} of their spread, "
        f"{agreement.greedy_same} of {agreement.greedy_tokens} likeliest tokens equal; to the model as it was {agreement.quantisation:.2%}"
    )
    console.print(str(to))
    console.data({"file": str(to), "bytes": to.stat().st_size, "type": type, **vars(agreement)})


def _export_folder(loaded: Any, model: Path, to: Path, console: Any) -> None:
    from bedplate.core.errors import StateError
    from bedplate.model.formats import hugging_face

    if to.exists() and any(to.iterdir()):
        raise StateError(f"{to} is not empty", "give a new folder")
    hugging_face.write(to, loaded.config, loaded.state_dict(), tokenizer=model, text_only=True)
    console.say(f"{to}: a {loaded.config.model_type} for every engine that reads Hugging Face folders")
    console.print(str(to))
    console.data({"folder": str(to), "files": sorted(path.name for path in to.iterdir())})
