"""What a worker that was adapted to a job says of one thing: a value of the job's own type. The same words for `Worker`, generators and the gateway."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple


class Label(NamedTuple):
    """What a classifying worker says."""

    label: str | None
    """The likeliest label; None where it abstains, or where several labels may hold and none does."""
    labels: tuple[str, ...]
    """All that hold, likeliest first."""
    probability: float
    """Of the likeliest label."""
    probabilities: Mapping[str, float]
    """Of every label, likeliest first."""


class Number(NamedTuple):
    """What a worker that regresses says."""

    value: float
    low: float | None
    """With `high`: where the true number is nine times of ten. None where too few examples were held out to tell."""
    high: float | None


class Vector(NamedTuple):
    """What an embedding worker says, and the base where a vector is asked for."""

    vector: tuple[float, ...]
    """Of length one: the dot product of two is their cosine."""


class Ranking(NamedTuple):
    """What a ranking worker says of a query with its texts."""

    order: tuple[int, ...]
    """Numbers of the texts, counted from 0, the best first."""
    scores: tuple[float, ...]
    """Of each text as it was given; learned from scores, in their unit, else larger is better."""


class Found(NamedTuple):
    """A stretch that a worker found."""

    start: int
    """Its first character, counted from 0."""
    end: int
    """The character behind its last."""
    label: str
    text: str
    probability: float
    """Of its least certain word."""


class Extraction(NamedTuple):
    """What an extracting worker says of a text."""

    spans: tuple[Found, ...]
    """In the order of the text."""


Prediction = Label | Number | Vector | Ranking | Extraction


def as_json(said: Prediction) -> dict[str, Any]:
    """A prediction as a JSON object."""
    plain: dict[str, Any] = _plain(said)
    return plain


def texts_in(said: Prediction) -> Iterator[str]:
    """Every text that whoever asked gets to read."""
    if isinstance(said, Label):
        yield from dict.fromkeys((*((said.label,) if said.label else ()), *said.labels, *said.probabilities))
    elif isinstance(said, Extraction):
        for span in said.spans:
            yield from (span.label, span.text)


def _plain(value: Any) -> Any:
    if hasattr(value, "_asdict"):  # a named tuple; json alone would make a nameless list of it
        return {name: _plain(cell) for name, cell in value._asdict().items()}
    if isinstance(value, Mapping):
        return {str(name): _plain(cell) for name, cell in value.items()}
    return [_plain(cell) for cell in value] if isinstance(value, (list, tuple)) else value
