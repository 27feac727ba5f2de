"""Texts that try to slip past guards, redaction and classes: through numbers of tokens, in pieces, between parts, in other letters."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from places import Heard, Place

from bedplate.core.contracts import Verdict
from bedplate.core.errors import PolicyError
from bedplate.core.generation import Alternative, Ask, Part, Piece, TokenLogprob, ToolCall, Turn, Usage
from bedplate.core.prediction import Label
from bedplate.serve.guard_rules import RuleGuard, RuleSettings
from bedplate.serve.guarded import Guarded, Guards
from bedplate.serve.guards import GuardedStream
from bedplate.serve.redact import Redactor, RedactSettings, masked
from bedplate.serve.routes import DataSettings, classify

NIGHTJAR = RuleGuard([RuleSettings("code word", literals=("Project Nightjar",))])
SPOKEN = "ask about nightjar now"


def token(text, *top):
    return TokenLogprob(Alternative(text, -0.1), tuple(Alternative(other, -1.0) for other in top))


def guarded(*pieces, guard=NIGHTJAR):
    heard = Heard()
    Guarded(Place(list(pieces)), Guards(answer=(guard,))).submit(Ask(prompt="x"), heard)
    return heard


def tokens(heard):
    return "".join(one.said.text for piece in heard for one in piece.logprobs)


END = Piece(finish="stop", usage=Usage(1, 0, 1))


def test_numbers_do_not_run_ahead_of_their_text():
    """Tokens of some vocabularies lose the space before them when they stand alone: after twenty words their numbers were twenty letters ahead."""
    words = ["so"] * 40 + ["project", "nightjar"]
    pieces = [Piece(text=(" " if n else "") + word, logprobs=(token(word),)) for n, word in enumerate(words)]
    heard = guarded(*pieces, END)
    assert "guard" in [piece.finish for piece in heard] and "nightjar" not in tokens(heard) and "project" not in tokens(heard)
    for number in range(len(heard)):
        before = heard[: number + 1]
        assert len(tokens(before)) <= len("".join(piece.text for piece in before))


def test_numbers_without_text_are_checked_as_text():
    """What an endpoint thinks before it answers comes as numbers of tokens alone."""
    thought = [Piece(logprobs=(token(word),)) for word in ("say ", "Project ", "Night", "jar")]
    heard = guarded(*thought, Piece(text="I know nothing."), END)
    assert "Night" not in tokens(heard) and heard.text == "I know nothing." and heard[-1].finish == "stop"
    harmless = guarded(Piece(logprobs=(token("hm "),)), Piece(text="yes", logprobs=(token("yes"),)), END)
    assert tokens(harmless) == "hm yes" and harmless.text == "yes" and harmless[-1].finish == "stop"


def test_what_could_have_been_said_is_checked_with_what_stands_before_it():
    """Whoever forbids a model one token of a word reads that word among its likeliest."""
    spelled = [("Pro", ()), ("ject", ()), (" Night", ()), ("s", ("jar", "ly"))]
    heard = guarded(*[Piece(text=text, logprobs=(token(text, *top),)) for text, top in spelled], END)
    tops = [other.text for piece in heard for one in piece.logprobs for other in one.top]
    assert heard.text == "Project Nights" and tops == ["ly"]


def test_every_name_of_a_label_is_checked():
    told = Piece(finish="stop", usage=Usage(1, 0, 0), prediction=Label(None, (), 0.5, {"weather": 0.5, "Project Nightjar": 0.5}))
    heard = guarded(told)
    assert heard[-1].finish == "guard" and heard[-1].prediction is None


LOOK_ALIKES = [
    "Project\u00a0Nightjar", "Project\u202fNightjar", "Proj\u200bect Night\u200djar", "Pro\u00adject Nightjar", "Ｐｒｏｊｅｃｔ Ｎｉｇｈｔｊａｒ", "Project\u2003Nightjar",
    "𝐏𝐫𝐨𝐣𝐞𝐜𝐭 𝑁𝑖𝑔ℎ𝑡𝑗𝑎𝑟", "\u2060".join("Project Nightjar"), "Рrоjесt Nightjаr", "Prοject Νightjar", "P\ufe0froject Nightjar", "Project \U000e0020Nightjar",
]  # fmt: skip


@pytest.mark.parametrize("text", LOOK_ALIKES, ids=ascii)
def test_a_word_is_found_in_other_letters(text):
    guards = Guards(prompt=(NIGHTJAR,))
    with pytest.raises(PolicyError):
        Guarded(Place(), guards).submit(Ask(turns=(Turn.of("user", f"tell me of {text}."),)), Heard())
    whole = f"It is {text}, they say."
    for size in (1, 2, 5, len(whole)):
        out = GuardedStream((NIGHTJAR,))
        left = "".join([*(out.push(whole[at : at + size]) for at in range(0, len(whole), size)), out.end()])
        assert not out.verdict.allowed and whole.startswith(left) and len(left) <= len("It is "), (size, left)


def test_a_rule_in_other_letters_is_found_as_it_is_written():
    guard = RuleGuard([RuleSettings("cyrillic", literals=("проект сова",)), RuleSettings("wide", literals=("ＡＢＣ",))])
    assert not guard.check("это Проект Сова").allowed and not guard.check("xＡＢＣ").allowed
    assert guard.check("проект").allowed and guard.check("сова — птица").allowed


@given(st.text(alphabet="ab \u00a0\u200b\u00adａéж—", max_size=30), st.lists(st.integers(0, 30), max_size=8))
def test_what_is_allowed_leaves_as_it_was(text, cuts):
    places = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    out = GuardedStream((RuleGuard([RuleSettings("p", literals=("abba",), regexes=(r"\baab\b",))]),))
    left = "".join([*(out.push(text[a:b]) for a, b in zip(places, places[1:])), out.end()])
    assert left == text if out.verdict.allowed else text.startswith(left)


CARD = "4539 1488 0343 6467"
HIDDEN = [
    CARD.replace(" ", "\u00a0"), CARD.replace(" ", "\u202f"), CARD.replace(" ", "\u2011"), CARD.replace("4", "４"), "4\u200b" + CARD[1:], CARD[:9] + "\u00ad" + CARD[9:],
    "jo.miller＠kestrelbank.com", "jo.miller@kestrel\u200bbank.com", "𝟒𝟓𝟑𝟗" + CARD[4:],
]  # fmt: skip


@pytest.mark.parametrize("text", HIDDEN, ids=ascii)
def test_personal_data_is_found_in_other_letters(text):
    shown, found = masked(f"pay with card {text} please – ä")
    assert sum(found.values()) == 1 and shown.startswith("pay with card [") and shown.endswith("] please – ä")
    settings = DataSettings(may_leave=("public",), unlabelled="public")
    assert classify(Ask(turns=(Turn.of("user", f"pay with card {text} please"),)), settings).name == "confidential"


def test_personal_data_between_two_parts_of_a_turn_is_not_written_down():
    turn = Turn("user", (Part("text", "pay with card 4539 1488"), Part("text", " 0343 6467"), Part("image", data=b"x"), Part("text", "now")))
    told = Redactor(RedactSettings(mode="redact")).ask(Ask(turns=(turn,)))
    assert not any(group in json.dumps(told) for group in CARD.split())
    assert [part.get("sense", "text") for part in told["turns"][0]["parts"]] == ["text", "image", "text"]


@pytest.mark.parametrize("mode", ["digests", "redact"])
def test_what_a_client_calls_its_calls_is_text_too(mode):
    """Ids and names of calls in a conversation are whatever the client sent; they stood in the audit as they were."""
    call = ToolCall("jo.miller@kestrelbank.com", "write to jo.miller@kestrelbank.com", "{}")
    told = Redactor(RedactSettings(mode=mode)).ask(Ask(turns=(Turn("assistant", (), (call,)),)))
    assert "kestrelbank" not in json.dumps(told)


class Slow:
    """A guard that sees answers whole."""

    def check(self, text):
        return Verdict("nightjar" not in text.lower(), "no", "slow")


def test_with_a_guard_that_sees_answers_whole_no_number_leaves_before():
    heard = guarded(Piece(text="Night", logprobs=(token("Night", "a"),)), Piece(text="jar", logprobs=(token("jar"),)), END, guard=Slow())
    assert tokens(heard) == "" and heard.text == "" and heard[-1].finish == "guard"
