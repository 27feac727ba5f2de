"""`bedplate chat`: talk to a model, with an adapter or without."""

from __future__ import annotations

import json
import sys
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bedplate.cli.app import Here, ModelFolder

if TYPE_CHECKING:
    from bedplate.core.console import Console
    from bedplate.infer.conversation import Conversation
    from bedplate.infer.speakers import Speakers

HELP = """/help                  this
/set                   how answers are drawn, and /set temperature=0.7 changes it (max_tokens, temperature, top_k, top_p, min_p, seed, penalties)
/adapter FOLDER        answer with an adapter; /adapter none: as the base does
/system TEXT           what the model is told first; without a text: nothing
/again                 another answer to the last question
/clear                 forget the conversation
/save FILE             add the conversation to FILE as a line of JSONL, which `bedplate adapt` can learn from
/quit                  leave (also Ctrl-D); Ctrl-C stops an answer"""
SETTINGS = ("max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "seed")
"""Of how answers are drawn, what /set changes."""


def chat(
    model: ModelFolder,
    *,
    adapter: Path | None = None,
    system: str = "",
    max_tokens: int = 512,
    temperature: float = 0.0,
    top_p: float = 0.95,
    seed: int = 0,
    precision: Literal["auto", "float32", "int8", "int4"] = "auto",
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
        precision: of weights; auto: bfloat16 on a GPU, where the compiled trunk can be had int4 if the weights came in 4 bits and int8 if not, else float32.
    """
    from bedplate.core.generation import Sampling
    from bedplate.data.chat import Message
    from bedplate.infer.conversation import Conversation
    from bedplate.infer.engine_settings import EngineSettings
    from bedplate.infer.speakers import Speakers

    sampling = Sampling(max_tokens, temperature, top_p=top_p, seed=seed)
    with Speakers(model, EngineSettings(precision=precision, most_running=1)) as speakers:
        talk = Conversation(*speakers.choose(adapter), [Message("system", system)] if system else [], sampling)
        runner = speakers.engine.computed_by
        asked_by_hand = sys.stdin.isatty()
        console.say(f"{model} answers {_by(adapter)} ({runner})." + (" /help shows what else there is." if asked_by_hand else ""))
        answers = _talk(speakers, talk, asked_by_hand, console)
    console.data({"model": str(model), "adapter": str(adapter) if adapter else None, "runner": runner, "answers": answers})


def _talk(speakers: Speakers, talk: Conversation, asked_by_hand: bool, console: Console) -> list[dict[str, Any]]:
    """Answer line by line; every answer with what it took."""
    from bedplate.core.errors import BedplateError

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
                talk.generator, talk.worker = speakers.choose(chosen)
                console.say(f"answers come {_by(chosen)} ({speakers.engine.runner.name})")
            else:
                console.say(_command(talk, word, rest.strip()))
        except BedplateError as error:  # a slip of the hand does not end a conversation
            if not asked_by_hand:
                raise
            console.error(error)
    return answers


def _by(adapter: Path | None) -> str:
    return f"with the adapter {adapter}" if adapter else "without an adapter, as the base does"


def _command(talk: Conversation, word: str, rest: str) -> str:
    """Do what a line that starts with / asks for; what to say about it."""
    from bedplate.core.errors import ConfigError, did_you_mean
    from bedplate.core.files import add_line
    from bedplate.data.chat import Message

    if word == "/help":
        return HELP
    if word == "/set":
        if rest:
            name, _, value = rest.partition("=")
            kinds = {known: type(getattr(talk.sampling, known)) for known in SETTINGS}
            if name.strip() not in kinds:
                raise ConfigError(f"there is nothing called {name.strip()!r} to set", did_you_mean(name.strip(), kinds))
            try:
                talk.sampling = replace(talk.sampling, **{name.strip(): kinds[name.strip()](value)})
            except ValueError as error:
                raise ConfigError(f"{value!r} is no number", f"/set {name.strip()}={getattr(talk.sampling, name.strip())}") from error
        return ", ".join(f"{known}={getattr(talk.sampling, known)}" for known in SETTINGS)
    if word == "/system":
        talk.turns = [*([Message("system", rest)] if rest else []), *(turn for turn in talk.turns if turn.role != "system")]
        return "told first: " + (rest or "nothing")
    if word == "/clear":
        talk.turns = [turn for turn in talk.turns if turn.role == "system"]
        return "forgotten"
    if word == "/save":
        if not rest:
            raise ConfigError("no file is named", "/save conversation.jsonl")
        if not talk.turns:
            raise ConfigError("nothing was said yet", "ask something first")
        told = [{name: cell for name, cell in turn._asdict().items() if cell or name == "content"} for turn in talk.turns]
        written = add_line(Path(rest), json.dumps({"messages": told}, ensure_ascii=False))
        return f"{len(talk.turns)} turns are line {written} of {rest}"
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
        if by_hand:
            print()  # the next prompt begins a line of its own
        return None if not by_hand else ""

