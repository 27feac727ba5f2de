"""An endpoint behind the contract, over a stand-in; what goes wrong on the way, and what must not leave."""

import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bedplate.core.errors import BedplateError, ConfigError, RemoteError
from bedplate.core.generation import Ask, Form, Part, Sampling, Turn, stream, whole
from bedplate.infer.backends import openai_api
from bedplate.infer.backends.answering import Answering
from bedplate.infer.backends.remote import Remote, Settings
from bedplate.testing.contracts import GeneratorContract, Heard

KEY = "sk-nobody-may-see-this"
SHORT = Sampling(max_tokens=4, ignore_end=True)
QUESTION = Ask(turns=(Turn.of("user", "hi"),), sampling=SHORT)


class TestRemote(GeneratorContract):
    lacks = frozenset({"form", "counts"})

    @pytest.fixture(scope="class")
    def make(self, stand_in):
        return lambda: Remote(Settings(stand_in.url, "tiny", context_tokens=8192))

    @pytest.fixture(scope="class")
    def generator(self, make):
        generator = make()
        yield generator
        generator.close()


@pytest.fixture
def remote(stand_in, monkeypatch):
    monkeypatch.setenv("STAND_IN_KEY", KEY)
    stand_in.seen.clear()
    stand_in.faults.clear()
    generator = Remote(Settings(stand_in.url, "tiny", {"other": "tiny/other"}, key_env="STAND_IN_KEY", pause_s=0.001))
    yield generator
    generator.close()


def failure(remote, ask=QUESTION):
    with pytest.raises(BedplateError) as caught:
        list(stream(remote, ask))
    assert KEY not in str(caught.value) and KEY not in repr(caught.value.__cause__)
    return caught.value


def test_what_may_pass_is_tried_again_and_the_key_goes_along(remote, stand_in):
    stand_in.faults += [(503, {"error": {"message": "busy"}}, {}), "drop", None]
    assert whole(remote, QUESTION)[0]
    assert len(stand_in.seen) == 3 and remote.load().counters["retries"] == 2
    assert all(head["authorization"] == f"Bearer {KEY}" for _, head, _ in stand_in.seen)


def test_after_the_last_attempt_it_says_so(remote, stand_in):
    stand_in.faults += [(429, {"error": {"message": "slow down"}}, {"retry-after": "0"})] * 3
    error = failure(remote)
    assert isinstance(error, RemoteError) and "429" in error.message and "less often" in error.hint and len(stand_in.seen) == 3
    stand_in.faults += ["drop"] * 3
    assert "cannot be reached" in failure(remote).message


def test_what_will_not_pass_is_not_tried_again_and_never_tells_the_key(remote, stand_in):
    stand_in.faults.append((401, {"error": {"message": f"bad key {KEY}"}}, {}))
    error = failure(remote)
    assert len(stand_in.seen) == 1 and "***" in error.message and "STAND_IN_KEY" in error.hint
    assert error.status == 401 and not error.asker_is_at_fault
    stand_in.faults.append((422, {"error": {"message": "no such form"}}, {}))
    assert failure(remote).asker_is_at_fault


def test_an_answer_that_breaks_off_is_not_asked_for_twice(remote, stand_in):
    stand_in.faults.append("cut")
    assert isinstance(failure(remote), RemoteError) and len(stand_in.seen) == 1


def test_a_missing_key_is_named(remote, stand_in, monkeypatch):
    monkeypatch.delenv("STAND_IN_KEY")
    assert "STAND_IN_KEY" in failure(remote).hint and not stand_in.seen


def test_a_key_in_a_file_is_read_for_each_question(stand_in, tmp_path):
    (tmp_path / "key").write_text("first\n")
    generator = Remote(Settings(stand_in.url, "tiny", key_file=tmp_path / "key"))
    stand_in.seen.clear()
    whole(generator, QUESTION)
    (tmp_path / "key").write_text("second")
    whole(generator, QUESTION)
    generator.close()
    assert [head["authorization"] for _, head, _ in stand_in.seen] == ["Bearer first", "Bearer second"]


def test_a_cancelled_answer_lets_go_of_the_endpoint(remote, stand_in):
    heard = Heard(remote, Ask(turns=QUESTION.turns, sampling=Sampling(max_tokens=400, ignore_end=True)))
    while not heard.pieces:
        time.sleep(0.001)
    heard.ticket.cancel()
    assert heard.wait()[-1].finish == "cancelled"
    until = time.monotonic() + 30
    while stand_in.generator.load().running and time.monotonic() < until:
        time.sleep(0.01)
    assert stand_in.generator.load().running == 0


def test_an_answer_that_is_too_slow_ends_by_its_deadline(remote, stand_in):
    ask = Ask(turns=QUESTION.turns, sampling=Sampling(max_tokens=400, ignore_end=True), deadline_s=0.05)
    assert Heard(remote, ask).wait()[-1].finish in ("deadline", "length")


@pytest.mark.parametrize(
    "said", [b"data: {\n\n", b"data: []\n\n", b'data: {"choices": [{"index": 7}]}\n\n', b'data: {"error": {"message": "no"}}\n\n', b"", b"data: [DONE]\n\n"]
)
def test_what_is_no_answer_is_an_error(remote, stand_in, said):
    stand_in.faults.append(said)
    assert isinstance(failure(remote), RemoteError)


@given(st.binary(max_size=200) | st.from_regex(rb'\{"choices": ?\[\{"index": ?[01], ?"delta": ?\{"(content|tool_calls)": ?.{0,30}\}\}\]\}', fullmatch=True))
def test_events_of_any_bytes_are_heard_or_refused(data):
    pieces = []
    hearing = openai_api.Hearing(Answering(QUESTION, pieces.append, listens=False))
    try:
        hearing.event(data)
        hearing.over()
    except RemoteError as error:
        assert error.hint
    assert all(isinstance(piece.text, str) for piece in pieces)


@pytest.mark.parametrize(
    ("url", "why"),
    [("ftp://a/v1", "no address"), ("https://u:p@a/v1", "password"), ("http://models.example.org/v1", "read by everybody"), ("models", "no address")],
)
def test_addresses_that_are_refused(url, why):
    with pytest.raises(ConfigError, match=why):
        Settings(url)


def test_questions_in_the_words_of_the_api():
    where, body = openai_api.body(Ask(turns=(Turn("user", (Part("text", "see"), Part("image", data=b"\x89PNG123"))),), sampling=Sampling(top_k=5)), "m")
    assert where == "chat/completions" and body["top_k"] == 5 and "min_p" not in body
    assert body["messages"][0]["content"][1]["image_url"]["url"].startswith("data:image/png;base64,")
    for ask in (Ask(prompt="a", want="prediction"), Ask(prompt="a", form=Form(regex="a+")), Ask(turns=(Turn("user", (Part("series", data=b"1"),)),))):
        with pytest.raises(ConfigError):
            openai_api.body(ask, "m")


def test_certificates_are_checked_and_redirects_are_not_followed(remote, stand_in):
    stand_in.faults.append((307, {"error": "moved"}, {"location": "http://127.0.0.1:9/"}))
    assert "307" in failure(remote).message
    remote_tls = Remote(Settings(stand_in.url.replace("http://", "https://"), "tiny", attempts=1))
    assert isinstance(failure(remote_tls), RemoteError)
    client = asyncio.run_coroutine_threadsafe(_verifies(remote_tls), remote_tls._loop).result()
    remote_tls.close()
    assert client


async def _verifies(remote):
    import ssl

    context = remote._opened()._transport._pool._ssl_context
    return context.verify_mode == ssl.CERT_REQUIRED and context.check_hostname
