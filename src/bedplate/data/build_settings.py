"""Settings of `bedplate data build`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from bedplate.core.errors import ConfigError, did_you_mean
from bedplate.data.clean import CleanSettings
from bedplate.data.inputs import SourceSettings
from bedplate.data.privacy import KINDS, PrivacyMode
from bedplate.modality.specs import CONTINUOUS, ContinuousSense, SenseSpecs


@dataclass(frozen=True)
class TokenizerSettings:
    """Where the tokenizer comes from."""

    path: str = ""
    """A model folder or tokenizer.json to take the tokenizer from; "" trains one on a sample of the corpus."""
    vocabulary: int | Literal["auto"] = "auto"
    """Number of tokens when one is trained; auto chooses by the amount of text."""
    sample_bytes: int = 8 << 20
    """How much text is sampled to train it."""


@dataclass(frozen=True)
class PrivacySettings:
    """What happens to personal data and secrets."""

    mode: PrivacyMode = "report"
    """off: not looked for; report: counted by kind; mask: counted and replaced by <|mask|>."""
    without: tuple[str, ...] = ("ip address",)
    """Kinds that are not looked for. IP addresses are left out unless asked for: version numbers look the same."""

    def __post_init__(self) -> None:
        for name in self.without:
            if name not in KINDS:
                raise ConfigError(f"privacy.without: there is no kind {name!r}", did_you_mean(name, KINDS))


@dataclass(frozen=True)
class DedupeSettings:
    """What counts as a duplicate."""

    exact: bool = True
    """Drop documents whose content is the same as that of an earlier one."""
    near: bool = True
    """Drop texts and pictures that are nearly the same as an earlier one."""
    threshold: float = 0.75
    """Least estimated share of common five-word runs at which two texts are near-duplicates."""

    def __post_init__(self) -> None:
        if not 0.6 <= self.threshold <= 1:  # below, most pairs do not meet in a band and would not be compared
            raise ConfigError(f"dedupe.threshold = {self.threshold} is outside of what the search can find", "choose 0.6 .. 1; 0.75 is usual")


@dataclass(frozen=True)
class PoisonSettings:
    """When a repeated passage is reported as a possible planted trigger."""

    look: bool = True
    """Look for rare triggers that are always followed by the same words, after the corpus is written."""
    fewest_documents: int = 5
    """Documents that must hold the passage."""


@dataclass(frozen=True)
class BuildSettings:
    """Everything that decides what a corpus holds."""

    inputs: tuple[str, ...] = ()
    """Folders, globs, files and archives, read in this order."""
    output: Path = Path("corpus")
    """The corpus folder to write."""
    senses: tuple[ContinuousSense, ...] | Literal["auto"] = "auto"
    """Continuous senses to take beside text and code; auto: those found in the sources."""
    specs: Mapping[str, Mapping[str, float | int]] = field(default_factory=dict)
    """Parts of the specs that are not to be chosen, such as specs.image.size = 32."""
    licences: tuple[str, ...] = ()
    """SPDX ids that may be taken; empty: all, also unknown ones."""
    evaluations: tuple[str, ...] = ()
    """Files, folders or archives of evaluation texts; documents that share 13 words in a row with them are dropped."""
    validation_share: float = 0.02
    """Share of documents held out of training, chosen by a hash of their content."""
    max_documents: int = 0
    """Stop after this many documents are kept; 0: no limit."""
    seed: int = 0
    """Changes which documents are held out, and the samples looked at."""
    workers: int | Literal["auto"] = "auto"
    """Processes that read and clean; auto: one per core. 0 does all in this process. The result is the same."""
    sources: SourceSettings = field(default_factory=SourceSettings)
    clean: CleanSettings = field(default_factory=CleanSettings)
    privacy: PrivacySettings = field(default_factory=PrivacySettings)
    dedupe: DedupeSettings = field(default_factory=DedupeSettings)
    poison: PoisonSettings = field(default_factory=PoisonSettings)
    tokenizer: TokenizerSettings = field(default_factory=TokenizerSettings)

    def __post_init__(self) -> None:
        if not 0 <= self.validation_share < 1:
            raise ConfigError(f"validation_share = {self.validation_share} is not a share", "choose 0 .. 0.5; 0.02 is usual")
        if isinstance(self.workers, int) and self.workers < 0:
            raise ConfigError(f"workers = {self.workers} is not a number of processes", "choose 0, 1, 2, ... or auto")
        known = {sense: set(type(spec).__dataclass_fields__) for sense, spec in _every_spec().present().items()}
        for sense, values in self.specs.items():
            if sense not in known:
                raise ConfigError(f"unknown setting specs.{sense}", did_you_mean(sense, CONTINUOUS))
            for name in values:
                if name not in known[sense]:
                    raise ConfigError(f"unknown setting specs.{sense}.{name}", did_you_mean(name, known[sense]))


def _every_spec() -> SenseSpecs:
    from bedplate.modality.specs import AudioSpec, ImageSpec, SeriesSpec, VideoSpec

    return SenseSpecs(ImageSpec(), AudioSpec(), VideoSpec(), SeriesSpec())
