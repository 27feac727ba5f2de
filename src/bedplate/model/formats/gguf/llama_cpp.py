"""The real llama.cpp, asked what it makes of a GGUF file. It runs in a process of its own: a file that it does not like may end that process.

    said = ask(path, Questions(texts=("Hello",), prompts=((1, 2, 3),), greedy=8))
    said.tokens[0], said.logprobs[0], said.continued[0]
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from bedplate.core.errors import DataError, ResourceError

BINDING = "xllamacpp"
LONGEST_S = 600.0


@dataclass(frozen=True)
class Questions:
    """What is asked."""

    texts: Sequence[str] = ()
    """To be cut into tokens, none added; names of special tokens are read as such."""
    prompts: Sequence[Sequence[int]] = ()
    """Tokens to be continued."""
    greedy: int = 0
    """Tokens of each continuation; behind the end of an answer it goes on."""
    conversations: Sequence[Sequence[Mapping[str, str]]] = ()
    """To be written out by the file's chat template, with the beginning of the answer."""
    exact: bool = True
    """Keys, values and attention in float32."""
    threads: int = 2
    context: int = 512


@dataclass(frozen=True)
class Answers:
    """What llama.cpp says, in the order of the questions."""

    tokens: list[list[int]]
    logprobs: list[np.ndarray]
    """Log-probability of every token behind each prompt [v]."""
    continued: list[list[int]]
    """The likeliest tokens behind each prompt."""
    rendered: list[str]


def missing() -> str | None:
    """What to do about it, where the binding is not installed; None: it is."""
    return None if find_spec(BINDING) else f"pip install {BINDING} (or bedplate[edge]); it carries llama.cpp ready-made"


def ask(path: Path, questions: Questions, longest_s: float = LONGEST_S) -> Answers:
    """Load a GGUF file in llama.cpp and ask.

    Args:
        path: the file.
        questions: what.
        longest_s: give up after so many seconds.
    Raises:
        ResourceError: the binding is not installed, or takes too long.
        DataError: llama.cpp does not take the file.
    """
    if hint := missing():
        raise ResourceError("llama.cpp is not at hand", hint)
    job = json.dumps({"path": str(path), **asdict(questions)})
    command = [sys.executable, "-m", __spec__.name]
    try:
        done = subprocess.run(command, input=job, capture_output=True, text=True, check=False, timeout=longest_s)
    except subprocess.TimeoutExpired as error:
        raise ResourceError(f"llama.cpp did not finish with {path} in {longest_s:.0f} s", "try on a faster machine") from error
    if done.returncode:
        told = [line for line in done.stderr.splitlines() if "error" in line.lower() or "GGML_ASSERT" in line] or done.stderr.splitlines() or ["nothing said"]
        raise DataError(f"llama.cpp does not take {path}: {told[0].strip()[:300]}", f"it ended with code {done.returncode}")
    found = json.loads(done.stdout.splitlines()[-1])
    return Answers(found["tokens"], [np.array(row, np.float64) for row in found["logprobs"]], found["continued"], found["rendered"])


def _answer(job: Mapping[str, Any]) -> dict[str, Any]:
    """The work of the other process."""
    import urllib.request

    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = job["path"]
    settings.n_ctx, settings.n_parallel, settings.warmup, settings.n_gpu_layers, settings.fit_params = job["context"], 1, False, 0, False
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = job["threads"]
    if job["exact"]:
        settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(settings)

    def post(where: str, **body: Any) -> Any:
        request = urllib.request.Request(server.listening_address + where, json.dumps(body).encode(), {"content-type": "application/json"})
        with urllib.request.urlopen(request) as reply:
            return json.loads(reply.read())

    letter = post("/tokenize", content="a", add_special=False)["tokens"][0]

    def behind(prompt: Sequence[int], width: int) -> list[tuple[int, float]]:
        """(token, log-probability) of the likeliest. What is drawn is always a letter: half a character would be held back, with its numbers."""
        said = post("/completion", prompt=prompt, n_predict=1, n_probs=width, temperature=0.0, logit_bias=[[letter, 10_000.0]], cache_prompt=True)
        return [(int(each["id"]), each["logprob"]) for each in said["completion_probabilities"][0]["top_logprobs"]]

    def distribution(prompt: Sequence[int]) -> list[float]:
        found = dict(behind(prompt, 10_000_000))
        return [found.get(number, -1e9) for number in range(max(found) + 1)]

    def continued(prompt: Sequence[int]) -> list[int]:
        tokens: list[int] = []
        for _ in range(job["greedy"]):
            tokens.append(behind([*prompt, *tokens], 1)[0][0])
        return tokens

    return {
        "tokens": [post("/tokenize", content=text, add_special=False, parse_special=True)["tokens"] for text in job["texts"]],
        "logprobs": [distribution(prompt) for prompt in job["prompts"]],
        "continued": [continued(prompt) for prompt in job["prompts"]],
        "rendered": [post("/apply-template", messages=turns)["prompt"] for turns in job["conversations"]],
    }


if __name__ == "__main__":
    import os

    sys.stdout.write("\n" + json.dumps(_answer(json.load(sys.stdin))) + "\n")
    sys.stdout.flush()
    os._exit(0)  # the binding's own threads may take their time
