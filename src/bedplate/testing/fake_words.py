"""What the fake generator says: a vocabulary of bytes and words, and texts of a form that is asked, all a pure function of what they are drawn for."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

from bedplate.core.errors import ConfigError
from bedplate.core.generation import Ask

WORDS = (
    " the", " quiet", " river", " carries", " small", " boats", " past", " stone", " bridges", " while",
    " children", " count", " lamps", " and", " birds", " return", " before", " winter", " rain",
)  # fmt: skip
"""Tokens from 256 on; those before are bytes."""

_CUT = re.compile("(" + "|".join(map(re.escape, sorted(WORDS, key=len, reverse=True))) + ")")


def encode(text: str) -> tuple[int, ...]:
    """Token ids of a text."""
    ids: list[int] = []
    for stretch in _CUT.split(text):
        ids += [256 + WORDS.index(stretch)] if stretch in WORDS else list(stretch.encode("utf-8", "replace"))
    return tuple(ids)


def decode(ids: Sequence[int]) -> str:
    """The text of token ids."""
    return b"".join(WORDS[i - 256].encode() if i >= 256 else bytes((i,)) for i in ids).decode("utf-8", "replace")


class Draw:
    """Numbers that are a function of what they are drawn for."""

    def __init__(self, *about: str) -> None:
        self._state = hashlib.sha256("\x00".join(about).encode("utf-8", "replace")).digest()

    def below(self, most: int) -> int:
        self._state = hashlib.sha256(self._state).digest()
        return int.from_bytes(self._state[:8], "big") % most

    def hex(self, length: int) -> str:
        self._state = hashlib.sha256(self._state).digest()
        return self._state.hex()[:length]


def formed(ask: Ask, draw: Draw) -> str:
    """A text of the form that is asked."""
    form = ask.form
    assert form is not None
    if form.choice:
        return form.choice[draw.below(len(form.choice))]
    if form.regex is not None:
        return _matching(form.regex, draw)
    return json.dumps(example(form.schema or {"type": "object", "properties": {"answer": {"type": "string"}}}, draw))


def _matching(regex: str, draw: Draw) -> str:
    """A text that a plain regular expression matches."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            said = _walked(parser.parse(regex), draw)
            if re.fullmatch(regex, said):
                return said
    except (re.error, RecursionError, OverflowError, ValueError, KeyError, Warning):
        pass
    raise ConfigError("the fake makes no text for this regular expression", "use letters, classes, groups, | and repetitions")


def _walked(tree: Any, draw: Draw) -> str:
    out = ""
    for kind, about in tree:
        name = str(kind)
        if name == "LITERAL":
            out += chr(about)
        elif name == "IN":
            first, what = about[draw.below(len(about))]
            out += chr(what[0] + draw.below(what[1] - what[0] + 1)) if str(first) == "RANGE" else chr(what) if str(first) == "LITERAL" else _CLASSES[str(what)]
        elif name in ("MAX_REPEAT", "MIN_REPEAT"):
            fewest, _, inner = about
            out += "".join(_walked(inner, draw) for _ in range(min(max(1, fewest), 1000)))
        elif name == "SUBPATTERN":
            out += _walked(about[3], draw)
        elif name == "BRANCH":
            out += _walked(about[1][draw.below(len(about[1]))], draw)
        elif name == "ANY":
            out += "x"
        elif name != "AT":
            raise ValueError(name)
    return out


_CLASSES = {"CATEGORY_DIGIT": "7", "CATEGORY_WORD": "w", "CATEGORY_SPACE": " "}


def example(schema: Mapping[str, Any], draw: Draw, depth: int = 0) -> Any:
    """A value that follows a plain JSON schema."""
    if depth > 20:
        raise ConfigError("the schema is nested more than 20 deep", "flatten it")
    if "const" in schema:
        return schema["const"]
    if options := schema.get("enum"):
        return options[draw.below(len(options))]
    if alternatives := schema.get("anyOf") or schema.get("oneOf"):
        return example(alternatives[0], draw, depth + 1)
    kind = schema.get("type", "object" if "properties" in schema else "string")
    if isinstance(kind, list):
        kind = kind[0]
    if kind == "object":
        return {name: example(inner, draw, depth + 1) for name, inner in schema.get("properties", {}).items()}
    if kind == "array":
        return [example(schema.get("items", {"type": "string"}), draw, depth + 1) for _ in range(schema.get("minItems", 2))]
    if kind == "integer":
        return schema.get("minimum", 0) + draw.below(10)
    if kind == "number":
        return schema.get("minimum", 0) + draw.below(100) / 10
    if kind == "boolean":
        return bool(draw.below(2))
    return None if kind == "null" else WORDS[draw.below(len(WORDS))].strip()
