"""What every Generator keeps to, as tests that anybody can run over their own: subclass, give the generator, say what it cannot do.

    class TestMine(GeneratorContract):
        lacks = frozenset({"logprobs"})

        @pytest.fixture(scope="class")
        def generator(self):
            yield MyGenerator()

What a generator lacks it has to refuse, in words; so nothing is skipped.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, ClassVar, Literal

from bedplate.core.contracts import Generator
from bedplate.core.errors import BedplateError, ConfigError
from bedplate.core.generation import THINGS, Ask, Form, Make, Piece, Sampling, Ticket, Tool, Turn
from bedplate.core.prediction import Extraction, Label, Number, Prediction, Ranking, Vector

Ability = Literal["logprobs", "half_characters", "echo", "form", "schema", "vectors", "token_prompts", "counts", "seeds", "n", "bits"]
"""What not every generator can do: tell logprobs, of half characters too; say the prompt again with them; keep to a regular expression or a choice; keep to
a JSON schema; give vectors; read token ids; know how many positions a question takes; say the same for the same seed; give several answers; make the very
same file again in any company, where the order in which numbers add up changes none of them."""
LONGEST_S = 60.0


class Heard:
    """The pieces of one answer, as they are delivered."""

    def __init__(self, generator: Generator, ask: Ask, each: Callable[[Piece], None] = lambda piece: None) -> None:
        self.pieces: list[Piece] = []
        self.after_last = 0
        self.threads: set[int] = set()
        self._over = threading.Event()
        self._each = each
        self.ticket: Ticket = generator.submit(ask, self._take)

    def _take(self, piece: Piece) -> None:
        self.threads.add(threading.get_ident())
        if self._over.is_set():
            self.after_last += 1
        self.pieces.append(piece)
        self._each(piece)
        if piece.last:
            self._over.set()

    def wait(self) -> list[Piece]:
        """All pieces, once the last is there."""
        assert self._over.wait(LONGEST_S), f"no last piece within {LONGEST_S:.0f} s; so far {len(self.pieces)}"
        return self.pieces

    def texts(self) -> list[str]:
        """The text of every choice."""
        said = [""] * (1 + max((piece.choice for piece in self.wait()), default=0))
        for piece in self.pieces:
            said[piece.choice] += piece.text
        return said


class GeneratorContract:
    """Tests that hold for every generator. A subclass gives the fixture `generator`."""

    lacks: ClassVar[frozenset[Ability]] = frozenset()
    worker: ClassVar[str] = ""
    """Who is asked."""
    predicts: ClassVar[frozenset[str]] = frozenset()
    """Tasks of which the generator has a worker."""
    long_tokens: ClassVar[int] = 64
    """Length of an answer that is still under way when its first piece has come."""

    def ask(self, text: str = "tell me of the river", **sampling: Any) -> Ask:
        """A question with an answer of a known length."""
        given = {"max_tokens": 16, "ignore_end": True, **sampling}
        return Ask(worker=self.worker, turns=(Turn.of("user", text),), sampling=Sampling(**given))

    def refused(self, generator: Generator, ask: Ask) -> BedplateError:
        """The error with which a question is refused: at once, or as the only piece, where another machine has to be asked."""
        try:
            heard = Heard(generator, ask)
        except BedplateError as error:
            assert error.message and error.hint, "an error says what to do about it"
            return error
        pieces = heard.wait()
        assert [piece.finish for piece in pieces] == ["error"], pieces
        told = pieces[0].error
        assert told is not None and told.message and told.hint
        return told

    # Streaming.

    def test_pieces_come_in_order_and_end_once(self, generator: Generator) -> None:
        heard = Heard(generator, self.ask(n=1))
        pieces = heard.wait()
        assert [piece.finish for piece in pieces if piece.finish] == ["length"]
        assert pieces[-1].finish == "length" and pieces[-1].usage is not None and heard.after_last == 0
        assert all(piece.usage is None for piece in pieces[:-1]) and len(heard.threads) == 1
        assert heard.texts()[0]

    def test_what_it_costs(self, generator: Generator) -> None:
        ask = self.ask(max_tokens=9)
        usage = Heard(generator, ask).wait()[-1].usage
        assert usage is not None and usage.completion_tokens == 9
        assert 0 <= usage.cached_tokens <= usage.prompt_tokens
        counted = generator.count(ask)
        assert counted > 0 and ("counts" in self.lacks or counted == usage.prompt_tokens)

    def test_nothing_may_be_said(self, generator: Generator) -> None:
        pieces = Heard(generator, self.ask(max_tokens=0)).wait()
        assert "".join(piece.text for piece in pieces) == "" and pieces[-1].finish == "length"
        assert pieces[-1].usage is not None and pieces[-1].usage.completion_tokens == 0

    def test_a_prompt_is_continued(self, generator: Generator) -> None:
        ask = Ask(worker=self.worker, prompt="Once upon a", sampling=Sampling(max_tokens=8, ignore_end=True))
        assert Heard(generator, ask).wait()[-1].finish == "length"

    def test_the_likeliest_is_said_again(self, generator: Generator) -> None:
        first, second = (Heard(generator, self.ask()).texts() for _ in range(2))
        assert first == second

    # Drawing.

    def test_equal_seeds_give_equal_answers(self, generator: Generator) -> None:
        ask = self.ask(temperature=1.0, seed=3)
        if "seeds" in self.lacks:
            assert Heard(generator, ask).texts()[0]
            return
        first, second = (Heard(generator, ask).texts() for _ in range(2))
        others = {Heard(generator, self.ask(temperature=1.0, seed=seed)).texts()[0] for seed in range(4, 8)}
        assert first == second and others != {first[0]}

    def test_several_answers(self, generator: Generator) -> None:
        ask = self.ask(temperature=1.0, seed=5, n=3)
        if "n" in self.lacks:
            assert isinstance(self.refused(generator, ask), ConfigError)
            return
        heard = Heard(generator, ask)
        pieces = heard.wait()
        for choice in range(3):
            own = [piece for piece in pieces if piece.choice == choice]
            assert [piece.finish for piece in own].count("length") == 1 and own[-1].finish == "length"
        usage = pieces[-1].usage
        assert usage is not None and usage.completion_tokens == 3 * 16
        assert len(set(heard.texts())) > 1
        if "seeds" not in self.lacks:
            assert heard.texts()[0] == Heard(generator, self.ask(temperature=1.0, seed=5)).texts()[0]

    # Stop strings.

    def test_nothing_of_a_stop_string_leaves(self, generator: Generator) -> None:
        drawn: dict[str, Any] = {} if "seeds" in self.lacks else {"temperature": 1.0, "seed": 2}
        whole = Heard(generator, self.ask(max_tokens=24, **drawn)).texts()[0]
        assert len(whole) > 4
        for start in range(1, len(whole) - 3, max(1, len(whole) // 5)):
            for length in (1, 3):
                stop = whole[start : start + length]
                if "\ufffd" in stop:
                    continue
                heard = Heard(generator, self.ask(max_tokens=24, **drawn, stop=(stop, "never said \x00")))
                assert heard.texts()[0] == whole[: whole.find(stop)]
                assert heard.pieces[-1].finish == "stop"

    def test_a_stop_string_that_never_comes_changes_nothing(self, generator: Generator) -> None:
        whole = Heard(generator, self.ask(max_tokens=24)).texts()[0]
        heard = Heard(generator, self.ask(max_tokens=24, stop=(whole[-1] + "\x00\x00",)))
        assert heard.texts()[0] == whole and heard.pieces[-1].finish == "length"

    # Ending early.

    def test_a_cancelled_answer_ends(self, generator: Generator) -> None:
        begun = threading.Event()
        heard = Heard(generator, self.ask(max_tokens=self.long_tokens), lambda piece: begun.set())
        assert begun.wait(LONGEST_S)
        heard.ticket.cancel()
        heard.ticket.cancel()
        last = heard.wait()[-1]
        assert last.finish in ("cancelled", "length") and last.usage is not None
        heard.ticket.cancel()
        assert heard.after_last == 0
        assert Heard(generator, self.ask()).wait()[-1].finish == "length", "others are answered as before"

    def test_a_waiting_question_can_be_cancelled(self, generator: Generator) -> None:
        several = [Heard(generator, self.ask(max_tokens=self.long_tokens)) for _ in range(4)]
        for heard in several:
            heard.ticket.cancel()
        assert all(heard.wait()[-1].finish in ("cancelled", "length") for heard in several)

    def test_nobody_waits_behind_a_deadline(self, generator: Generator) -> None:
        started = time.monotonic()
        heard = Heard(generator, replace(self.ask(max_tokens=self.long_tokens), deadline_s=0.0))
        assert heard.wait()[-1].finish == "deadline" and heard.pieces[-1].usage is not None
        assert time.monotonic() - started < LONGEST_S

    # Refusing.

    def test_an_unknown_worker_is_refused(self, generator: Generator) -> None:
        self.refused(generator, replace(self.ask(), worker="nobody of this name"))

    def test_too_long_a_question_is_refused(self, generator: Generator) -> None:
        longest = max(card.context_tokens for card in generator.workers())
        self.refused(generator, self.ask("river 7 " * longest))

    def test_a_refused_question_harms_no_other(self, generator: Generator) -> None:
        under_way = Heard(generator, self.ask())
        self.refused(generator, replace(self.ask(), worker="nobody of this name"))
        assert under_way.wait()[-1].finish == "length"

    # Characters.

    def test_any_text_can_be_asked_and_only_whole_characters_come(self, generator: Generator) -> None:
        for text in ("Łódź 早上好 🌊 ½", "\u202e rtl \u200b", "<|im_end|><|im_start|>system", "a\x00b", "\r\n\t ", "e\u0301" * 5):
            heard = Heard(generator, self.ask(text))
            for piece in heard.wait():
                piece.text.encode("utf-8")  # no half of a pair
            assert heard.pieces[-1].finish == "length"

    # What not everybody can.

    def test_numbers_of_tokens(self, generator: Generator) -> None:
        ask = self.ask(logprobs=2)
        if "logprobs" in self.lacks:
            assert isinstance(self.refused(generator, ask), ConfigError)
            return
        heard = Heard(generator, ask)
        numbers = [number for piece in heard.wait() for number in piece.logprobs]
        assert len(numbers) == 16 or ("half_characters" in self.lacks and 0 < len(numbers) < 16)
        for number in numbers:
            assert number.said.logprob <= 1e-6 and len(number.top) == 2 and number.top[0].logprob >= number.top[1].logprob
        assert heard.texts() == Heard(generator, self.ask()).texts(), "asking for numbers changes nothing"

    def test_an_echo_says_the_prompt_with_its_numbers(self, generator: Generator) -> None:
        ask = Ask(worker=self.worker, prompt="the river carries boats", echo=True, sampling=Sampling(max_tokens=1, ignore_end=True, logprobs=1))
        if "echo" in self.lacks:
            assert isinstance(self.refused(generator, ask), ConfigError)
            return
        heard = Heard(generator, ask)
        numbers = [number for piece in heard.wait() for number in piece.logprobs]
        assert heard.texts()[0].startswith("the river carries boats")
        assert numbers[0].said.logprob != numbers[0].said.logprob, "nothing stands before the first"
        assert all(number.said.logprob <= 1e-6 for number in numbers[1:])
        usage = heard.pieces[-1].usage
        assert usage is not None and len(numbers) == usage.prompt_tokens + 1

    def test_a_form_is_kept_to(self, generator: Generator) -> None:
        forms: Sequence[tuple[Form, Callable[[str], bool]]] = (
            (Form(choice=("yes", "no", "perhaps")), lambda said: said in ("yes", "no", "perhaps")),
            (Form(regex="[a-c]{3}-[0-9]{2}"), lambda said: len(said) == 6 and said[3] == "-"),
            (Form(schema={"type": "object", "properties": {"a": {"enum": [1, 22]}}, "required": ["a"], "additionalProperties": False}), _is_a),
        )
        for form, holds in forms:
            ask = replace(self.ask(max_tokens=200, ignore_end=False), form=form)
            if ("schema" if form.schema is not None else "form") in self.lacks:
                assert isinstance(self.refused(generator, ask), ConfigError)
                continue
            heard = Heard(generator, ask)
            assert heard.wait()[-1].finish == "stop" and holds(heard.texts()[0]), heard.texts()

    def test_a_tool_that_must_be_called_is_called(self, generator: Generator) -> None:
        schema = {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"], "additionalProperties": False}
        ask = replace(self.ask(max_tokens=200, ignore_end=False), tools=(Tool("weather", "of a city", schema), Tool("time")), tool_choice="weather")
        if "schema" in self.lacks:
            assert isinstance(self.refused(generator, ask), ConfigError)
            return
        heard = Heard(generator, ask)
        calls = [call for piece in heard.wait() for call in piece.tool_calls]
        assert heard.pieces[-1].finish == "tool_calls" and heard.texts()[0] == ""
        assert [call.name for call in calls] == ["weather"] and json.loads(calls[0].arguments)["city"] in ("Rome", "Oslo") and calls[0].id

    def test_vectors(self, generator: Generator) -> None:
        def asked(text: str) -> Ask:
            return Ask(worker=self.worker, prompt=text, want="vector")

        if "vectors" in self.lacks:
            assert isinstance(self.refused(generator, asked("a")), ConfigError)
            return
        first, second, other = (Heard(generator, asked(text)).wait() for text in ("the river", "the river", "lamps and birds"))
        assert len(first) == 1 and first[-1].usage is not None and first[-1].finish == "stop"
        assert isinstance(first[-1].prediction, Vector) and first[-1].prediction == second[-1].prediction != other[-1].prediction
        assert abs(sum(x * x for x in first[-1].prediction.vector) - 1) < 1e-3

    def test_predictions(self, generator: Generator) -> None:
        said = {"classify": Label, "regress": Number, "embed": Vector, "rank": Ranking, "extract": Extraction}
        self.refused(generator, Ask(worker=self.worker, prompt="the river", want="prediction"))
        found = {card.name: card.task for card in generator.workers() if card.task in said}
        assert not self.predicts - set(found.values()), "workers of these tasks were to be given"
        for name, task in found.items():
            turns = tuple(Turn.of("user", text) for text in ("the river", "lamps and birds", "small boats return") if task == "rank" or text == "the river")
            ask = Ask(worker=name, turns=turns, want="prediction")
            first, second, other = (Heard(generator, one).wait() for one in (ask, ask, replace(ask, turns=(Turn.of("user", "quiet rain"), *turns[1:]))))
            assert [piece.finish for piece in first] == ["stop"] and first[0].usage is not None and first[0].text == ""
            assert first[0].usage.completion_tokens == 0 and first[0].usage.prompt_tokens == generator.count(ask)
            assert isinstance(first[0].prediction, said[task]) and type(first[0].prediction) is type(other[0].prediction)
            assert _near(first[0].prediction, second[0].prediction)
            assert first[0].prediction is not None
            self._holds(first[0].prediction, "the river", len(turns) - 1)
            self.refused(generator, replace(ask, want="text", sampling=Sampling(max_tokens=4)))
            self.refused(generator, replace(ask, turns=(Turn("user"),)))
            late = Heard(generator, replace(ask, deadline_s=0.0)).wait()
            assert [piece.finish for piece in late] == ["deadline"] and late[0].prediction is None

    def _holds(self, said: Prediction, text: str, ranked: int) -> None:
        """What is true of every prediction."""
        if isinstance(said, Label):
            assert said.probabilities and all(0 <= share <= 1 for share in said.probabilities.values()) and set(said.labels) <= set(said.probabilities)
        elif isinstance(said, Number):
            assert said.low is None or said.high is None or said.low <= said.value <= said.high
        elif isinstance(said, Ranking):
            assert sorted(said.order) == list(range(ranked)) and [said.scores[n] for n in said.order] == sorted(said.scores, reverse=True)
        elif isinstance(said, Extraction):
            assert all(text[one.start : one.end] == one.text and one.label and 0 <= one.probability <= 1 for one in said.spans)

    def test_it_makes_what_its_card_says(self, generator: Generator) -> None:
        card = next(card for card in generator.workers() if card.name == self.worker)
        opening = {"image": b"\x89PNG", "audio": b"RIFF", "video": b"GIF8", "series": b"median,low,high\n"}
        small = Make(steps=2, most_s=0.2, frames=2, points=20, paths=3, known=b"load\n" + b"".join(b"%d\n" % (7 * n % 13) for n in range(40)))
        for sense in THINGS:
            n = 1 if sense == "series" else 2
            make = small if sense == "series" else replace(small, known=b"")
            ask = Ask(worker=self.worker, prompt="a river", want=sense, make=make, sampling=Sampling(seed=3, n=n))
            if sense not in card.makes:
                error = self.refused(generator, ask)
                assert isinstance(error, ConfigError) and error.hint
                continue
            heard = Heard(generator, ask)
            made = {piece.choice: piece.part for piece in heard.wait() if piece.part is not None}
            assert sorted(made) == list(range(n)) and len(heard.threads) == 1 and heard.texts() == [""] * n
            assert all(part.sense == sense and part.data.startswith(opening[sense]) for part in made.values())
            assert all(piece.finish in ("stop", "length") for piece in heard.pieces)
            usage = heard.pieces[-1].usage
            assert usage is not None and usage.completion_tokens > 0 and usage.prompt_tokens == generator.count(ask)
            again = {piece.choice: piece.part for piece in Heard(generator, ask).wait()}
            assert again.keys() == made.keys() and ("bits" in self.lacks or again == made) and (n == 1 or made[0] != made[1])
            late = Heard(generator, replace(ask, deadline_s=0.0)).wait()
            assert {piece.finish for piece in late} == {"deadline"} and all(piece.part is None for piece in late) and late[-1].usage is not None
            self.refused(generator, replace(ask, make=replace(make, steps=0)))

    def test_token_ids_are_read_as_they_are(self, generator: Generator) -> None:
        ask = Ask(worker=self.worker, prompt=(40, 41, 42, 43), sampling=Sampling(max_tokens=4, ignore_end=True))
        if "token_prompts" in self.lacks:
            assert isinstance(self.refused(generator, ask), ConfigError)
            return
        usage = Heard(generator, ask).wait()[-1].usage
        assert usage is not None and usage.prompt_tokens == 4
        self.refused(generator, replace(ask, prompt=(10**9,)))

    # Many at once.

    def test_many_threads_hear_what_one_hears(self, generator: Generator) -> None:
        asks = [self.ask(f"river {number}", max_tokens=8 + number) for number in range(6)]
        alone = [Heard(generator, ask).texts() for ask in asks]
        with ThreadPoolExecutor(12) as pool:
            together = list(pool.map(lambda ask: Heard(generator, ask).texts(), asks * 2))
        assert together == alone * 2

    def test_it_says_who_can_be_asked_and_how_busy_it_is(self, generator: Generator) -> None:
        cards = generator.workers()
        assert cards[0].name == "" and len({card.name for card in cards}) == len(cards)
        assert all(card.context_tokens > 0 and card.task and "text" in card.senses for card in cards)
        Heard(generator, self.ask()).wait()
        until = time.monotonic() + LONGEST_S
        while (load := generator.load()).running + load.waiting and time.monotonic() < until:
            time.sleep(0.01)
        assert load.running == load.waiting == 0 and 0 <= load.cache_used <= 1

    def test_closing_ends_what_is_under_way(self, make: Callable[[], Generator]) -> None:
        """`make` opens another generator of the kind."""
        generator = make()
        several = [Heard(generator, self.ask(max_tokens=self.long_tokens)) for _ in range(3)]
        generator.close()
        assert all(heard.wait()[-1].finish in ("cancelled", "length", "error") for heard in several)
        self.refused(generator, self.ask())
        generator.close()


def _near(one: Any, other: Any) -> bool:
    """Whether two predictions say the same, but for rounding: which of their sequences met in a step may change the last bits."""
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= 1e-3 * (1 + abs(one))
    if isinstance(one, Mapping):
        return isinstance(other, Mapping) and one.keys() == other.keys() and all(_near(one[name], other[name]) for name in one)
    if isinstance(one, tuple):
        return isinstance(other, tuple) and len(one) == len(other) and all(map(_near, one, other))
    return bool(one == other)


def _is_a(said: str) -> bool:
    return json.loads(said) in ({"a": 1}, {"a": 22})
