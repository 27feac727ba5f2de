"""Settings of the gateway: one strict TOML file, or `--set table.key=value`."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from bedplate.core.errors import ConfigError
from bedplate.serve.audit import AuditSettings
from bedplate.serve.limits import LimitsSettings
from bedplate.serve.oidc import OidcSettings
from bedplate.serve.redact import RedactSettings


@dataclass(frozen=True)
class ListenSettings:
    """Where the gateway listens, and how patient it is."""

    host: str = "127.0.0.1"
    """Address. Any other than a loopback one needs keys or an identity provider."""
    port: int = 8400
    """TCP port; 0 takes a free one."""
    certificate: Path | None = None
    """PEM file with the certificate and its chain; with private_key, the gateway speaks TLS."""
    private_key: Path | None = None
    """PEM file with the certificate's key."""
    behind_tls: bool = False
    """Whether clients reach it by https through a proxy that ends TLS: cookies are then for https alone."""
    headers_s: float = 10.0
    """A client that has not sent a whole head of a request by then is let go."""
    body_s: float = 60.0
    """A client that has not sent the whole body by then is refused."""
    idle_s: float = 30.0
    """How long a connection without a request is kept."""
    stalled_s: float = 30.0
    """How long a client may take nothing of what is sent to it before the connection is cut."""
    drain_s: float = 60.0
    """Seconds that answers under way have to end when the gateway is told to stop."""
    connections: int = 4096
    """Connections at once; more are refused."""
    kept_pieces: int = 512
    """Pieces of one answer that are kept for a client who reads slowly; beyond them the answer is cancelled."""

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.private_key is None):
            raise ConfigError("TLS needs both a certificate and its private key", "set listen.certificate and listen.private_key")
        if min(self.headers_s, self.body_s, self.idle_s, self.stalled_s) <= 0 or self.drain_s < 0 or self.connections < 1 or self.kept_pieces < 1:
            raise ConfigError("times of listen are above 0, and connections and kept_pieces at least 1", "10, 60, 30, 30 s, 4096 and 512 are usual")

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return False


@dataclass(frozen=True)
class ModelSettings:
    """One base and its adapters."""

    path: str = ""
    """A model folder or GGUF file; for remote, the base URL of an OpenAI-compatible endpoint."""
    backend: Literal["auto", "native", "llama.cpp", "remote"] = "auto"
    """Who computes. auto: native for a folder, llama.cpp for a GGUF file, remote for an address."""
    adapters: Mapping[str, str] = field(default_factory=dict)
    """Name -> adapter folder; each is a model of that name."""
    key_file: Path | None = None
    """For remote: a file, private to its owner, with the key for that endpoint."""
    remote_model: str = ""
    """For remote: the model's name there, where it is another."""
    context_tokens: int = 0
    """Longest question and answer together; 0: what the model can, for llama.cpp 4096."""
    side_by_side: int = 0
    """Answers worked on at once; 0: what the backend thinks right."""
    options: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    """More settings of the backend by their names, such as precision, device, threads and cache_bytes of the native engine."""

    @property
    def chosen(self) -> Literal["native", "llama.cpp", "remote"]:
        """The backend, with auto decided."""
        if self.backend != "auto":
            return self.backend
        return "remote" if self.path.startswith(("http://", "https://")) else "llama.cpp" if self.path.endswith(".gguf") else "native"

    @property
    def here(self) -> bool:
        """Whether it is computed on this machine."""
        return self.chosen != "remote" or urlsplit(self.path).hostname in ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class ServeSettings:
    """`bedplate serve`: models, who may ask for them, and what is written down."""

    listen: ListenSettings = field(default_factory=ListenSettings)
    models: Mapping[str, ModelSettings] = field(default_factory=dict)
    """Name -> a base; `[models.NAME]` in the file."""
    keys: Path | None = None
    """The keys file that `bedplate serve key` writes. Without one, anybody on this machine may ask for anything."""
    limits: LimitsSettings = field(default_factory=LimitsSettings)
    answer_tokens: int = 1024
    """Longest answer where the client sets none; at most what the model's context leaves."""
    answer_s: float = 600.0
    """Seconds after which an answer is broken off."""
    inputs: int = 256
    """Prompts or texts in one request."""
    choices: int = 16
    """Most answers to one prompt (n)."""
    audit: Path | None = None
    """Folder of the audit. Without one nothing is written down and answers carry no receipts."""
    signing_key: Path | None = None
    """PEM file of the key that signs audit and receipts, made when missing; where none is named, beside the audit's folder, with .pem behind its name."""
    auditing: AuditSettings = field(default_factory=AuditSettings)
    redact: RedactSettings = field(default_factory=RedactSettings)
    oidc: OidcSettings = field(default_factory=OidcSettings)
    guards: Path | None = None
    """guards.toml: texts that must not pass, in questions and in answers."""
    routes: Path | None = None
    """routes.toml: which place may answer what. Without one, every model answers itself."""
    spent: Path | None = None
    """File that keeps what was spent today at places with a price."""
    runs: tuple[Path, ...] = ()
    """Folders of runs, or folders that hold some: the pages show their curves to admins, and find in them what a model was made from."""
    session_s: float = 28_800.0
    """How long a browser stays logged in."""

    @property
    def signer_file(self) -> Path | None:
        """Where the signing key lies; None: nothing is signed."""
        if self.audit is None:
            return None
        return self.signing_key or self.audit.with_name(self.audit.name + ".pem")

    def __post_init__(self) -> None:
        if self.keys is None and not self.oidc.issuer and not self.listen.loopback:
            raise ConfigError(
                f"without keys the gateway listens on this machine alone, not on {self.listen.host}",
                "make a key with `bedplate serve key add --file keys.json ...` and set keys = \"keys.json\", or listen.host = \"127.0.0.1\"",
            )
        if min(self.answer_tokens, self.inputs, self.choices) < 1 or min(self.answer_s, self.session_s) <= 0:
            raise ConfigError("answer_tokens, inputs and choices are at least 1, answer_s and session_s above 0", "1024, 256, 16, 600 and 28800 are usual")
