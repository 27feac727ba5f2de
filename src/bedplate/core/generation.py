"""What a generator is asked, and the pieces in which it answers; the same words for a local engine, llama.cpp, a remote gateway and a fake.

    ticket = generator.submit(Ask(turns=(Turn.of("user", "hello"),)), deliver)     # deliver(Piece) is called from the generator's own thread
    for piece in stream(generator, ask): ...                                       # the same, for those who wait
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Mapping
from collections.abc import Generator as Pieces
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, Self

from bedplate.core.errors import BedplateError, ConfigError
from bedplate.core.prediction import Prediction

if TYPE_CHECKING:
    from bedplate.core.contracts import Generator

Want = Literal["text", "vector", "prediction", "image", "audio", "video", "series"]
"""What is asked for: words; a vector of what was read; what a worker says of it that was adapted to classify, regress, embed, rank or extract; or a thing of
another sense, made from a caption."""
THINGS: tuple[Want, ...] = ("image", "audio", "video", "series")
"""What is made: a picture, a sound, a clip, a forecast."""
Finish = Literal["stop", "length", "tool_calls", "cancelled", "deadline", "guard", "error"]
"""Why an answer ended."""


@dataclass(frozen=True)
class Part:
    """A stretch of a turn: text, or the bytes of a picture, a sound, a clip or a table of numbers. What is made is one, too."""

    sense: Literal["text", "image", "audio", "video", "series"]
    text: str = ""
    data: bytes = b""
    """An image, audio, video or CSV file, where the sense is not text. Made ones are PNG, WAV, GIF, and CSV with the columns median, low and high."""


class ToolCall(NamedTuple):
    """A function that the model wants to have called."""

    id: str
    name: str
    arguments: str
    """JSON, as the model wrote it."""


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation."""

    role: str
    """system, user, assistant or tool."""
    parts: tuple[Part, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    """Of an assistant's turn."""
    tool_call_id: str = ""
    """Of a tool's turn: which call it answers."""

    @classmethod
    def of(cls, role: str, text: str) -> Self:
        """A turn of text alone."""
        return cls(role, (Part("text", text),))

    @property
    def text(self) -> str:
        """Its text, without what is seen or heard."""
        return "".join(part.text for part in self.parts)


@dataclass(frozen=True)
class Tool:
    """A function that may be called."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """A JSON schema."""

    def as_openai(self) -> dict[str, Any]:
        """As OpenAI's API writes it, and chat templates expect it."""
        return {"type": "function", "function": {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}}


@dataclass(frozen=True)
class Form:
    """What the text of an answer must look like; exactly one is set."""

    json: bool = False
    """Any JSON object."""
    schema: Mapping[str, Any] | None = None
    """A JSON schema."""
    regex: str | None = None
    choice: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (given := sum((self.json, self.schema is not None, self.regex is not None, bool(self.choice)))) != 1:
            raise ConfigError(f"{given} forms are asked at once", "give one of json, schema, regex, choice")


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. The defaults take the likeliest token."""

    max_tokens: int = 256
    """Longest answer."""
    temperature: float = 0.0
    top_k: int = 0
    """Only the k likeliest tokens; 0: all."""
    top_p: float = 1.0
    """Only the likeliest tokens that together have this probability."""
    min_p: float = 0.0
    """Only tokens with at least this share of the likeliest one's probability."""
    repetition_penalty: float = 1.0
    """Logits of tokens that stand in prompt or answer are divided by it where positive, multiplied where negative."""
    presence_penalty: float = 0.0
    """Taken from the logits of tokens that the answer holds."""
    frequency_penalty: float = 0.0
    """The same, once for each time."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Token id -> added to its logit; -100 forbids, 100 forces."""
    seed: int = 0
    """Equal seeds give equal answers."""
    n: int = 1
    """Answers to one question; each has a seed of its own."""
    logprobs: int | None = None
    """None: none; k: of each token said, and of the k likeliest in its place."""
    stop: tuple[str, ...] = ()
    """Texts before which an answer ends."""
    ignore_end: bool = False
    """Go on until max_tokens."""

    def __post_init__(self) -> None:
        for name, holds, usual in (
            ("max_tokens", self.max_tokens >= 0, "256 is usual"),
            ("temperature", 0 <= self.temperature < float("inf"), "0 takes the likeliest token; 0.7 is usual"),
            ("top_k", self.top_k >= 0, "0 takes all tokens, 40 is usual"),
            ("top_p", 0 < self.top_p <= 1, "0.95 is usual, 1 takes all tokens"),
            ("min_p", 0 <= self.min_p <= 1, "0.05 is usual, 0 takes all tokens"),
            ("repetition_penalty", 0 < self.repetition_penalty < float("inf"), "1 changes nothing, 1.1 is usual"),
            ("presence_penalty", -2 <= self.presence_penalty <= 2, "between -2 and 2; 0 changes nothing"),
            ("frequency_penalty", -2 <= self.frequency_penalty <= 2, "between -2 and 2; 0 changes nothing"),
            ("n", self.n >= 1, "1 is usual"),
            ("logprobs", self.logprobs is None or 0 <= self.logprobs <= 20, "at most 20"),
        ):
            if not holds:
                raise ConfigError(f"{name} = {getattr(self, name)} cannot be drawn with", usual)


@dataclass(frozen=True)
class Make:
    """How a thing is made, where `Ask.want` is one; each sense looks at what concerns it. Seed and n stand in `Sampling`."""

    guidance: float | None = None
    """1 follows the caption, 1.5 to 3 insists on it; None: what is usual for the sense."""
    steps: int = 20
    """From noise to a unit."""
    known: bytes = b""
    """A picture whose first part is kept; the CSV table of a series' past, whose last column counts."""
    known_share: float = 0.5
    """Of a known picture."""
    side: tuple[int, int] | None = None
    """(height, width) of a picture in pixels; None: as large as the model learned."""
    frames: int = 8
    """Of a clip."""
    most_s: float = 3.0
    """Longest sound; it may end earlier."""
    points: int = 64
    """Of a forecast."""
    paths: int = 16
    """That a forecast is drawn from."""


@dataclass(frozen=True)
class Ask:
    """One question to a generator."""

    worker: str = ""
    """Name of an adapter, as `Generator.workers` lists them; "": the base."""
    turns: tuple[Turn, ...] = ()
    """A conversation to answer; of a worker that ranks, the query and then the texts, a turn each ..."""
    prompt: str | tuple[int, ...] | None = None
    """... or a text, or token ids, to continue, read as it is."""
    tools: tuple[Tool, ...] = ()
    tool_choice: str = "auto"
    """auto, none, required, or the name of one tool."""
    form: Form | None = None
    sampling: Sampling = field(default_factory=Sampling)
    want: Want = "text"
    make: Make = field(default_factory=Make)
    """Where a thing is wanted; its caption, or the name of the series, is the prompt."""
    tenant: str = ""
    """Who asks: turns are shared out between tenants, and nothing that is cached crosses them."""
    policy: str = ""
    """Name of the policy in force; what is cached does not cross it either."""
    echo: bool = False
    """Say the prompt again before the answer, token by token where logprobs are asked. Of its very first token nothing could be foreseen: its
    logprob is NaN."""
    labels: tuple[str, ...] = ()
    """Classes of its data, as the caller and its key say; they decide where it may be answered."""
    deadline_s: float | None = None
    """Seconds from now after which nobody waits for the answer any more."""

    def __post_init__(self) -> None:
        if self.echo and self.prompt is None:
            raise ConfigError("a conversation cannot be said again", "echo goes with a prompt")
        if bool(self.turns) == (self.prompt is not None):
            raise ConfigError("a conversation and a prompt were both given" if self.turns else "nothing was asked", "give turns or a prompt")
        if self.want in THINGS and (not isinstance(self.prompt, str) or self.echo or self.form is not None or self.tools):
            raise ConfigError(f"{self.want} is made from a caption alone", "give it as prompt, a text, without tools, form and echo")


class Usage(NamedTuple):
    """What an answer cost."""

    prompt_tokens: int
    cached_tokens: int
    """Of the prompt, read from what was kept of earlier ones."""
    completion_tokens: int


class Alternative(NamedTuple):
    """A token that could have stood in a place."""

    text: str
    logprob: float
    """Natural logarithm of its probability, before temperature and penalties."""
    id: int = -1
    """-1 where the generator does not tell."""


@dataclass(frozen=True)
class TokenLogprob:
    """A token that was said, and what else was likely."""

    said: Alternative
    top: tuple[Alternative, ...] = ()


@dataclass(frozen=True)
class Piece:
    """A stretch of an answer, or a thing that was made. The last one of each choice says why it ended; the last of all, what it cost."""

    choice: int = 0
    """Number of the answer, where several were asked."""
    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    """Complete calls, never fragments."""
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: Finish | None = None
    usage: Usage | None = None
    """Of all choices together; on the very last piece."""
    prediction: Prediction | None = None
    """What was asked for where it was no text; a vector is a `Vector`."""
    part: Part | None = None
    """What was made, whole."""
    error: BedplateError | None = None
    """Where finish is "error"."""

    @property
    def last(self) -> bool:
        """Whether nothing follows."""
        return self.usage is not None or self.finish == "error"


@dataclass(frozen=True)
class WorkerCard:
    """What can be asked for by name."""

    name: str
    """"" for the base."""
    task: str
    """generate, classify, embed, ..."""
    digests: Mapping[str, str]
    """model, adapter -> digest of its manifest."""
    context_tokens: int
    """Longest question and answer together."""
    senses: tuple[str, ...] = ("text",)
    """What it reads."""
    makes: tuple[str, ...] = ()
    """Senses of the things that it makes, beside what its task says."""


@dataclass(frozen=True)
class Load:
    """How busy a generator is."""

    running: int = 0
    waiting: int = 0
    cache_used: float = 0.0
    """Share of the cache's pages that hold something needed."""
    tokens_per_s: float = 0.0
    """Said in the last seconds."""
    counters: Mapping[str, float] = field(default_factory=dict)
    """Name -> what has been counted since the start: prompt_tokens, cached_tokens, completion_tokens, steps, preemptions, drafted, accepted, ..."""


class Ticket(Protocol):
    """An answer under way."""

    def cancel(self) -> None:
        """Stop; the last piece comes with finish "cancelled". Harmless where it has ended."""
        ...


Deliver = Callable[[Piece], None]
"""Takes the pieces of one answer, in order, from the generator's thread; must not block."""


def stream(generator: Generator, ask: Ask) -> Pieces[Piece]:
    """The pieces of an answer as they come; closed early, the answer is cancelled.

    Raises:
        BedplateError: the answer failed on the way.
    """
    pieces: queue.SimpleQueue[Piece] = queue.SimpleQueue()
    ticket = generator.submit(ask, pieces.put)
    try:
        while True:
            piece = pieces.get()
            if piece.error is not None:
                raise piece.error
            yield piece
            if piece.last:
                return
    finally:
        ticket.cancel()


def whole(generator: Generator, ask: Ask) -> list[str]:
    """The text of every choice, once all is said."""
    said = [""] * ask.sampling.n
    for piece in stream(generator, ask):
        said[piece.choice] += piece.text
    return said
