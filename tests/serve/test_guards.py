"""Guards: for any way in which a text comes, no forbidden part of it leaves, and a text that is allowed leaves whole."""

import re
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from places import Heard, Place, said

from bedplate.core.contracts import Guard, Verdict
from bedplate.core.errors import ConfigError, PolicyError, RemoteError
from bedplate.core.generation import Alternative, Ask, Form, Part, Piece, Sampling, TokenLogprob, Tool, ToolCall, Turn, Usage, stream
from bedplate.core.prediction import Extraction, Found, Label, Vector
from bedplate.serve.guard_rules import GuardSettings, RuleGuard, RuleSettings, read, rule_guards
from bedplate.serve.guarded import Guarded, Guards
from bedplate.serve.guards import GuardedStream, StreamingGuard, Whole, Windowed, checked

WORDS = ("abba", "bab", "foo")


def literal_guard(*words, **more):
    return RuleGuard([RuleSettings("words", literals=words, **more)])


class Fake:
    """Refuses texts that hold a word; remembers what it saw."""

    def __init__(self, word="bad", fails=False):
        self.word, self.fails, self.seen = word, fails, []

    def check(self, text):
        self.seen.append(text)
        if self.fails:
            raise RuntimeError("the model is gone")
        return Verdict(self.word not in text, f"holds {self.word}", "fake")


def through(guards, chunks):
    out = GuardedStream(guards)
    left = [out.push(chunk) for chunk in chunks]
    left.append(out.end())
    return left, out.verdict


def chunked(text, cuts):
    if not cuts:
        return list(text)
    places = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    return [text[a:b] for a, b in zip(places, places[1:])]


words = st.lists(st.sampled_from(["foo", "fo", "o", "a", "b", "abba", "bb", "X", "é", " ", "\n"]), max_size=14).map("".join)
texts = st.text(alphabet="abfoX é", max_size=40) | words
cuts = st.lists(st.integers(0, 40), max_size=12)


@given(texts, cuts)
def test_no_forbidden_word_begins_to_leave_and_allowed_text_leaves_whole(text, cuts):
    left, verdict = through((literal_guard(*WORDS, ignore_case=False),), chunked(text, cuts))
    forbidden = any(word in text for word in WORDS)
    assert verdict.allowed is not forbidden
    out = "".join(left)
    if forbidden:
        first = min(text.find(word) for word in WORDS if word in text)
        assert text.startswith(out) and len(out) <= first
    else:
        assert out == text


REGEXES = (r"\bfoo\b", r"a[bf]{0,3}X", r"(?m)^o\s", r"bb$", r"é{2}|fo{1,2}b", r"[^a-zX é]o")


@settings(max_examples=400)
@example("Xfoo é and on", [], r"\bfoo\b")  # the X has left when the word before it is judged
@example("aaao bbbbbbb", [], r"(?m)^o\s")
@given(texts, cuts, st.sampled_from(REGEXES))
def test_a_pattern_finds_in_pieces_what_it_finds_in_the_whole(text, cuts, regex):
    guard = RuleGuard([RuleSettings("p", regexes=(regex,), ignore_case=False)])
    left, verdict = through((guard,), chunked(text, cuts))
    whole = guard.check(text)
    assert verdict.allowed == whole.allowed
    first = re.search(regex.replace("$", r"\Z"), text, re.ASCII)  # RE2's \b and \s know the letters of ASCII alone
    assert verdict.allowed == (first is None)
    out = "".join(left)
    assert out == text if first is None else text.startswith(out) and len(out) <= first.start(), "not even its first letter leaves"


@given(texts, cuts)
def test_several_guards_of_several_reaches(text, cuts):
    guards = (literal_guard("abba"), RuleGuard([RuleSettings("p", regexes=(r"\bfoo\b",))]), Windowed(Fake("XX"), 2))
    left, verdict = through(guards, chunked(text, cuts))
    assert verdict.allowed == checked(guards, text).allowed
    assert not verdict.allowed or "".join(left) == text


def test_text_leaves_while_it_goes_on():
    """What is held is no longer than the longest match."""
    guard = literal_guard("password")
    out = GuardedStream((guard,))
    left = [out.push(c) for c in "an answer of some length that has nothing to hide"]
    assert out.held_characters == 7 and "".join(left).startswith("an answer of some length")


def test_a_guard_that_sees_only_whole_texts_holds_all_of_it():
    fake = Fake()
    left, verdict = through((fake, literal_guard("zz")), ["some ", "good ", "text"])
    assert left == ["", "", "", "some good text"] and verdict.allowed and fake.seen == ["some good text"]
    left, verdict = through((Fake(),), ["a b", "ad thing"])
    assert left == ["", "", ""] and verdict == Verdict(False, "holds bad", "fake")
    assert isinstance(Whole(fake), StreamingGuard) and isinstance(fake, Guard) and not isinstance(fake, StreamingGuard)


def test_a_guard_that_fails_has_refused():
    for guard in (Fake(fails=True), Windowed(Fake(fails=True), 3)):
        left, verdict = through((guard,), ["harmless"])
        assert "".join(left) == "" and not verdict.allowed and "Fake failed" in verdict.rule
    assert not checked((Fake(fails=True),), "x").allowed


def test_after_a_refusal_nothing_leaves_any_more():
    out = GuardedStream((literal_guard("bad"),))
    assert out.push("a bad thing") == "" and out.push("and more that is good") == "" and out.end() == ""
    assert out.held_characters == 0 and out.verdict.rule == "words"


def test_without_guards_everything_leaves_at_once():
    assert through((), ["a", "b"]) == (["a", "b", ""], Verdict(True))


@given(st.text(max_size=30), st.lists(st.integers(0, 30), max_size=5))
def test_no_text_breaks_a_guard(text, cuts):
    left, verdict = through((literal_guard("nightjar"), RuleGuard([RuleSettings("p", regexes=(r"\bq{7}\b",))])), chunked(text, cuts))
    assert not verdict.allowed or "".join(left) == text


def test_capitals_and_half_surrogates():
    assert not literal_guard("straße").check("STRAßE").allowed and literal_guard("Bad", ignore_case=False).check("bad").allowed
    assert not literal_guard("bad").check("\ud800bad").allowed
    assert not literal_guard("a\ud800").check("a\ud800").allowed


@pytest.mark.parametrize("regex", ["a+", "a*b", "a{2,}", "(a", "a?", "", r"(?=a)b", r"(a)\1", "[[:alpha:]]", r"\pL", "a{,3}", "a{1,5000}", r"\Qa\E", "(?P<x>a", "x{2}{3}"])
def test_patterns_that_are_not_taken(regex):
    with pytest.raises(ConfigError) as caught:
        RuleGuard([RuleSettings("r", regexes=(regex,))])
    assert caught.value.hint and "'r'" in caught.value.message


@given(st.text(alphabet="ab()[]{}|*+?\\.^$,1-:<>P=!# \n", max_size=12))
def test_no_pattern_breaks_the_reader_and_what_is_taken_is_bounded(regex):
    try:
        guard = RuleGuard([RuleSettings("r", regexes=(regex,))])
    except ConfigError:
        return
    text = "ab1-:<>P=!# \n" * 3
    for rule, pattern in guard._rules:
        for match in pattern.finditer(text):
            assert 0 < match.end() - match.start() < guard.reach_characters, (rule, match)


def test_time_is_linear_where_a_backtracking_engine_explodes():
    """(a|a)(a|a)...b on a row of a: 2^60 ways for an engine that tries them one by one."""
    guard = RuleGuard([RuleSettings("r", regexes=("(?:a|a){1,60}b",))])
    assert guard.check("a" * 5000).allowed


def test_guards_toml(tmp_path):
    file = tmp_path / "guards.toml"
    file.write_text("""
        [[rules]]
        name = "a"
        literals = ["x"]
        on = ["answer"]
        reason = "no x"
        [[rules]]
        name = "b"
        regexes = ["y{2}"]
        ignore_case = false
    """)
    settings = read(file)
    (prompt,), (answer,) = rule_guards(settings, "prompt"), rule_guards(settings, "answer")
    assert prompt.check("X").allowed and answer.check("X") == Verdict(False, "no x", "a")
    assert prompt.check("YY").allowed and not prompt.check("yy").allowed
    assert rule_guards(GuardSettings(), "prompt") == ()
    for wrong in ('name="a"', 'name="a"\nliterals=[""]', 'name="a"\nliterals=["x"]\non=[]', 'name="a"\nliteral="x"'):
        file.write_text(f"[[rules]]\n{wrong}\n")
        with pytest.raises(ConfigError):
            read(file)


def ask(text="hello", **more):
    return Ask(turns=(Turn.of("user", text),), **more)


def guarded(place, prompt=(), answer=(), pool=None):
    return Guarded(place, Guards(tuple(prompt), tuple(answer)), pool)


def test_a_refused_question_is_not_asked():
    place = Place()
    behind = guarded(place, prompt=(literal_guard("nightjar", reason="not here"),))
    for refused in (
        ask("about NIGHTJAR"),
        Ask(prompt="nightjar"),
        Ask(prompt=(1, 2)),
        Ask(turns=(Turn("user", (Part("text", "night"), Part("text", "jar"))),)),
        Ask(turns=(Turn.of("user", "x"), Turn("assistant", (), (ToolCall("1", "f", '{"a": "nightjar"}'),)))),
        Ask(turns=(Turn.of("user", "x"), Turn("assistant", (), (ToolCall("1", "f", '{"a": "night\\u006aar"}'),)))),
        Ask(turns=(Turn.of("user", "x"),), tools=(Tool("f", "for nightjar"),)),
        Ask(turns=(Turn.of("user", "x"),), tools=(Tool("f", parameters={"properties": {"nightjar": {}}}),)),
        Ask(turns=(Turn.of("user", "x"),), form=Form(schema={"enum": ["nightjar"]})),
        Ask(turns=(Turn.of("user", "x"),), form=Form(choice=("nightjar", "x"))),
        Ask(turns=(Turn.of("user", "x"),), sampling=Sampling(stop=("nightjar",))),
    ):
        with pytest.raises(PolicyError):
            behind.submit(refused, Heard())
    assert not place.asked
    with pytest.raises(PolicyError):
        behind.submit(Ask(turns=(Turn.of("nightjar", "x"),)), Heard())
    assert Guards(prompt=(literal_guard("user"),)).prompt_verdict(ask()).allowed
    heard = Heard()
    behind.submit(ask("about birds"), heard)
    assert heard.text == "ok"


def test_a_refused_answer_ends_and_its_generator_is_told_to_stop():
    place = Place(said("it is ", "ba", "d", " indeed", finish="cancelled"), by_hand=True)
    heard = Heard()
    ticket = guarded(place, answer=(literal_guard("bad"),)).submit(ask(), heard)
    place.go()
    assert heard.text in "it is " and [piece.finish for piece in heard if piece.finish] == ["guard"]
    assert heard[-1].usage == Usage(5, 0, 4) and place.tickets[0].cancelled and ticket.verdict.rule == "words"


def test_an_allowed_answer_is_whole_with_everything_that_came_with_it():
    label = Label("spam", ("spam",), 1.0, {"spam": 1.0})
    for pieces in (said("a", "b", "c"), [Piece(prediction=label, finish="stop", usage=Usage(1, 0, 0))], [Piece(prediction=Vector((1.0,)), finish="stop", usage=Usage(1, 0, 0))]):
        place, heard = Place(pieces), Heard()
        guarded(place, answer=(literal_guard("bad"), Fake())).submit(ask(), heard)
        assert heard.text == "".join(piece.text for piece in pieces)
        assert (heard[-1].finish, heard[-1].usage, heard[-1].prediction) == (pieces[-1].finish, pieces[-1].usage, pieces[-1].prediction)
    heard = Heard()
    for one in (Label("bad", ("bad",), 1.0, {"bad": 1.0}), Extraction((Found(0, 3, "word", "bad", 1.0),)), Extraction((Found(0, 3, "bad", "boy", 1.0),))):
        guarded(Place([Piece(prediction=one, finish="stop", usage=Usage(1, 0, 0))]), answer=(literal_guard("bad"),)).submit(ask(), heard)
        assert heard[-1].finish == "guard" and heard[-1].prediction is None


def test_tool_calls_are_checked_whole():
    for call in (ToolCall("1", "send", '{"to": "b\\u0061d"}'), ToolCall("1", "bad", "{}"), ToolCall("1", "send", '{"to": "bad"}')):
        heard = Heard()
        place = Place([Piece(text="calling"), Piece(tool_calls=(call,)), Piece(finish="tool_calls", usage=Usage(1, 0, 2))])
        guarded(place, answer=(literal_guard("bad"),)).submit(ask(), heard)
        assert not any(piece.tool_calls for piece in heard) and heard[-2].finish == "guard"
    heard = Heard()
    guarded(place, answer=(literal_guard("worse"),)).submit(ask(), heard)
    assert [piece.tool_calls for piece in heard if piece.tool_calls] == [(call,)] and heard.text == "calling"


def test_choices_are_judged_apart():
    pieces = [Piece(0, "goo"), Piece(1, "ba"), Piece(1, "d"), Piece(1, "more"), Piece(1, finish="stop"), Piece(0, "d", finish="stop", usage=Usage(1, 0, 4))]
    heard, place = Heard(), Place(pieces, by_hand=True)
    guarded(place, answer=(literal_guard("bad"),)).submit(ask(sampling=Sampling(n=2)), heard)
    place.go()
    assert {piece.choice: piece.finish for piece in heard if piece.finish} == {0: "stop", 1: "guard"}
    assert "".join(piece.text for piece in heard if piece.choice == 0) == "good" and not place.tickets[0].cancelled
    assert "".join(piece.text for piece in heard if piece.choice == 1) == ""


@given(st.lists(st.sampled_from(["a", "ba", "d", " ", "pass", "word", ""]), min_size=1, max_size=12))
def test_probabilities_leave_with_their_text_never_before(tokens):
    pieces = [Piece(text=t, logprobs=(TokenLogprob(Alternative(t, -1.0), (Alternative("bad", -2.0), Alternative("fine", -3.0))),)) for t in tokens]
    pieces[-1] = Piece(text=tokens[-1], logprobs=pieces[-1].logprobs, finish="stop", usage=Usage(1, 0, len(tokens)))
    heard = Heard()
    guarded(Place(pieces), answer=(literal_guard("bad", "password"),)).submit(ask(), heard)
    text = told = ""
    for piece in heard:
        text += piece.text
        told += "".join(one.said.text for one in piece.logprobs)
        assert text.startswith(told)
        assert all(other.text == "fine" for one in piece.logprobs for other in one.top)
    if heard[-1].finish == "stop":
        assert text == told == "".join(tokens)


def test_an_error_passes_and_what_was_held_does_not():
    heard = Heard()
    guarded(Place([Piece(text="the pass"), RemoteError("gone")]), answer=(literal_guard("password"),)).submit(ask(), heard)
    assert heard.text == "t" and heard[-1].error.message == "gone"


def test_guards_that_take_long_run_in_their_own_threads_and_in_order():
    class Slow(Fake):
        threads = set()

        def check(self, text):
            self.threads.add(threading.current_thread().name)
            return super().check(text)

    slow = Slow("zzz")
    with ThreadPoolExecutor(4, thread_name_prefix="guards") as pool:
        behind = guarded(Place(said(*map(str, range(200)))), prompt=(slow,), answer=(Windowed(slow, 3),), pool=pool)
        assert "".join(piece.text for piece in stream(behind, ask())) == "".join(map(str, range(200)))
        with pytest.raises(PolicyError, match="zzz"):
            list(stream(behind, ask("zzz")))
    assert all(name.startswith("guards") for name in slow.threads)


def test_what_goes_wrong_in_a_pool_is_told_once():
    with ThreadPoolExecutor(2) as pool:
        for place in (Place(RuntimeError("bug")), Place([Piece(text="a"), Piece(choice=7, text="no such choice"), *said("b", "c")])):
            heard, done = Heard(), threading.Event()

            def deliver(piece):
                heard.append(piece)
                if piece.last:
                    done.set()

            guarded(place, answer=(literal_guard("bad"),), pool=pool).submit(ask(), deliver)
            assert done.wait(20)
            pool.submit(lambda: None).result()
            assert [type(piece.error).__name__ for piece in heard if piece.last] == ["BedplateError"]


def test_cancelling_before_the_generator_has_begun():
    place = Place(by_hand=True)
    gate = threading.Event()

    class Waits(Fake):
        def check(self, text):
            gate.wait(20)
            return Verdict(True)

    with ThreadPoolExecutor(1) as pool:
        ticket = guarded(place, prompt=(Waits(),), pool=pool).submit(ask(), Heard())
        ticket.cancel()
        gate.set()
    assert place.tickets[0].cancelled


def test_the_rest_is_the_generator_s_own():
    place = Place(name="x")
    behind = guarded(place)
    assert behind.workers() == place.workers() and behind.count(ask()) == 7 and behind.load() == place.load()
    behind.close()
    assert place.closed
