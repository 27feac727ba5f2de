"""A question as positions: turns through the chat template, pictures, sounds and numbers as units, texts and token ids as they are.

What is seen or heard stands behind the first token, before all that is said of it: so adaptation teaches it (adapt/tasks/generate.py). A worker that
predicts looks at the words of the last turn, and no template; one that ranks at every turn.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bedplate.adapt.base import Base
from bedplate.adapt.encode import Item, compose, said, shorten
from bedplate.adapt.tasks import Task
from bedplate.adapt.tasks.base import NOTHING
from bedplate.adapt.tasks.classify import Classify
from bedplate.adapt.tasks.extract import Extract
from bedplate.adapt.tasks.generate import Generate
from bedplate.adapt.tasks.rank import Rank
from bedplate.core.errors import BedplateError, ConfigError, DataError
from bedplate.core.generation import Ask, Part, Turn
from bedplate.data.chat import Message
from bedplate.data.document import Segment
from bedplate.modality import audio, image, video
from bedplate.modality.sequence import Sequence as Positions

MOST_BYTES = 64 * 1024**2
"""Of one picture, sound or table."""


@dataclass(frozen=True)
class Question:
    """What is asked, as the model reads it."""

    sequences: tuple[Positions, ...]
    """One; several where a worker ranks texts, or reads a long one."""
    text: str = ""
    """The prompt, for an echo."""
    item: Item | None = None
    """What a head predicts of; None: words or a plain vector are asked for."""

    @property
    def positions(self) -> int:
        """Of all sequences."""
        return sum(map(len, self.sequences))


def read(base: Base, task: Task | None, ask: Ask) -> Question:
    """A question as positions.

    Args:
        base: the model with its tokenizer and template.
        task: of the worker that is asked; None: the base itself.
        ask: the question.
    Raises:
        ConfigError: it holds a sense that the model never learned, or tokens that it does not have.
        DataError: a picture, sound or table cannot be read, or the template refuses the turns.
    """
    try:
        if ask.want == "text":
            return _prompt(base, task, ask) if ask.prompt is not None else Question((_conversation(base, task, ask),))
        if isinstance(task, Rank):
            return _pairs(base, task, ask)
        return _look(base, task, ask)
    except BedplateError:
        raise
    except (ValueError, TypeError, OverflowError, MemoryError) as error:  # decoders of pictures and sounds raise many kinds on hostile files
        raise DataError(f"the question cannot be read: {str(error)[:200]}", "send a smaller or an intact file") from error


def ends_of(base: Base, task: Task | None) -> frozenset[int]:
    """Tokens that end an answer of a worker."""
    return frozenset(base.ends.ids.tolist() if _raw(task) else base.template.ends())


def _raw(task: Task | None) -> bool:
    """Whether a worker learned prompts without a chat template."""
    return isinstance(task, Generate) and task.settings.data.template == "raw"


def _prompt(base: Base, task: Task | None, ask: Ask) -> Question:
    if isinstance(ask.prompt, str):
        ids = base.encoder.encode(ask.prompt).astype(np.int64).tolist()
        text = ask.prompt
        if _raw(task) or not ids:  # what stands before every document; without it there would be nothing to read
            ids = [*base.ends.ids.tolist(), *ids]
    else:
        assert ask.prompt is not None
        ids = list(ask.prompt)
        vocabulary = base.model.config.vocab_size
        if unknown := [token for token in ids if not 0 <= token < vocabulary]:
            raise ConfigError(f"the prompt holds token {unknown[0]}", f"tokens go from 0 to {vocabulary - 1}")
        if not ids:
            ids = base.ends.ids.tolist()
        text = base.decode(np.array(ids, np.int64))
    return Question((compose([said(ids, False)], base.model.config),), text)


def _conversation(base: Base, task: Task | None, ask: Ask) -> Positions:
    seen = [_segment(base, part) for turn in ask.turns for part in turn.parts if part.sense != "text"]
    if _raw(task):
        words = "\n\n".join(turn.text for turn in ask.turns)
        return compose([base.ends, *seen, base.words(words)], base.model.config)
    messages = [Message(turn.role, turn.text, turn.tool_calls, turn.tool_call_id) for turn in ask.turns]
    tools = () if ask.tool_choice == "none" else ask.tools
    ids = base.template.ask(messages, base.encoder, tools)
    first = int(len(ids) > 0 and base.ends.ids[0] == ids[0])
    return compose([said(ids[:first], False), *seen, said(ids[first:], False)], base.model.config)


def _look(base: Base, task: Task | None, ask: Ask) -> Question:
    """Something to be looked at: as adaptation looks at it (`Task.look`)."""
    seen: list[Segment] = []
    positions: Positions | None = None
    if isinstance(ask.prompt, tuple):
        if unknown := [token for token in ask.prompt if not 0 <= token < base.model.config.vocab_size]:
            raise ConfigError(f"the prompt holds token {unknown[0]}", f"tokens go from 0 to {base.model.config.vocab_size - 1}")
        words = base.decode(np.array(ask.prompt, np.int64))
        positions = compose([base.ends, said(list(ask.prompt), False), base.ends], base.model.config)
    else:
        last: Sequence[Part] = (Part("text", ask.prompt),) if ask.prompt is not None else _last(ask.turns)
        words = "".join(part.text for part in last)
        seen = [_segment(base, part) for part in last if part.sense != "text"]
        if not words.strip() and not seen:
            raise DataError("there is nothing to look at", "give a text, a picture, a sound or numbers")
    segments = [*([Segment("text", words)] if words.strip() else []), *seen]
    if task is None or isinstance(task, Generate):
        looked = positions if positions is not None else base.look(segments)
        return Question((task.fit(looked) if task is not None else shorten(looked, base.model.config.max_position_embeddings),))
    if isinstance(task, Extract):
        return _words(task, words, seen)
    framed = not isinstance(task, Classify) or task.reads == "mean"  # token ids stand between the marks that a text stands between
    item = task.item(task.fit(positions) if positions is not None and framed else task.look(segments), words)
    return Question(item.sequences, item=item)


def _words(task: Extract, words: str, seen: Sequence[Segment]) -> Question:
    if seen:
        raise ConfigError(f"there is {seen[0].sense}, but the worker finds stretches of texts", "give a text alone")
    item = task.cut(words)
    if not item.words:
        raise DataError("the text holds no word", "give a text of words")
    return Question(item.sequences, item=item)


def _pairs(base: Base, task: Rank, ask: Ask) -> Question:
    """A query and the texts to rank: the first turn, and each that follows."""
    if len(ask.turns) < 2:
        raise ConfigError("a worker that ranks reads a query and texts", "give the query as the first turn, and each text as one more")
    query, *texts = ask.turns
    if other := next((part.sense for turn in texts for part in turn.parts if part.sense != "text"), None):
        raise ConfigError(f"there is {other} among the texts to rank", "only the query may hold what is no text")
    if not all(turn.text.strip() for turn in ask.turns):
        raise DataError("the query or one of the texts is blank", "leave out what says nothing")
    sequences = task.pairs(query.text, [turn.text for turn in texts], [_segment(base, part) for part in query.parts if part.sense != "text"])
    return Question(sequences, item=Item(0, sequences, NOTHING, 1.0))


def _last(turns: Sequence[Turn]) -> Sequence[Part]:
    return turns[-1].parts


def _segment(base: Base, part: Part) -> Segment:
    """A picture, sound or series as the model learned such."""
    present: Mapping[Any, Any] = base.model.config.senses.present()
    spec = present.get(part.sense)
    if spec is None:
        raise ConfigError(f"there is {part.sense}, but the model never learned it", f"it knows text{''.join(f', {name}' for name in present)}")
    if len(part.data) > MOST_BYTES:
        raise ConfigError(f"the {part.sense} has {len(part.data):,} bytes", f"at most {MOST_BYTES:,} are read")
    if part.sense == "image":
        return Segment("image", image.decode(part.data, spec))
    if part.sense == "audio":
        return Segment("audio", audio.decode(part.data, spec))
    if part.sense == "video":
        return Segment("video", video.decode(part.data, spec))
    return Segment("series", numbers(part.data)[-spec.max_points :])


def numbers(data: bytes) -> np.ndarray:
    """The last column of a CSV table, which may begin with a header."""
    try:
        rows = [row for row in csv.reader(io.StringIO(data.decode("utf-8"), newline="")) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"the series is no CSV table: {error}", "send one number a line") from error
    found = []
    for number, row in enumerate(rows):
        try:
            found.append(float(row[-1] or "nan"))
        except ValueError as error:
            if number:
                raise DataError(f"line {number + 1} of the series ends in {row[-1][:40]!r}", "send one number a line") from error
    if not np.isfinite(found).any():
        raise DataError("the series holds no number", "send one number a line")
    return np.array(found, np.float32)
