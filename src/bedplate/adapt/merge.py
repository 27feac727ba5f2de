"""Merge: adapters folded into their base, one or a mixture of several, as an ordinary model folder.

    merge(Path("models/base"), [Path("adapters/law"), Path("adapters/mail")], Path("models/both"), weights=[1.0, 0.5])

The change of each weight is computed exactly and added once. Into a base in few bits it is added before the rounding, and what the rounding
lost is told. An adapter in PEFT's format need not be ours; then nobody vouches for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from bedplate.adapt.loop import TASK
from bedplate.adapt.methods import HEAD, WEIGHTS
from bedplate.adapt.tasks.classify import Classify
from bedplate.core.artifact import MANIFEST, Manifest, read_manifest, verify
from bedplate.core.errors import ConfigError, DataError, IntegrityError, StateError
from bedplate.core.files import read_json
from bedplate.model.adapters import Change, How, MergeError, merge_several, quantise
from bedplate.model.formats import peft
from bedplate.model.formats.hugging_face import read_tensors
from bedplate.model.foundation import FoundationModel
from bedplate.model.quantise import Bits


class MergedModel(NamedTuple):
    """What came of a merge."""

    manifest: Manifest
    error: MergeError
    """What few bits lost; zeros where the base is kept exactly."""
    unsealed: tuple[str, ...]
    """Adapters without a manifest."""


def merge(
    base: Path, adapters: Sequence[Path], to: Path, *, weights: Sequence[float] = (), how: How = "linear", density: float = 0.2, bits: Bits | None = None
) -> MergedModel:
    """Write the model that a base and adapters make together.

    Args:
        base: a model folder.
        adapters: adapter folders of ours that have no head of their own, or of PEFT.
        to: the model folder to write.
        weights: how much each adapter counts; empty: 1 each.
        how: how several changes of one weight are combined.
        density: ties: share of each change that is kept.
        bits: round the merged projections to what so many bits can say, as they were when the adapter was learned over such a base.
    Raises:
        ConfigError: weights or density do not fit.
        DataError: an adapter was made for another base, or does more than change weights.
        IntegrityError: a digest does not hold.
        StateError: there is a model already.
    """
    counts = list(weights) or [1.0] * len(adapters)
    if not adapters or len(counts) != len(adapters):
        raise ConfigError(f"{len(counts)} weights for {len(adapters)} adapters", f"give {max(1, len(adapters))} of each")
    if not 0 < density <= 1:
        raise ConfigError(f"density = {density} is no share", "0.2 keeps the largest fifth of each change")
    if (to / MANIFEST).exists():
        raise StateError(f"{to} holds an artifact already", "give another --to")
    parents = {"base": read_manifest(base, "model").digest}
    unsealed = []
    for number, folder in enumerate(adapters, 1):
        if (folder / MANIFEST).exists():
            parents[f"adapter {number}"] = _check(folder, parents["base"])
        else:
            unsealed.append(folder.name)
    model = FoundationModel.load(base, dtype=torch.float32).requires_grad_(False)
    stored = read_tensors(base, model.config)["model.norm.weight"].dtype
    if bits is None:
        model.write_out()  # what is added to a base in few bits must not be rounded again
    else:
        quantise(model, bits)
    error = merge_several(model, [_change(folder, model) for folder in adapters], counts, how, density)
    model.write_out()
    asked = {"adapters": [folder.name for folder in adapters], "weights": counts, "how": how, "density": density, "bits": bits}
    about = {"error_of_weights": error.of_weights, "error_of_change": error.of_change, "unsealed": unsealed}
    manifest = model.save(to, tokenizer=base, parents=parents, settings={"merge": asked}, about=about, dtype=stored)
    return MergedModel(manifest, error, tuple(unsealed))


def _check(folder: Path, base: str) -> str:
    """The digest of an adapter of ours that can be merged into the base with this digest."""
    manifest = verify(folder, "adapter")
    if (made_for := manifest.parents.get("base")) != base:
        raise DataError(f"{folder} was made for another base", f"give the base whose manifest has the digest {str(made_for)[:12]}…")
    task = read_json(folder / TASK).get("task")
    if (folder / HEAD).exists() or task == Classify.name:
        raise DataError(f"{folder} has a head of its own, for the task {task}", "use it with `bedplate predict`; what only generates can be merged")
    return manifest.digest


def _change(folder: Path, model: FoundationModel) -> Change:
    """What an adapter makes of each weight."""
    if (folder / WEIGHTS).exists():
        try:
            return {name: tensor.to for name, tensor in load_file(folder / WEIGHTS).items()}  # `to` gives a tensor in the type of another
        except (SafetensorError, OSError, ValueError) as error:
            raise IntegrityError(f"{folder / WEIGHTS} cannot be read: {error}", "restore the adapter folder from a copy") from error
    return {f"{name}.weight": adapter.changed for name, adapter in peft.read(folder, model).items()}
