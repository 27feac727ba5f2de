"""Rule guard: texts that must not pass, as literals and regular expressions in guards.toml; time is linear in the text, whatever the rules.

    [[rules]]
    name = "code words"
    literals = ["Project Nightjar"]

    [[rules]]
    name = "internal hosts"
    on = ["answer"]
    regexes = ['[a-z0-9-]{1,63}\\.corp\\.example']

They are looked for in a text as it is written, and as it is read (plain.py). Patterns run in RE2, which has no backtracking.
Each must have a longest match (`{1,63}`, not `+`): as much of an answer is held back.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from re import _parser as python_parser  # type: ignore[attr-defined]
from typing import Any, Literal

import re2

from bedplate.core.config import load
from bedplate.core.contracts import Verdict
from bedplate.core.errors import ConfigError
from bedplate.serve.guards import ALLOWED, Look
from bedplate.serve.plain import Plain, plain

Where = Literal["prompt", "answer"]
WIDEST_CHARACTERS = 2000


@dataclass(frozen=True)
class RuleSettings:
    """What must not pass."""

    name: str
    """Stands in the audit and, with the reason, in the refusal."""
    reason: str = "the policy does not allow this text"
    """What the one who asked is told; it need not give the rule away."""
    on: tuple[Where, ...] = ("prompt", "answer")
    """Where it is looked for."""
    literals: tuple[str, ...] = ()
    """Texts as they are."""
    regexes: tuple[str, ...] = ()
    """Regular expressions in RE2's syntax, each with a longest match."""
    ignore_case: bool = True
    """Whether capitals do not matter."""

    def __post_init__(self) -> None:
        if not self.literals and not self.regexes:
            raise ConfigError(f"the rule {self.name!r} looks for nothing", "give literals or regexes")
        if any(not literal for literal in self.literals) or not self.on:
            raise ConfigError(f"the rule {self.name!r} has an empty literal or is looked for nowhere", "an empty text is in every text")


@dataclass(frozen=True)
class GuardSettings:
    """guards.toml."""

    rules: tuple[RuleSettings, ...] = field(default_factory=tuple)
    """What must not pass; all rules are looked for."""


class RuleGuard:
    """Refuses a text in which a rule is found.

    Args:
        rules: what must not pass.
    Raises:
        ConfigError: a pattern is malformed, matches nothing at all, or has no longest match.
    """

    def __init__(self, rules: Sequence[RuleSettings]) -> None:
        self._rules = [(rule, _compiled(rule)) for rule in rules]
        # One more for regular expressions, as \b and $ look at the character behind.
        self.reach_characters = max((_widest(rule) + bool(rule.regexes) for rule in rules), default=0)

    def check(self, text: str) -> Verdict:
        """Whether a whole text may pass."""
        return self.look(text, 0, ended=True).verdict

    def look(self, text: str, fresh: int, *, ended: bool) -> Look:
        """Whether what has come may pass, as it is written and as it is read. A match of a regular expression that touches the end is not yet one; all of it is
        held back, as none is longer."""
        text = _encodable(text)
        read = plain(text)
        look = self._look(Plain(text, None, len(text)), fresh, ended)
        if not look.verdict.allowed or read.text == text:
            return look
        also = self._look(read, fresh, ended)
        return Look(also.verdict, min(look.settled, also.settled))

    def _look(self, view: Plain, fresh: int, ended: bool) -> Look:
        length = len(view.text)
        for rule, pattern in self._rules:
            for match in pattern.finditer(view.text):
                if view.span(*match.span())[1] <= fresh:  # where the text was cut, a word seems to begin; what has left was judged when it was whole
                    continue
                if ended or match.end() < length or not rule.regexes:
                    return Look(Verdict(False, rule.reason, rule.name), 0)
        return Look(ALLOWED, view.characters if ended else view.place(max(0, length - self.reach_characters + 1)))


def read(file: Path) -> GuardSettings:
    """The settings of a guards.toml, strict."""
    return load(GuardSettings, path=file).value


def rule_guards(settings: GuardSettings, where: Where) -> tuple[RuleGuard, ...]:
    """The guards for prompts or for answers; none where no rule is."""
    rules = [rule for rule in settings.rules if where in rule.on]
    return (RuleGuard(rules),) if rules else ()


def _compiled(rule: RuleSettings) -> Any:
    options = re2.Options()
    options.case_sensitive = not rule.ignore_case
    options.log_errors = False
    options.never_capture = True
    parts = [re2.escape(_encodable(literal)) for literal in rule.literals]
    for regex in rule.regexes:
        _width(regex, rule.name)
        try:
            re2.compile(regex, options)
        except re2.error as error:
            said = error.args[0].decode(errors="replace") if error.args and isinstance(error.args[0], bytes) else str(error)
            raise ConfigError(f"rule {rule.name!r}: {regex!r} is no pattern: {said}", "patterns are RE2's: no look-around, no back-references") from error
        parts.append(f"(?:{regex})")
    try:
        return re2.compile("|".join(parts), options)
    except re2.error as error:
        raise ConfigError(f"rule {rule.name!r} is too large for one pattern ({len(parts)} parts)", "divide it into several rules") from error


def _widest(rule: RuleSettings) -> int:
    return max([len(literal) for literal in rule.literals] + [_width(regex, rule.name) for regex in rule.regexes])


def _width(regex: str, name: str) -> int:
    """Characters of the longest match."""
    try:
        if "{," in regex:  # RE2 reads it as five letters, Python as a number
            raise ValueError("write {0,n} for {,n}")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            narrow, wide = python_parser.parse(regex).getwidth()
    except (re.error, ValueError, RecursionError, OverflowError, Warning) as error:
        raise ConfigError(f"rule {name!r}: {regex!r} is no pattern: {error}", "see RE2's syntax; classes by name are not taken") from error
    if narrow == 0:
        raise ConfigError(f"rule {name!r}: {regex!r} matches nothing at all, and so every text", "make a part of it required")
    if wide > WIDEST_CHARACTERS:
        raise ConfigError(
            f"rule {name!r}: {regex!r} has no match that is longest (at most {WIDEST_CHARACTERS} characters)", "write {1,60} for +, {0,60} for *"
        )
    return int(wide)


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair, which no UTF-8 has
        return re.sub("[\ud800-\udfff]", "\ufffd", text)
    return text
