"""`bedplate serve` with the native engine: a model and its adapters from their folders to a client, in one process of its own."""

import json
import signal
import subprocess
import sys

import httpx
import openai
import pytest

from bedplate.testing.bases import tiny_base


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    base = tiny_base(folder)
    rows = [{"prompt": f"lamp {n % 2}", "completion": "rain" if n % 2 else "birds"} for n in range(8)]
    labels = [{"text": "rain rain" if n % 2 else "birds and boats", "label": "wet" if n % 2 else "dry"} for n in range(12)]
    for name, given, task in (("talker", rows, "generate"), ("sorter", labels, "classify")):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
        words = ["adapt", base, "--task", task, "--data", folder / f"{name}.jsonl", "--to", folder / name, "--set", "train.epochs=2", "--set", "train.threads=1"]
        done = subprocess.run([sys.executable, "-m", "bedplate.cli.app", *map(str, words)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
    words = ["serve", base, "--port", 0, "--json", *(word for name in ("talker", "sorter") for word in ("--adapter", f"{name}={folder / name}"))]
    process = subprocess.Popen([sys.executable, "-m", "bedplate.cli.app", *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    told = ""
    while not told.endswith("}\n"):
        line = process.stdout.readline()
        assert line, process.stderr.read()[-2000:]
        told += line
    yield json.loads(told)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0 and "Traceback" not in err, err


def test_a_model_and_its_adapters_answer(running):
    assert running["models"] == ["base", "sorter", "talker"]
    client = openai.OpenAI(base_url=f"{running['address']}/v1", api_key="none", max_retries=0)
    asked = [{"role": "user", "content": "lamp 1"}]
    for name in ("base", "talker"):
        whole = client.chat.completions.create(model=name, messages=asked, temperature=0, max_tokens=8)
        streamed = client.chat.completions.create(model=name, messages=asked, temperature=0, max_tokens=8, stream=True)
        assert "".join(piece.choices[0].delta.content or "" for piece in streamed) == whole.choices[0].message.content
    assert len(client.embeddings.create(model="base", input="the river").data[0].embedding) == 32
    labels = httpx.post(f"{running['address']}/v1/classify", json={"model": "sorter", "input": ["rain", "boats"]}, timeout=60).json()["data"]
    assert [set(one["probabilities"]) for one in labels] == [{"wet", "dry"}] * 2


def test_forms_and_tools_are_kept_to(running):
    client = openai.OpenAI(base_url=f"{running['address']}/v1", api_key="none", max_retries=0)
    schema = {"type": "object", "properties": {"wet": {"type": "boolean"}}, "required": ["wet"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "weather", "schema": schema, "strict": True}}
    asked = [{"role": "user", "content": "is it wet?"}]
    told = client.chat.completions.create(model="base", messages=asked, response_format=form, max_tokens=400, temperature=1, seed=1).choices[0]
    assert told.finish_reason == "stop" and set(json.loads(told.message.content)) == {"wet"}
    tools = [{"type": "function", "function": {"name": "look", "parameters": schema}}]
    called = client.chat.completions.create(model="base", messages=asked, tools=tools, tool_choice="required", max_tokens=400, temperature=1, seed=1).choices[0]
    assert called.finish_reason == "tool_calls" and json.loads(called.message.tool_calls[0].function.arguments)["wet"] in (True, False)
