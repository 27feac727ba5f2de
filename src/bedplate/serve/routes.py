"""Routes: which place may answer a question, and which is asked first. Pure: settings, a question and what is known of the places go in, a plan comes out.

routes.toml says which places there are, which classes of data may leave the house, and by rules who is asked in which order. Text that no
label says may leave, does not leave: classes come from labels (of the request and of the key) and from what data/privacy.py finds in it, and the
most sensitive counts. router.py carries the plan out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from bedplate.core.config import load
from bedplate.core.errors import ConfigError, did_you_mean
from bedplate.core.generation import Ask
from bedplate.data import privacy
from bedplate.serve.breaker import BreakerSettings
from bedplate.serve.budget import BudgetSettings
from bedplate.serve.guarded import texts_of
from bedplate.serve.plain import personal


@dataclass(frozen=True)
class PlaceSettings:
    """Where answers come from."""

    where: Literal["local", "remote"] = "local"
    """local: in this process or on this machine; remote: text leaves the house."""
    worker: str = ""
    """The worker that is asked there, or the name of the remote's model; "": the one the question names."""
    url: str = ""
    """Of a remote place: the base of an OpenAI-compatible interface, with https."""
    key_file: Path | None = None
    """A file, private to its owner, with the key for it."""
    timeout_s: float = 60.0
    """A remote that says nothing for so long has failed."""
    price_prompt: float = 0.0
    """For a million tokens of prompts, in any one currency."""
    price_completion: float = 0.0
    """For a million tokens of answers."""

    def __post_init__(self) -> None:
        if (self.where == "remote") != bool(self.url):
            raise ConfigError("a place is remote exactly if it has a url", 'where = "remote" and url = "https://..." go together')
        if self.url and not self.url.startswith(("https://", "http://127.0.0.1:", "http://localhost:", "http://[::1]:")):
            raise ConfigError(f"{self.url} is not https", "http is for this machine only: 127.0.0.1, localhost")
        if not all(0 <= amount < math.inf for amount in (self.price_prompt, self.price_completion)) or not self.timeout_s > 0:
            raise ConfigError("prices are 0 or more, and timeout_s is above 0", "60 s is usual")

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Of one answer."""
        return (prompt_tokens * self.price_prompt + completion_tokens * self.price_completion) / 1e6


@dataclass(frozen=True)
class DataSettings:
    """Classes of data, and which of them may leave."""

    classes: tuple[str, ...] = ("public", "internal", "confidential")
    """From the least to the most sensitive."""
    may_leave: tuple[str, ...] = ()
    """Classes that may go to a remote place. None, unless said."""
    unlabelled: str = "confidential"
    """Class of a question without a label."""
    personal: str = "confidential"
    """Least class of text in which personal data or a secret is found."""
    unreadable: str = "confidential"
    """Least class of pictures, sounds and token ids, in which nothing can be found."""
    without: tuple[str, ...] = ("ip address",)
    """Kinds of personal data that are not looked for."""

    def __post_init__(self) -> None:
        if len(set(self.classes)) != len(self.classes) or not self.classes:
            raise ConfigError("classes of data are missing or named twice", 'classes = ["public", "internal", "confidential"]')
        for name in (*self.may_leave, self.unlabelled, self.personal, self.unreadable):
            if name not in self.classes:
                raise ConfigError(f"there is no class of data {name!r}", did_you_mean(name, self.classes))
        for kind in self.without:
            if kind not in privacy.KINDS:
                raise ConfigError(f"there is no kind {kind!r} of personal data", did_you_mean(kind, privacy.KINDS))


@dataclass(frozen=True)
class UncertainSettings:
    """When an answer is so unsure that another place is asked."""

    to: str = ""
    """The place that is asked then; "": none."""
    mean_logprob: float = -1.0
    """Below this mean natural logarithm of its tokens' probabilities an answer is unsure."""
    tokens: int = 32
    """Tokens that are judged, and held back until then; 0: the whole answer."""


@dataclass(frozen=True)
class RouteSettings:
    """Who is asked, where all that is said here holds."""

    name: str
    """Stands in the audit."""
    to: tuple[str, ...]
    """Places in the order in which they are asked."""
    workers: tuple[str, ...] = ()
    """Questions to these; "" is the base. None named: to any."""
    tenants: tuple[str, ...] = ()
    """Questions of these."""
    classes: tuple[str, ...] = ()
    """Questions of these classes of data."""
    from_tokens: int = 0
    """Questions of at least so many tokens ..."""
    below_tokens: int = 0
    """... and of fewer than that; 0: of any number."""
    uncertain: UncertainSettings = field(default_factory=UncertainSettings)

    @property
    def by_length(self) -> bool:
        """Whether tokens must be counted to say if it holds."""
        return self.from_tokens > 0 or self.below_tokens > 0


@dataclass(frozen=True)
class RoutesSettings:
    """routes.toml."""

    places: Mapping[str, PlaceSettings] = field(default_factory=lambda: {"local": PlaceSettings()})
    """Where answers come from, by name."""
    data: DataSettings = field(default_factory=DataSettings)
    rules: tuple[RouteSettings, ...] = ()
    """The first that holds decides. Where none does, every local place is asked in order."""
    budget: BudgetSettings = field(default_factory=BudgetSettings)
    breaker: BreakerSettings = field(default_factory=BreakerSettings)

    def __post_init__(self) -> None:
        if not self.places:
            raise ConfigError("there is no place that could answer", "add [places.local]")
        for rule in self.rules:
            if not rule.to:
                raise ConfigError(f"the rule {rule.name!r} leads nowhere", f"to = {list(self.places)[:1]}")
            for name in (*rule.to, *([rule.uncertain.to] if rule.uncertain.to else [])):
                if name not in self.places:
                    raise ConfigError(f"the rule {rule.name!r} names the place {name!r}, which does not exist", did_you_mean(name, self.places))
            for name in rule.classes:
                if name not in self.data.classes:
                    raise ConfigError(f"the rule {rule.name!r} names the class {name!r}, which does not exist", did_you_mean(name, self.data.classes))

    @property
    def remote(self) -> frozenset[str]:
        """Places to which text would leave."""
        return frozenset(name for name, place in self.places.items() if place.where == "remote")


class Classified(NamedTuple):
    """How sensitive a question is."""

    name: str
    why: str


class Refused(NamedTuple):
    """A place that was not asked, or failed."""

    place: str
    why: str


@dataclass(frozen=True)
class Plan:
    """Who may be asked, in order."""

    data_class: Classified
    rule: str
    """Name of the rule that decided; "": none did."""
    places: tuple[str, ...]
    refused: tuple[Refused, ...]
    uncertain: UncertainSettings
    """`to` is "" where that place may not be asked."""


@dataclass(frozen=True)
class Decision:
    """Where a question was answered, and why; a value for the audit and for x-bedplate-route."""

    place: str
    where: str
    """local or remote."""
    data_class: str
    reason: str
    refused: tuple[Refused, ...] = ()
    """Places that were not asked, or failed before it, in order."""
    cost: float = 0.0
    """As far as it is known."""

    @property
    def header(self) -> str:
        """One line of printable ASCII."""
        passed = "".join(f"; not {one.place}: {one.why}" for one in self.refused)
        line = f"{self.place} ({self.where}); class {self.data_class}; {self.reason}{passed}"
        return "".join(c if " " <= c <= "~" else "?" for c in line)[:500]


def read(file: Path) -> RoutesSettings:
    """The settings of a routes.toml, strict."""
    return load(RoutesSettings, path=file).value


def classify(ask: Ask, settings: DataSettings) -> Classified:
    """How sensitive a question is: the most that any label or finding says. An unknown label counts as the most sensitive class."""
    rank = {name: place for place, name in enumerate(settings.classes)}
    top = settings.classes[-1]
    said = [Classified(label, f"labelled {label}") if label in rank else Classified(top, "labelled with an unknown class") for label in ask.labels]
    if not said:
        said = [Classified(settings.unlabelled, "without a label")]
    if isinstance(ask.prompt, tuple) or ask.make.known or any(part.sense != "text" for turn in ask.turns for part in turn.parts):
        said.append(Classified(settings.unreadable, "holds what cannot be read"))
    strongest = max(said, key=lambda one: rank[one.name])
    if rank[settings.personal] > rank[strongest.name]:  # otherwise looking could change nothing
        kinds = sorted({finding.kind for text in texts_of(ask) for finding in personal(text, settings.without)})
        if kinds:
            return Classified(settings.personal, f"holds: {', '.join(kinds)}")
    return strongest


def plan(ask: Ask, settings: RoutesSettings, count: Callable[[], int]) -> Plan:
    """Who may be asked.

    Args:
        ask: the question.
        settings: routes.toml.
        count: its tokens; called only where a rule asks for them.
    """
    data_class = classify(ask, settings.data)
    tokens: int | None = None
    chosen: RouteSettings | None = None
    for rule in settings.rules:
        if rule.by_length and tokens is None and _holds(rule, ask, data_class.name, None):
            tokens = count()
        if _holds(rule, ask, data_class.name, tokens):
            chosen = rule
            break
    order: Sequence[str] = chosen.to if chosen is not None else [name for name in settings.places if name not in settings.remote]
    stays = data_class.name not in settings.data.may_leave
    refused = tuple(Refused(name, f"{data_class.name} does not leave") for name in order if stays and name in settings.remote)
    uncertain = chosen.uncertain if chosen is not None else UncertainSettings()
    if stays and uncertain.to in settings.remote:
        uncertain = UncertainSettings()
    places = tuple(name for name in dict.fromkeys(order) if not (stays and name in settings.remote))
    return Plan(data_class, chosen.name if chosen is not None else "", places, refused, uncertain)


def _holds(rule: RouteSettings, ask: Ask, data_class: str, tokens: int | None) -> bool:
    """Whether a rule holds; without a count, whether it could."""
    fits = (not rule.workers or ask.worker in rule.workers) and (not rule.tenants or ask.tenant in rule.tenants)
    fits = fits and (not rule.classes or data_class in rule.classes)
    if not fits or tokens is None:
        return fits
    return tokens >= rule.from_tokens and (rule.below_tokens == 0 or tokens < rule.below_tokens)

