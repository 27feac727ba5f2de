"""Chat templates: a conversation as the very tokens that a model sees, and which of them the assistant said.

What people wrote is never read as a control token: names of special tokens inside of a message are hidden from the template and written as
plain text afterwards. The template itself runs in modality/chat_template.py.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from bedplate.core.errors import DataError
from bedplate.core.generation import Tool, ToolCall
from bedplate.data.tokenizer import Encoder
from bedplate.modality.chat_template import CHATML, render, takes_tools, template_of


class Message(NamedTuple):
    """One turn of a conversation."""

    role: str
    """system, user, assistant, or what else the template knows."""
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    """What the assistant called in it."""
    tool_call_id: str = ""
    """Of a tool's turn: which call it answers."""


class Encoded(NamedTuple):
    """A conversation as tokens."""

    ids: Int[np.ndarray, "t"]
    said: Bool[np.ndarray, "t"]
    """Whether the assistant said it: its words and the mark that ends its turn."""


@dataclass(frozen=True)
class ChatTemplate:
    """A template with the special tokens that it may write."""

    source: str
    special: Mapping[str, int]
    """Name -> id of every special token of the tokenizer."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """What the template may use by name: bos_token, eos_token."""

    @classmethod
    def of(cls, folder: Path) -> ChatTemplate:
        """The template of a model folder: chat_template.jinja, else the one in tokenizer_config.json, else ChatML.

        Raises:
            DataError: there is no tokenizer.json, or a file is damaged.
        """
        special = special_tokens(_json(folder / "tokenizer.json", required=True))
        config = _json(folder / "tokenizer_config.json")
        source = template_of(folder)
        end = next((name for name in ("<|endoftext|>", "</s>") if name in special), "")
        named = {key: _name(config.get(key)) or "" for key in ("bos_token", "eos_token", "unk_token", "pad_token")}
        if source is not None:
            return cls(source, special, named)
        return cls(CHATML, special, {**named, "bos_token": named["bos_token"] or end, "eos_token": named["eos_token"] or end})

    @property
    def digest(self) -> str:
        """Names the template in what was made with it."""
        from bedplate.core.files import sha256_bytes

        return sha256_bytes(self.source.encode())

    def render(self, messages: Sequence[Message], ask: bool = False, tools: Sequence[Tool] = ()) -> str:
        """The conversation as text.

        Args:
            messages: its turns in order.
            ask: end with the beginning of the assistant's next turn.
            tools: functions that may be called: written by the template where it knows how, else as a paragraph of the system's turn.
        Raises:
            DataError: the template refuses these messages, or is damaged.
        """
        return self._shown(self._render(messages, ask, tools))

    def ask(self, messages: Sequence[Message], encoder: Encoder, tools: Sequence[Tool] = ()) -> Int[np.ndarray, "t"]:
        """The conversation up to the beginning of the assistant's next turn, as tokens: those of `encode` where the template allows it.

        Args:
            messages: its turns in order.
            encoder: the model's.
            tools: functions that may be called.
        Raises:
            DataError: the template refuses these messages, or is damaged.
        """
        try:
            return self.encode(messages, encoder, True, tools).ids
        except DataError:  # a template that leaves out earlier thoughts rewrites turns; what it writes now is what the model knows
            return self._tokens(self._render(messages, True, tools), encoder)

    def encode(self, messages: Sequence[Message], encoder: Encoder, ask: bool = False, tools: Sequence[Tool] = ()) -> Encoded:
        """The conversation as tokens, with the assistant's marked. A prompt and the answer to it are encoded apart, as when answering.

        Args:
            messages: its turns in order.
            encoder: the model's.
            ask: end with the beginning of the assistant's next turn.
            tools: functions that may be called.
        Raises:
            DataError: the template refuses these messages or rewrites earlier turns, so that nobody can tell what the assistant said.
        """
        whole = self._render(messages, ask, tools)
        spans = [self._span(messages, number, whole, tools) for number, message in enumerate(messages) if message.role == "assistant"]
        ids: list[np.ndarray] = []
        said: list[np.ndarray] = []
        at = 0
        for start, end in [*spans, (len(whole), len(whole))]:
            for text, mine in ((whole[at:start], False), (whole[start:end], True)):
                part = self._tokens(text, encoder)
                ids.append(part)
                said.append(np.full(len(part), mine))
            at = end
        return Encoded(np.concatenate(ids), np.concatenate(said))

    def ends(self) -> list[int]:
        """Ids of the tokens that end a turn: the mark behind what an assistant says, and the end of the text."""
        asked = self._render([Message("user", "a")], ask=True)
        whole = self._render([Message("user", "a"), Message("assistant", "b")], ask=False)
        answer = whole[len(asked) :] if whole.startswith(asked) else ""
        marks = self._pattern().findall(answer)
        return sorted({self.special[name] for name in (*marks[:1], self.variables.get("eos_token", ""), "<|endoftext|>") if name in self.special})

    def _span(self, messages: Sequence[Message], number: int, whole: str, tools: Sequence[Tool] = ()) -> tuple[int, int]:
        """Where in the text the assistant's turn stands: from behind its opening to the last mark that closes it."""
        before, after = self._render(messages[:number], True, tools), self._render(messages[: number + 1], False, tools)
        if not after.startswith(before) or not whole.startswith(after.rstrip()):
            raise DataError(
                f"the chat template writes turn {number + 1} in another way once more turns follow",
                "give conversations that end with the assistant's only turn, or a chat_template.jinja without such rules",
            )
        closing = [match.end() for match in self._pattern().finditer(after, len(before))]
        return len(before), closing[-1] if closing else len(after.rstrip())

    def _tokens(self, text: str, encoder: Encoder) -> Int[np.ndarray, "t"]:
        parts: list[np.ndarray] = [np.zeros(0, np.int64)]
        at = 0
        for match in self._pattern().finditer(text):
            parts += [encoder.encode(self._shown(text[at : match.start()])), np.array([self.special[match[0]]])]
            at = match.end()
        parts.append(encoder.encode(self._shown(text[at:])))
        return np.concatenate([part.astype(np.int64) for part in parts])

    def _render(self, messages: Sequence[Message], ask: bool, tools: Sequence[Tool] = ()) -> str:
        if tools and not self.takes_tools:
            messages, tools = with_tools(messages, tools), ()
        return render(self.source, [self._turn(message) for message in messages], ask, self.variables, [self._all_hidden(tool.as_openai()) for tool in tools])

    def _turn(self, message: Message) -> dict[str, Any]:
        """A turn as the template gets it. What it has no place for is written into the text, as it is where tools came as a paragraph."""
        knows_calls, knows_answers = "tool_calls" in self.source, bool(re.search("[\"']tool[\"']", self.source))
        content, role = message.content, message.role
        if message.tool_calls and not knows_calls:
            content = "\n".join([*([content] if content else []), *map(written, message.tool_calls)])
        if role == "tool" and not knows_answers:
            role, content = "user", f"<tool_response>\n{content}\n</tool_response>"
        turn: dict[str, Any] = {"role": self._hidden(role), "content": self._hidden(content)}
        if message.tool_calls and knows_calls:
            turn["tool_calls"] = self._all_hidden(
                [{"id": call.id, "type": "function", "function": {"name": call.name, "arguments": _arguments(call)}} for call in message.tool_calls]
            )
        if message.tool_call_id:
            turn["tool_call_id"] = self._hidden(message.tool_call_id)
        return turn

    @functools.cached_property
    def takes_tools(self) -> bool:
        """Whether the template writes out tools by itself."""
        return takes_tools(self.source)

    def _all_hidden(self, value: Any) -> Any:
        """Every text in a tree hidden."""
        if isinstance(value, str):
            return self._hidden(value)
        if isinstance(value, Mapping):
            return {self._hidden(str(name)): self._all_hidden(cell) for name, cell in value.items()}
        return [self._all_hidden(cell) for cell in value] if isinstance(value, (list, tuple)) else value

    def _pattern(self) -> re.Pattern[str]:
        names = sorted(self.special, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, names)) or r"(?!)")

    def _hidden(self, text: str) -> str:
        """The text with the names of special tokens replaced by characters that mean nothing."""
        text = text.replace(_OPEN, "").replace(_CLOSE, "")
        numbers = {name: number for number, name in enumerate(self.special)}
        return self._pattern().sub(lambda match: f"{_OPEN}{numbers[match[0]]}{_CLOSE}", text)

    def _shown(self, text: str) -> str:
        names = list(self.special)
        return re.sub(f"{_OPEN}(\\d+){_CLOSE}", lambda match: names[int(match[1])], text)


def with_tools(messages: Sequence[Message], tools: Sequence[Tool]) -> list[Message]:
    """A conversation whose first turn says which functions may be called, and how."""
    listed = "\n".join(json.dumps(tool.as_openai(), ensure_ascii=False) for tool in tools)
    paragraph = (
        f"You may call functions. These are known, each as a JSON schema:\n<tools>\n{listed}\n</tools>\n"
        'To call one, write\n<tool_call>\n{"name": "its name", "arguments": {"argument": "value"}}\n</tool_call>'
    )
    if messages and messages[0].role == "system":
        return [messages[0]._replace(content=f"{messages[0].content}\n\n{paragraph}"), *messages[1:]]
    return [Message("system", paragraph), *messages]


def written(call: ToolCall) -> str:
    """A call as models of Hermes' kind write one."""
    return f'<tool_call>\n{{"name": {json.dumps(call.name, ensure_ascii=False)}, "arguments": {call.arguments or "{}"}}}\n</tool_call>'


def _arguments(call: ToolCall) -> Any:
    """Arguments as a tree: templates write them out themselves."""
    try:
        return json.loads(call.arguments or "{}")
    except (ValueError, RecursionError):
        return call.arguments


_OPEN, _CLOSE = "\ue5f0", "\ue5f1"
"""Private characters around the number of a hidden name."""


def special_tokens(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    """Name -> id of the special tokens in a tokenizer.json's tree."""
    return {entry["content"]: int(entry["id"]) for entry in tokenizer.get("added_tokens", ()) if entry.get("special")}


def _json(path: Path, required: bool = False) -> Any:
    if not path.is_file():
        if required:
            raise DataError(f"{path.parent} has no {path.name}", "give a model folder that brings its tokenizer along")
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged: {error}", "restore the model folder from a copy") from error


def _name(value: Any) -> str | None:
    """A token as tokenizer_config.json writes it: its name, or a table that holds it."""
    return value.get("content") if isinstance(value, dict) else value
