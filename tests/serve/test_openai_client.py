"""The official OpenAI client, against a gateway on a real port."""

import asyncio
import io
import math

import openai
import pytest
from pydantic import BaseModel

from bedplate.testing.fake_predictions import WIDTH
from bedplate.testing.fake_words import WORDS, encode

ASKED = [{"role": "user", "content": "What does the river do?"}]
WEATHER = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1}}, "required": ["city", "days"]}
TOOLS = [{"type": "function", "function": {"name": "get_weather", "description": "the weather", "parameters": WEATHER, "strict": True}}]


@pytest.fixture(scope="module")
def client(served):
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key=served.key, max_retries=0)


def test_a_conversation_whole_and_streamed_says_the_same(client):
    whole = client.chat.completions.create(model="fake", messages=ASKED, temperature=0)
    pieces = list(client.chat.completions.create(model="fake", messages=ASKED, temperature=0, stream=True, stream_options={"include_usage": True}))
    text = whole.choices[0].message.content
    assert text and "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices) == text
    assert pieces[0].choices[0].delta.role == "assistant"
    assert whole.choices[0].finish_reason == pieces[-2].choices[0].finish_reason == "stop"
    assert pieces[-1].usage == whole.usage and whole.usage.completion_tokens == text.count(" ") > 0
    assert all(piece.usage is None for piece in pieces[:-1])


def test_without_include_usage_there_is_none(client):
    pieces = list(client.chat.completions.create(model="fake", messages=ASKED, stream=True))
    assert all(piece.choices and piece.usage is None for piece in pieces)


def test_the_asynchronous_client(served):
    async def ask():
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key=served.key, max_retries=0) as client:
            whole = await asyncio.gather(*(client.chat.completions.create(model="triage", messages=ASKED, temperature=0) for _ in range(8)))
            stream = await client.chat.completions.create(model="triage", messages=ASKED, temperature=0, stream=True)
            return {one.choices[0].message.content for one in whole}, "".join([p.choices[0].delta.content or "" async for p in stream])

    texts, streamed = asyncio.run(ask())
    assert texts == {streamed}


def test_adapters_are_models(client, served):
    listed = {model.id: model for model in client.models.list()}
    assert list(listed)[:2] == ["fake", "triage"] and {"sorter", "finder"} <= listed.keys() and listed["triage"].parent == "fake"
    assert client.models.retrieve("triage").id == "triage"
    said = {name: client.chat.completions.create(model=name, messages=ASKED, temperature=0).choices[0].message.content for name in ("fake", "triage")}
    assert said["fake"] != said["triage"]
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="triagge", messages=ASKED)
    assert caught.value.code == "model_not_found" and "did you mean 'triage'" in caught.value.message
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")


def test_several_choices_seeds_and_stop_texts(client):
    drawn = [client.chat.completions.create(model="fake", messages=ASKED, temperature=1, seed=seed, n=3) for seed in (1, 1, 2)]
    texts = [[choice.message.content for choice in one.choices] for one in drawn]
    assert texts[0] == texts[1] != texts[2] and len(set(texts[0])) == 3
    word = texts[0][0].split()[2]
    ended = client.chat.completions.create(model="fake", messages=ASKED, temperature=1, seed=1, stop=[word])
    assert ended.choices[0].message.content == texts[0][0].partition(word)[0] and ended.choices[0].finish_reason == "stop"
    pieces = client.chat.completions.create(model="fake", messages=ASKED, temperature=1, seed=1, n=3, stream=True)
    streamed = ["", "", ""]
    for piece in pieces:
        for choice in piece.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts[0]
    unseeded = {client.chat.completions.create(model="fake", messages=ASKED, temperature=1).choices[0].message.content for _ in range(3)}
    assert len(unseeded) > 1


def test_the_longest_answer_under_both_names_and_a_bias(client):
    for name in ("max_tokens", "max_completion_tokens"):
        short = client.chat.completions.create(model="fake", messages=ASKED, **{name: 2})
        assert short.usage.completion_tokens == 2 and short.choices[0].finish_reason == "length"
    forced = client.chat.completions.create(model="fake", messages=ASKED, logit_bias={str(256 + WORDS.index(" boats")): 100}, max_tokens=3)
    assert forced.choices[0].message.content == " boats boats boats"


def test_logprobs_of_a_conversation(client):
    told = client.chat.completions.create(model="fake", messages=ASKED, temperature=0, logprobs=True, top_logprobs=3)
    tokens = told.choices[0].logprobs.content
    assert "".join(token.token for token in tokens) == told.choices[0].message.content
    assert all(len(token.top_logprobs) == 3 and token.logprob <= 0 and bytes(token.bytes).decode() == token.token for token in tokens)
    pieces = client.chat.completions.create(model="fake", messages=ASKED, temperature=0, logprobs=True, top_logprobs=3, stream=True)
    streamed = [token for piece in pieces if piece.choices[0].logprobs for token in piece.choices[0].logprobs.content]
    assert streamed == tokens
    assert client.chat.completions.create(model="fake", messages=ASKED).choices[0].logprobs is None


def test_tools_are_called_and_answered(client):
    asked = [{"role": "user", "content": "call get_weather for me"}]
    called = client.chat.completions.create(model="fake", messages=asked, tools=TOOLS, parallel_tool_calls=False)
    choice = called.choices[0]
    call = choice.message.tool_calls[0]
    assert choice.finish_reason == "tool_calls" and call.function.name == "get_weather" and choice.message.content is None
    assert '"city"' in call.function.arguments
    with_answer = [*asked, choice.message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    assert client.chat.completions.create(model="fake", messages=with_answer, tools=TOOLS).choices[0].message.content
    pieces = list(client.chat.completions.create(model="fake", messages=asked, tools=TOOLS, stream=True, temperature=0))
    streamed = [one for piece in pieces for one in piece.choices[0].delta.tool_calls or []]
    assert [one.function.name for one in streamed] == ["get_weather"] and streamed[0].index == 0 and pieces[-1].choices[0].finish_reason == "tool_calls"
    named = client.chat.completions.create(model="fake", messages=ASKED, tools=TOOLS, tool_choice={"type": "function", "function": {"name": "get_weather"}})
    assert named.choices[0].message.tool_calls
    assert client.chat.completions.create(model="fake", messages=ASKED, tools=TOOLS, tool_choice="required").choices[0].message.tool_calls
    assert not client.chat.completions.create(model="fake", messages=asked, tools=TOOLS, tool_choice="none").choices[0].message.tool_calls


def test_the_client_parses_a_structured_answer(client):
    class Finding(BaseModel):
        host: str
        severity: int
        seen: list[str]

    parsed = client.chat.completions.parse(model="fake", messages=ASKED, response_format=Finding)
    assert isinstance(parsed.choices[0].message.parsed, Finding)
    plain = client.chat.completions.create(model="fake", messages=ASKED, response_format={"type": "json_object"})
    assert plain.choices[0].message.content.startswith("{")
    chosen = client.chat.completions.create(model="fake", messages=ASKED, extra_body={"response_format": {"type": "choice", "choice": ["yes", "no"]}})
    assert chosen.choices[0].message.content in ("yes", "no")


def test_the_client_streams_with_its_own_helper(client):
    with client.chat.completions.stream(model="fake", messages=ASKED, temperature=0) as stream:
        events = [event.type for event in stream]
        final = stream.get_final_completion()
    assert "content.delta" in events and final.choices[0].message.content


def test_pictures_and_sounds_are_read_and_nothing_is_fetched(client, served):
    parts = [
        {"type": "text", "text": "look"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGVsbG8=", "detail": "low"}},
        {"type": "input_audio", "input_audio": {"data": "c291bmQ=", "format": "wav"}},
    ]
    assert client.chat.completions.create(model="fake", messages=[{"role": "user", "content": parts}]).choices[0].message.content
    seen = served.fake.asked[-1].turns[0].parts
    assert [(part.sense, part.data) for part in seen] == [("text", b""), ("image", b"hello"), ("audio", b"sound")]
    for url in ("https://example.org/cat.png", "file:///etc/passwd", "data:text/html;base64,aGk=", "data:image/png;base64,***"):
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(model="fake", messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}])


def test_completions_of_texts_and_tokens(client):
    one = client.completions.create(model="fake", prompt="The river", temperature=0)
    many = client.completions.create(model="fake", prompt=["The river", "The boats"], temperature=0, n=2)
    assert one.choices[0].text == many.choices[0].text and len(many.choices) == 4 and one.usage.completion_tokens <= 16
    ids = list(encode("The river"))
    assert client.completions.create(model="fake", prompt=ids, temperature=0).choices[0].text == one.choices[0].text
    assert client.completions.create(model="fake", prompt=[ids, ids], temperature=0).choices[1].text == one.choices[0].text
    streamed = client.completions.create(model="fake", prompt=["The river", "The boats"], temperature=0, stream=True)
    texts = ["", ""]
    for piece in streamed:
        texts[piece.choices[0].index] += piece.choices[0].text
    assert texts == [many.choices[0].text, many.choices[2].text]


def test_echo_tells_the_logprobs_of_the_prompt(client):
    prompt = "Past the stone bridges"
    told = client.completions.create(model="fake", prompt=prompt, echo=True, logprobs=2, max_tokens=1, temperature=0)
    choice = told.choices[0]
    columns = choice.logprobs
    assert choice.text.startswith(prompt) and "".join(columns.tokens) == choice.text
    assert len(columns.tokens) == len(encode(prompt)) + 1 == len(columns.token_logprobs) == len(columns.top_logprobs)
    assert columns.token_logprobs[0] is None and columns.top_logprobs[0] is None and all(value < 0 for value in columns.token_logprobs[1:])
    assert all(choice.text[at:].startswith(token) for at, token in zip(columns.text_offset, columns.tokens))
    nothing_more = client.completions.create(model="fake", prompt=prompt, echo=True, logprobs=0, max_tokens=0)
    assert nothing_more.choices[0].text == prompt


def test_embeddings_as_numbers_and_as_base64(client):
    plain = client.embeddings.create(model="fake", input=["a boat", "a bridge"], encoding_format="float")
    packed = client.embeddings.create(model="fake", input="a boat")  # the client asks for base64 by itself
    assert [len(one.embedding) for one in plain.data] == [WIDTH, WIDTH] and plain.usage.prompt_tokens > 0
    assert packed.data[0].embedding == pytest.approx(plain.data[0].embedding, abs=1e-6) and math.hypot(*packed.data[0].embedding) == pytest.approx(1, abs=1e-5)
    with pytest.raises(openai.BadRequestError):
        client.embeddings.create(model="fake", input="a boat", dimensions=3)


def test_transcriptions_where_a_model_hears(client):
    said = client.audio.transcriptions.create(model="fake", file=("speech.wav", io.BytesIO(b"RIFF....")), language="en", temperature=0)
    assert said.text
    as_text = client.audio.transcriptions.create(model="fake", file=("speech.wav", io.BytesIO(b"RIFF....")), language="en", response_format="text")
    assert as_text.strip() == said.text
    with pytest.raises(openai.BadRequestError):
        client.audio.transcriptions.create(model="fake", file=("speech.wav", io.BytesIO(b"RIFF....")), response_format="srt")
    with pytest.raises(openai.BadRequestError):
        client.audio.transcriptions.create(model="fake", file=("speech.wav", io.BytesIO(b"")))


def test_a_wrong_key_is_refused(served):
    stranger = openai.OpenAI(base_url=f"{served.url}/v1", api_key="bp_wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError) as caught:
        stranger.chat.completions.create(model="fake", messages=ASKED)
    assert caught.value.code == "invalid_api_key"


def test_the_client_sees_the_headers(client, served):
    raw = client.chat.completions.with_raw_response.create(model="fake", messages=ASKED)
    assert raw.headers["x-request-id"].startswith("req_") and raw.headers["x-bedplate-route"] == "local"
    assert raw.headers["x-bedplate-receipt"] == raw.parse().id
    with client.chat.completions.with_streaming_response.create(model="fake", messages=ASKED, stream=True) as streamed:
        assert streamed.headers["x-bedplate-receipt"].startswith("chatcmpl-")
        assert streamed.headers["content-type"].startswith("text/event-stream")
