"""The official OpenAI client, against a gateway on a real port."""

import openai
import pytest


@pytest.fixture(scope="module")
def client(served):
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key=served.key, max_retries=0)


ASKED = [{"role": "user", "content": "What does the river do?"}]


def test_a_conversation_whole_and_streamed_says_the_same(client):
    whole = client.chat.completions.create(model="fake", messages=ASKED, temperature=0)
    pieces = list(client.chat.completions.create(model="fake", messages=ASKED, temperature=0, stream=True, stream_options={"include_usage": True}))
    text = whole.choices[0].message.content
    assert text and "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices) == text
    assert whole.choices[0].finish_reason == pieces[-2].choices[0].finish_reason == "stop"
    assert pieces[-1].usage == whole.usage and whole.usage.completion_tokens == text.count(" ") > 0


def test_a_wrong_key_is_refused(served):
    stranger = openai.OpenAI(base_url=f"{served.url}/v1", api_key="bp_wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError) as caught:
        stranger.chat.completions.create(model="fake", messages=ASKED)
    assert caught.value.code == "invalid_api_key"
