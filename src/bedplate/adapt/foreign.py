"""Adapters that others made with PEFT, as adapter folders of ours: checked, tied to their base, sealed with digests and lineage.

    bring("downloads/their-lora", Path("models/base"), Path("adapters/theirs"))

Their two files are kept as they are, so PEFT still reads them; task.json and the manifest are added. What PEFT does not write down is asked for: the
names of a classifier's labels, and how prompts were written.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from bedplate.adapt.base import Base
from bedplate.adapt.loop import TASK, restore
from bedplate.adapt.settings import MethodSettings
from bedplate.core.artifact import MANIFEST, Manifest, read_manifest, seal
from bedplate.core.config import to_mapping
from bedplate.core.errors import ConfigError, DataError, StateError
from bedplate.core.files import sha256_file, write_bytes, write_json
from bedplate.core.home import home
from bedplate.modality.chat_template import template_of
from bedplate.model.families import TARGETS
from bedplate.model.formats import peft
from bedplate.model.formats.get import locate, name_of, place


class Brought(NamedTuple):
    """An adapter folder."""

    folder: Path
    manifest: Manifest
    made: bool
    """False: it was there already."""


def bring(
    source: str,
    base: Path,
    to: Path | None = None,
    *,
    labels: Sequence[str] = (),
    template: Literal["chat", "raw"] = "chat",
    say: Callable[[str], None] = lambda line: None,
) -> Brought:
    """An adapter folder of ours from one of PEFT's.

    Args:
        source: its folder, or hf:OWNER/NAME.
        base: the model folder that it was made for.
        to: the folder to write; None: by its name in the home folder.
        labels: names of a classifier's outputs, in their order; empty: LABEL_0, LABEL_1, ..., as `transformers` has it.
        template: how a prompt is written for it: by the base's chat template, or as it is.
        say: told what takes its time or needs to be known, a line each.
    Raises:
        DataError: it asks for what is not computed here, or is pickled.
        IntegrityError: it is damaged, or does not fit the base.
        RemoteError: it could not be fetched.
        StateError: the folder holds something else.
    """
    found = locate(source, say)
    digests = {name: sha256_file(found.path / name) for name in (peft.CONFIG, peft.WEIGHTS) if (found.path / name).is_file()}
    digests["base"] = read_manifest(base, "model").digest
    folder = to or home() / "adapters" / name_of(source)
    if (folder / MANIFEST).is_file():
        manifest = read_manifest(folder, "adapter")
        if dict(manifest.parents) != digests:
            raise StateError(f"{folder} holds an adapter that was made from something else", "give another folder with --to, or remove that one")
        return Brought(folder, manifest, False)
    if folder.exists() and any(folder.iterdir()):
        raise StateError(f"{folder} is not empty and no adapter", "give another folder with --to, or remove that one")
    loaded = Base.load(base)
    learned = _learned(found.path, loaded, labels, template)
    if (theirs := template_of(found.path)) is not None and theirs != template_of(base):
        say(f"{source} brings a chat template of its own; the base's is used")
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        for name in (peft.CONFIG, peft.WEIGHTS):
            write_bytes(draft / name, (found.path / name).read_bytes())
        write_json(draft / TASK, learned)
        manifest = seal(draft, "adapter", parents=digests, about={"task": learned["task"], **found.about})
        restore(loaded, draft)  # what cannot be put to work is not given a name
        place(draft, folder, "adapter")
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return Brought(folder, manifest, True)


def _learned(folder: Path, base: Base, labels: Sequence[str], template: str) -> dict[str, Any]:
    """What task.json says of it."""
    config = peft.read_config(folder, scores=True)
    adapters = peft.read(folder, base.model, scores=True)
    for name, adapter in adapters.items():
        if not all(bool(part.isfinite().all()) for part in adapter.parameters()):
            raise DataError(f"{folder}: the adapter of {name} holds numbers that are not finite", "it learned nothing; take another one")
    held = {name.rpartition(".")[2] for name in adapters}
    method = MethodSettings(
        "dora" if config.get("use_dora") else "lora",
        int(config["r"]),
        float(config["lora_alpha"]),
        bool(config.get("use_rslora")),
        tuple(name for name in TARGETS if name in held),
        float(config.get("lora_dropout") or 0.0),
    )
    longest = min(2048, base.model.config.max_position_embeddings)
    learned = {"method": to_mapping(method), "most_positions": longest, "template": template, "chat_template": base.template.digest}
    score = peft.read_score(folder)
    if score is None:
        if labels:
            raise ConfigError(f"{folder} has no classifier to name labels of", "leave --labels out")
        return {"task": "generate", **learned}
    names = list(labels) or [f"LABEL_{number}" for number in range(len(score))]
    if len(score) < 2:
        raise DataError(f"{folder} says one number, no label", "classifiers of two labels or more can be brought in")
    if len(set(names)) != len(score):
        raise ConfigError(f"{len(set(names))} labels for a classifier of {len(score)}", "name each of its outputs once, in their order")
    return {"task": "classify", **learned, "labels": names, "several": False, "temperature": 1.0, "threshold": 0.0, "words": False, "reads": "last"}
