"""`bedplate chat`: talk to a model, with an adapter or without."""

from __future__ import annotations

import json
import sys
from collections.abc import Generator
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bedplate.cli.app import Here, ModelFolder

if TYPE_CHECKING:
    from bedplate.infer.conversation import Conversation

HELP = """/help                  this
/set                   how answers are drawn, and /set temperature=0.7 changes it (max_tokens, temperature, top_p, seed)
/adapter FOLDER        answer with an adapter; /adapter none: as the base does
/system TEXT           what the model is told first; without a text: nothing
/again                 another answer to the last question
/clear                 forget the conversation
/save FILE             write the conversation as a line of JSONL, which `bedplate adapt` can learn from
/quit                  leave (also Ctrl-D); Ctrl-C stops an answer"""


def chat(
    model: ModelFolder,
    *,
    adapter: Path | None = None,
    system: str = "",
    max_tokens: int = 512,
    temperature: float = 0.0,
    top_p: float = 0.95,
    seed: int = 0,
    console: Here,
) -> None:
    """Talk to a model. Questions come from the terminal, or a line each from a pipe.

    Args:
        model: a model folder.
        adapter: a folder that `bedplate adapt --task generate` made for it.
        system: what the model is told first.
        max_tokens: longest answer.
        temperature: 0 takes the likeliest token.
        top_p: only the likeliest tokens that together have this probability.
        seed: of the draws.
    """
    from bedplate.core.errors import BedplateError
    from bedplate.data.chat import Message
    from bedplate.infer.conversation import Conversation, Sampling

    sampling = Sampling(max_tokens, temperature, top_p, seed)
    talk = Conversation(_base(model, adapter), [Message("system", system)] if system else [], sampling)
    asked_by_hand = sys.stdin.isatty()
    console.say(f"{model} answers {_by(adapter)}." + (" /help shows what else there is." if asked_by_hand else ""))
    answers: list[dict[str, Any]] = []

    def answer(pieces: Generator[str]) -> None:
        try:
            console.stream(pieces)
        except KeyboardInterrupt:
            console.say("stopped")
        finally:
            pieces.close()  # keeps what was said
        if talk.forgotten:
            console.say(f"the oldest {talk.forgotten} turns no longer fit and were left out")
        rate = f", {talk.tokens / talk.seconds:.1f} tokens/s" if talk.seconds else ""
        console.say(f"({talk.tokens} tokens{rate}, the first after {talk.first_s:.2f} s)")
        answers.append({"answer": talk.turns[-1].content, "tokens": talk.tokens, "seconds": round(talk.seconds, 3), "first_s": round(talk.first_s, 3)})

    while (line := _read(asked_by_hand)) is not None:
        if not (line := line.strip()):
            continue
        word, _, rest = line.partition(" ")
        try:
            if not line.startswith("/"):
                answer(talk.ask(line))
            elif word in ("/quit", "/exit"):
                break
            elif word == "/again":
                answer(talk.again())
            elif word == "/adapter":
                chosen = None if rest.strip() in ("", "none") else Path(rest.strip())
                talk = Conversation(_base(model, chosen), talk.turns, talk.sampling)
                console.say(f"answers come {_by(chosen)}")
            else:
                console.say(_command(talk, word, rest.strip()))
        except BedplateError as error:  # a slip of the hand does not end a conversation
            if not asked_by_hand:
                raise
            console.error(error)
    console.data({"model": str(model), "adapter": str(adapter) if adapter else None, "answers": answers})


def _base(model: Path, adapter: Path | None) -> Any:
    """The base, with the adapter in it."""
    from bedplate.adapt.base import Base
    from bedplate.core.errors import ConfigError
    from bedplate.infer.worker import Worker

    if adapter is None:
        return Base.load(model)
    worker = Worker.load(model, adapter)
    if worker.task.name != "generate":
        raise ConfigError(f"{adapter} learned to {worker.task.name}, not to talk", f"ask it with `bedplate predict {model} {adapter} FILE`")
    return worker.base


def _by(adapter: Path | None) -> str:
    return f"with the adapter {adapter}" if adapter else "without an adapter, as the base does"


def _command(talk: Conversation, word: str, rest: str) -> str:
    """Do what a line that starts with / asks for; what to say about it."""
    from bedplate.core.errors import ConfigError, did_you_mean
    from bedplate.core.files import write_text
    from bedplate.data.chat import Message

    if word == "/help":
        return HELP
    if word == "/set":
        if rest:
            name, _, value = rest.partition("=")
            kinds = {field.name: type(getattr(talk.sampling, field.name)) for field in fields(talk.sampling)}
            if name.strip() not in kinds:
                raise ConfigError(f"there is nothing called {name.strip()!r} to set", did_you_mean(name.strip(), kinds))
            try:
                talk.sampling = replace(talk.sampling, **{name.strip(): kinds[name.strip()](value)})
            except ValueError as error:
                raise ConfigError(f"{value!r} is no number", f"/set {name.strip()}={getattr(talk.sampling, name.strip())}") from error
        return ", ".join(f"{field.name}={getattr(talk.sampling, field.name)}" for field in fields(talk.sampling))
    if word == "/system":
        talk.turns = [*([Message("system", rest)] if rest else []), *(turn for turn in talk.turns if turn.role != "system")]
        return "told first: " + (rest or "nothing")
    if word == "/clear":
        talk.turns = [turn for turn in talk.turns if turn.role == "system"]
        return "forgotten"
    if word == "/save":
        if not rest:
            raise ConfigError("no file is named", "/save conversation.jsonl")
        write_text(Path(rest), json.dumps({"messages": [turn._asdict() for turn in talk.turns]}, ensure_ascii=False) + "\n")
        return f"{len(talk.turns)} turns in {rest}"
    known = ("/help", "/set", "/adapter", "/system", "/again", "/clear", "/save", "/quit")
    raise ConfigError(f"there is no {word}", did_you_mean(word, known))


def _read(by_hand: bool) -> str | None:
    """The next line; None at the end."""
    if by_hand:
        import readline  # noqa: F401 - arrows and history at the prompt
    try:
        return input("> ") if by_hand else input()
    except EOFError:
        return None
    except KeyboardInterrupt:
        return None if not by_hand else ""

