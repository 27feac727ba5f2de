"""Calls of functions in what a model says, while it says them: Hermes' <tool_call> ... </tool_call>, or an answer that is nothing but JSON.

    reader = Calls(tools)
    reader.push(text) -> Heard(text, calls)      # what is no valid call stays text; white space beside a call is none
    reader.end()

Where a call is required the answer is constrained: `form(tools, choice)` is the form to ask for.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from bedplate.core.errors import ConfigError, did_you_mean
from bedplate.core.generation import Form, Tool, ToolCall

OPEN, CLOSE = "<tool_call>", "</tool_call>"
MOST_CHARACTERS = 100_000
"""Of one call; longer is text."""


class Heard(NamedTuple):
    """What came out of a stretch of text."""

    text: str = ""
    calls: tuple[ToolCall, ...] = ()


class Calls:
    """Reads calls from text that comes in pieces.

    Args:
        tools: what may be called; a call of anything else is text.
        name: gives each call its id.
    """

    def __init__(self, tools: Sequence[Tool], name: Callable[[], str] = lambda: f"call_{secrets.token_hex(12)}") -> None:
        self._known = {tool.name for tool in tools}
        self._name = name
        self._held = ""
        self._began = False
        """Whether anything but white space has come."""
        self._beside = False
        """Whether nothing but white space has come since a call."""
        self._json: _Whole | None = None

    def push(self, text: str) -> Heard:
        """The next stretch."""
        if not self._began and (stripped := (self._held + text).lstrip()):
            self._began = True
            if stripped[0] in "{[":
                self._json = _Whole()
        if self._json is not None:
            return self._plain(text)
        self._held += text
        return self._marked() if self._began else Heard()

    def end(self) -> Heard:
        """Nothing follows: a call that was begun counts if it is whole but for its closing mark."""
        held, self._held = self._held, ""
        if self._json is not None or held.lstrip().startswith(OPEN):
            calls = self._read(held.strip().removeprefix(OPEN))
            if calls:
                return Heard("", calls)
        return Heard() if self._beside and not held.strip() else Heard(held)

    def _plain(self, text: str) -> Heard:
        """An answer that began as JSON: held until it is whole."""
        assert self._json is not None
        end = self._json.push(text)
        self._held += text
        if end is None and len(self._held) <= MOST_CHARACTERS:
            return Heard()
        self._json = None
        cut = len(self._held) - (len(text) - end) if end is not None else 0
        calls = self._read(self._held[:cut]) if cut else ()
        if not calls:
            return self._marked()
        self._held, self._beside = self._held[cut:], True
        rest = self._marked()
        return Heard(rest.text, calls + rest.calls)

    def _marked(self) -> Heard:
        """Text with marked calls in it: everything leaves that cannot belong to one."""
        said: list[str] = []
        calls: list[ToolCall] = []
        while True:
            start = self._held.find(OPEN)
            if start < 0:
                keep = len(self._held) - _beginning(self._held, OPEN)
                keep = len(self._held[:keep].rstrip())  # white space may turn out to stand before a call
                self._say(self._held[:keep], said)
                self._held = self._held[keep:]
                break
            end = self._held.find(CLOSE, start)
            if end < 0:
                self._say(self._held[:start].rstrip(), said)
                self._held = self._held[len(self._held[:start].rstrip()) :]
                if len(self._held) > MOST_CHARACTERS:
                    self._say(self._held, said)
                    self._held = ""
                break
            found = self._read(self._held[start + len(OPEN) : end])
            if found:
                self._say(self._held[:start].rstrip(), said)
                calls += found
                self._beside = True
            else:
                self._say(self._held[: end + len(CLOSE)], said)
            self._held = self._held[end + len(CLOSE) :]
        return Heard("".join(said), tuple(calls))

    def _say(self, text: str, said: list[str]) -> None:
        if self._beside:
            text = text.lstrip()
        if text:
            self._beside = False
            said.append(text)

    def _read(self, text: str) -> tuple[ToolCall, ...]:
        """The calls that a JSON text holds, all valid; else none."""
        try:
            tree = json.loads(text)
        except (ValueError, RecursionError):
            return ()
        calls = [self._call(one) for one in (tree if isinstance(tree, list) else [tree])]
        return tuple(call for call in calls if call is not None) if all(calls) else ()

    def _call(self, tree: Any) -> ToolCall | None:
        if not isinstance(tree, Mapping) or not isinstance(tree.get("name"), str) or tree["name"] not in self._known:
            return None
        arguments = tree.get("arguments", tree.get("parameters", {}))
        if isinstance(arguments, str):  # some models write JSON in JSON
            try:
                arguments = json.loads(arguments)
            except (ValueError, RecursionError):
                return None
        if not isinstance(arguments, Mapping):
            return None
        return ToolCall(self._name(), tree["name"], json.dumps(arguments, ensure_ascii=False))


class _Whole:
    """Finds where a JSON object or list that comes in pieces ends."""

    def __init__(self) -> None:
        self._depth = 0
        self._quoted = self._escaped = False

    def push(self, text: str) -> int | None:
        """The place behind its end in this piece; None: it is not whole yet."""
        for at, letter in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif self._quoted:
                self._escaped, self._quoted = letter == "\\", letter != '"'
            elif letter == '"':
                self._quoted = True
            elif letter in "{[":
                self._depth += 1
            elif letter in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    return at + 1
        return None


def form(tools: Sequence[Tool], choice: str) -> Form | None:
    """What an answer must look like for a choice of tools; None: nothing is required.

    Args:
        tools: what may be called.
        choice: auto, none, required, or the name of one tool.
    Raises:
        ConfigError: the choice names no tool.
    """
    if choice in ("auto", "none"):
        return None
    if not tools:
        raise ConfigError(f"tool_choice is {choice!r}, but no tools were given", "give tools, or leave the choice out")
    wanted = tools if choice == "required" else [tool for tool in tools if tool.name == choice]
    if not wanted:
        raise ConfigError(f"there is no tool {choice!r}", did_you_mean(choice, [tool.name for tool in tools]))
    definitions: dict[str, Any] = {}
    kinds = [_kind(tool, number, definitions) for number, tool in enumerate(wanted)]
    schema: dict[str, Any] = kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
    return Form(schema={**schema, "$defs": definitions} if definitions else schema)


def _kind(tool: Tool, number: int, definitions: dict[str, Any]) -> dict[str, Any]:
    """The schema of a call of one tool; its own definitions move to the root under other names."""
    parameters: dict[str, Any] = {"type": "object", **tool.parameters}
    for keyword in ("$defs", "definitions"):
        for name, inner in dict(parameters.pop(keyword, {})).items():
            definitions[f"{number}.{name}"] = _moved(inner, number)
    arguments = _moved(parameters, number)
    properties = {"name": {"const": tool.name}, "arguments": arguments}
    return {"type": "object", "properties": properties, "required": ["name", "arguments"], "additionalProperties": False}


def _moved(value: Any, number: int, depth: int = 0) -> Any:
    if depth > 100:
        raise ConfigError("a tool's parameters are more than 100 levels deep", "give a flatter schema")
    if isinstance(value, Mapping):
        found = {key: _moved(inner, number, depth + 1) for key, inner in value.items()}
        reference = found.get("$ref")
        for root in ("#/$defs/", "#/definitions/"):
            if isinstance(reference, str) and reference.startswith(root):
                found["$ref"] = f"#/$defs/{number}.{reference.removeprefix(root)}"
        return found
    return [_moved(inner, number, depth + 1) for inner in value] if isinstance(value, (list, tuple)) else value


def _beginning(text: str, mark: str) -> int:
    """Length of the longest end of a text with which the mark begins."""
    return next((k for k in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:k])), 0)
