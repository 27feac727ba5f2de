"""Tokens as words while they come: whole characters only, nothing of a stop string, and each token's numbers with its text.

    words = Words(encoder, stops=("\\n\\n",))
    said = words.push(token)        # Said(text, logprobs, stopped): what may leave now
    said = words.end()              # the rest
"""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from bedplate.core.generation import TokenLogprob
from bedplate.data.tokenizer import Encoder

WINDOW_TOKENS = 16
"""Where a tokenizer is not made of bytes: tokens that may make a character, at most."""


class Said(NamedTuple):
    """What may leave now."""

    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    """Of the tokens whose text has left."""
    stopped: bool = False
    """A stop string is complete; nothing follows."""


class Decoder(Protocol):
    """Tokens to text, one by one."""

    def push(self, token: int) -> str:
        """What the token completes: whole characters only."""
        ...

    def end(self) -> str:
        """What is left; a character that never became whole reads as U+FFFD, as it does when all tokens are decoded at once."""
        ...


def decoder(encoder: Encoder) -> Decoder:
    """The one that suits a tokenizer."""
    table = encoder.token_bytes
    return ByWindow(encoder) if table is None else ByBytes(table)


class ByBytes:
    """For byte-level tokenizers: a table and Python's own decoder, so each token costs the same."""

    def __init__(self, table: Sequence[bytes]) -> None:
        self._table = table
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        return self._utf8.decode(self._table[token]) if token < len(self._table) else ""  # a model may have more numbers than its tokenizer has names

    def end(self) -> str:
        return self._utf8.decode(b"", True)


class ByWindow:
    """For other tokenizers: the new tokens are decoded behind the last ones that made whole characters, and what those say alone is taken off."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._before: list[int] = []
        self._new: list[int] = []

    def push(self, token: int) -> str:
        self._new.append(token)
        text = self._told()
        if text.endswith("\ufffd") and len(self._new) < WINDOW_TOKENS:
            return ""
        self._before, self._new = self._new, []
        return text

    def end(self) -> str:
        return self._told() if self._new else ""

    def _told(self) -> str:
        before, whole = self._text(self._before), self._text(self._before + self._new)
        return whole[len(before) :]

    def _text(self, ids: list[int]) -> str:
        return str(self._encoder.whole.decode(ids, skip_special_tokens=False)) if ids else ""


class Stops:
    """Text up to the first stop string that is complete; what may become one is held back.

    Each string is matched as it comes, a step a character. Where two are complete at once, the one that began earlier counts.
    Source: Knuth, Morris, Pratt, Fast Pattern Matching in Strings (1977).
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._borders = [_borders(stop) for stop in self._stops]
        self._matched = [0] * len(self._stops)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """(what may leave, whether a stop string is complete)."""
        if not self._stops:
            return text, False
        for at, letter in enumerate(text):
            longest = 0
            for number, (stop, borders) in enumerate(zip(self._stops, self._borders)):
                k = self._matched[number]
                while k and letter != stop[k]:
                    k = borders[k - 1]
                k += letter == stop[k]
                if k == len(stop):
                    longest = max(longest, k)
                    k = borders[k - 1]
                self._matched[number] = k
            if longest:
                whole = self._held + text[: at + 1]
                self._held = ""
                return whole[: len(whole) - longest], True
        whole = self._held + text
        keep = len(whole) - max(self._matched)
        self._held = whole[keep:]
        return whole[:keep], False

    def end(self) -> str:
        """What was held back."""
        held, self._held = self._held, ""
        return held


class Held:
    """Text behind which stop strings are looked for; the numbers of a token leave with the last of its text."""

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._stops = Stops(stops)
        self._waiting: deque[tuple[int, TokenLogprob]] = deque()
        """(characters said with its own, numbers) of each token whose text has not left."""
        self._came = self._left = 0

    def push(self, text: str, logprobs: Sequence[TokenLogprob] = ()) -> Said:
        """The next stretch.

        Args:
            text: of it.
            logprobs: of the tokens that end in it, where they were asked for.
        """
        self._came += len(text)
        for number in logprobs:
            self._waiting.append((self._came, number))
        free, stopped = self._stops.push(text)
        return self._leave(free, stopped)

    def end(self, text: str = "") -> Said:
        """Nothing follows this stretch."""
        self._came += len(text)
        free, stopped = self._stops.push(text)
        return self._leave(free, True) if stopped else self._leave(free + self._stops.end(), False, last=True)

    def _leave(self, text: str, stopped: bool, last: bool = False) -> Said:
        self._left += len(text)
        gone: list[TokenLogprob] = []
        while self._waiting and (last or self._waiting[0][0] <= self._left):
            gone.append(self._waiting.popleft()[1])
        return Said(text, tuple(gone), stopped)


class Words:
    """Tokens to text with stop strings."""

    def __init__(self, encoder: Encoder, stops: Sequence[str] = ()) -> None:
        self._decoder, self._held = decoder(encoder), Held(stops)

    def push(self, token: int, logprob: TokenLogprob | None = None) -> Said:
        """The next token.

        Args:
            token: its id.
            logprob: its numbers, where they were asked for.
        """
        return self._held.push(self._decoder.push(token), () if logprob is None else (logprob,))

    def end(self) -> Said:
        """No token follows."""
        return self._held.end(self._decoder.end())


def _borders(pattern: str) -> list[int]:
    """Of each beginning of a pattern: its longest proper beginning that is its end too."""
    borders = [0] * len(pattern)
    k = 0
    for at in range(1, len(pattern)):
        while k and pattern[at] != pattern[k]:
            k = borders[k - 1]
        k += pattern[at] == pattern[k]
        borders[at] = k
    return borders
