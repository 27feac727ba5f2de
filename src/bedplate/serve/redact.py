"""Redact: what of a question and an answer is written down, by policy, before it is written.

    redactor = Redactor(RedactSettings(mode="redact"))
    redactor.text("call me: +49 30 1234567")      -> Recorded(text="call me: [phone number]", sha256=..., characters=23, found={"phone number": 1})

`none` writes texts as they are, `redact` without the personal data and secrets that data/privacy.py finds, `digests` (the default) no text at all.
Whatever the policy, a digest is written, so that an answer somebody shows can be recognised; docs/formats/audit.md says how it is salted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Literal

from bedplate.core.errors import ConfigError, did_you_mean
from bedplate.core.files import sha256_bytes
from bedplate.core.generation import THINGS, Ask
from bedplate.data import privacy
from bedplate.serve.plain import personal

Mode = Literal["none", "redact", "digests"]


@dataclass(frozen=True)
class RedactSettings:
    """What of texts is written to the audit."""

    mode: Mode = "digests"
    """none: texts as they are; redact: without personal data and secrets; digests: no text, only its digest and length."""
    keep: tuple[str, ...] = ()
    """Kinds that are not taken out, such as "ip address" where that is what the work is about."""
    most_characters: int = 20_000
    """Of each text; the rest is cut off, and said to be."""

    def __post_init__(self) -> None:
        for kind in self.keep:
            if kind not in privacy.KINDS:
                raise ConfigError(f"there is no kind {kind!r} of personal data", did_you_mean(kind, privacy.KINDS))
        if self.most_characters < 1:
            raise ConfigError("redact.most_characters is below 1", "to write no text, set redact.mode = \"digests\"")


@dataclass(frozen=True)
class Recorded:
    """A text as it may be written down."""

    text: str | None
    """None: the policy writes none."""
    sha256: str
    """Of the salt and the whole text, as it was."""
    characters: int
    """Of the whole text."""
    found: Mapping[str, int] = field(default_factory=dict)
    """Kind -> how often it was taken out."""


class Redactor:
    """Applies the policy."""

    def __init__(self, settings: RedactSettings) -> None:
        self.settings = settings

    def text(self, text: str, salt: bytes = b"") -> Recorded:
        """One text as it may be written down; linear in its length."""
        digest = text_digest(text, salt)
        if self.settings.mode == "digests":
            return Recorded(None, digest, len(text))
        found: Counter[str] = Counter()
        shown = text
        if self.settings.mode == "redact":
            shown, found = masked(text, self.settings.keep)
        if len(shown) > self.settings.most_characters:
            shown = shown[: self.settings.most_characters] + " [cut]"
        return Recorded(shown, digest, len(text), dict(found))

    def ask(self, ask: Ask, salt: bytes = b"") -> dict[str, Any]:
        """A question as it may be written down: its turns' texts by the policy; pictures and sounds as size and digest, always."""
        if ask.prompt is not None:
            wanted: dict[str, Any] = {"want": ask.want} if ask.want in THINGS else {}
            known = {"known": thing(ask.make.known, salt)} if ask.make.known else {}
            return {"prompt": plain(self.text(written(ask), salt))} | wanted | known
        turns = []
        for turn in ask.turns:
            parts: list[dict[str, Any]] = []
            for is_text, stretch in groupby(turn.parts, lambda part: part.sense == "text"):
                if is_text:  # as one: what begins in one part may end in the next
                    parts.append(plain(self.text("".join(part.text for part in stretch), salt)))
                else:
                    parts += [{"sense": part.sense} | thing(part.data, salt) for part in stretch]
            calls = [{name: plain(self.text(getattr(call, name), salt)) for name in ("id", "name", "arguments")} for call in turn.tool_calls]
            turns.append({"role": turn.role, "parts": parts} | ({"tool_calls": calls} if calls else {}))
        return {"turns": turns}


def thing(data: bytes, salt: bytes) -> dict[str, Any]:
    """A picture, a sound or a table as it is written down."""
    return {"bytes": len(data), "sha256": sha256_bytes(salt + data)}


def masked(text: str, keep: tuple[str, ...] = ()) -> tuple[str, Counter[str]]:
    """The text with `[kind]` where personal data or a secret stood, and how often each kind was found."""
    found: Counter[str] = Counter()

    def without(stretch: str) -> str:
        parts: list[str] = []
        at = 0
        for finding in personal(stretch, keep):
            parts += [stretch[at : finding.start], f"[{finding.kind}]"]
            found[finding.kind] += 1
            at = finding.end
        # Of two findings that overlap, one was taken; what is left of the other is looked at again.
        return "".join([*(part if n % 2 else without(part) for n, part in enumerate(parts)), without(stretch[at:])]) if parts else stretch

    return without(text), found


def text_digest(text: str, salt: bytes = b"") -> str:
    """Hex SHA-256 of salt and text. The salt stands in the receipt: two equal texts do not show that they are equal."""
    return sha256_bytes(salt + text.encode("utf-8", "surrogatepass"))


def written(ask: Ask) -> str:
    """The question as one text, for digests: its prompt, with the digest of what is known, or its turns one below the other."""
    if ask.prompt is not None:
        text = ask.prompt if isinstance(ask.prompt, str) else " ".join(map(str, ask.prompt))
        return f"{text}\nknown sha256:{sha256_bytes(ask.make.known)}" if ask.make.known else text
    return "\n".join(f"{turn.role}: {turn.text}" for turn in ask.turns)


def plain(recorded: Recorded) -> dict[str, Any]:
    """As JSON; what is not known is left out."""
    told: dict[str, Any] = {"sha256": recorded.sha256, "characters": recorded.characters}
    if recorded.text is not None:
        told["text"] = recorded.text
    if recorded.found:
        told["redacted"] = dict(recorded.found)
    return told
