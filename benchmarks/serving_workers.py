"""The peers of serving_peers.py, each in a process of its own and with nothing of ours imported, so that any interpreter can run them.

A worker reads orders from stdin, a JSON object a line, and answers each with one:
{"concurrent", "n_in", "n_out", "turn"} -> {"seconds", "processor_s", "tokens"};
{"windows"} -> {"logprobs"}: of every token of each window but its first, behind those before it.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

Prompt = list[int]


class Peer(Protocol):
    """One engine with a model in it."""

    def generate(self, prompts: Sequence[Prompt], n_out: int) -> int:
        """Answer all prompts at once, n_out tokens each whatever they are; how many came."""
        ...

    def logprobs(self, windows: Sequence[Prompt]) -> list[float]:
        """Log-probability of every token but the first of each window, all in a row."""
        ...


class LlamaCpp:
    """llama.cpp through the xllamacpp wheel: as many slots as requests, one batch for all, nothing kept between requests."""

    def __init__(self, model: str, concurrent: int, settings: dict[str, Any]) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = model
        params.n_parallel, params.n_ctx = concurrent, concurrent * settings.get("context", 512)
        params.n_batch, params.n_ubatch = settings.get("n_batch", 2048), settings.get("n_ubatch", 512)
        params.n_gpu_layers, params.fit_params, params.cont_batching = 0, False, True
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings["threads"]
        params.n_threads_http = concurrent + 2
        params.kv_unified = settings.get("kv_unified", False)
        params.flash_attn_type = getattr(xllamacpp.llama_flash_attn_type, f"LLAMA_FLASH_ATTN_TYPE_{settings.get('flash', 'AUTO')}")
        if "cache_type" in settings:
            params.cache_type_k = params.cache_type_v = getattr(xllamacpp.ggml_type, f"GGML_TYPE_{settings['cache_type']}")
        self.server = xllamacpp.Server(params)
        self.pool = ThreadPoolExecutor(concurrent)

    def generate(self, prompts: Sequence[Prompt], n_out: int) -> int:
        def one(prompt: Prompt) -> int:
            said = self._complete(prompt=prompt, n_predict=n_out, ignore_eos=True, temperature=0.0, cache_prompt=False, samplers=["temperature"])
            return int(said["usage"]["completion_tokens"])

        return sum(self.pool.map(one, prompts))

    def logprobs(self, windows: Sequence[Prompt]) -> list[float]:
        """Token by token: a bias decides what is drawn, and the log-probability told is the one before the bias. Where a token is no whole character,
        llama.cpp keeps its numbers to itself; then a letter is drawn, and the token is looked up among all."""
        letter = self._letter(windows[0])
        found = []
        for window in windows:
            for place in range(1, len(window)):
                said = self._first(window[:place], window[place], 1)
                if said is None or int(said["id"]) != window[place]:
                    wide = self._first(window[:place], letter, 10_000_000)
                    assert wide is not None
                    said = next(each for each in wide["top_logprobs"] if int(each["id"]) == window[place])
                found.append(float(said["logprob"]))
        return found

    def _first(self, prompt: Prompt, forced: int, width: int) -> dict[str, Any] | None:
        said = self._complete(prompt=prompt, n_predict=1, n_probs=width, temperature=0.0, logit_bias=[[forced, 10_000.0]], cache_prompt=True, ignore_eos=True)
        told = (said["choices"][0]["logprobs"] or {}).get("content") or [None]
        return told[0]  # type: ignore[no-any-return]

    def _letter(self, prompt: Prompt) -> int:
        wide = self._complete(prompt=prompt[:4], n_predict=1, n_probs=10_000_000, temperature=0.0, cache_prompt=False, ignore_eos=True)
        return next(int(each["id"]) for each in wide["choices"][0]["logprobs"]["content"][0]["top_logprobs"] if each["token"] == "a")

    def _complete(self, **body: Any) -> dict[str, Any]:
        said: list[dict[str, Any]] = []
        self.server.handle_completions(body, said.append)
        if "choices" not in said[0]:
            raise RuntimeError(str(said[0])[:500])
        return said[0]


class OpenVino:
    """OpenVINO GenAI, its continuous batching pipeline on a GGUF file."""

    def __init__(self, model: str, concurrent: int, settings: dict[str, Any]) -> None:
        import numpy as np
        import openvino
        import openvino_genai

        self.numpy, self.openvino, self.genai = np, openvino, openvino_genai
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.max_num_batched_tokens = settings.get("max_num_batched_tokens", 256)
        scheduler.max_num_seqs, scheduler.enable_prefix_caching = max(concurrent, 1), False
        scheduler.cache_size = 2
        scheduler.dynamic_split_fuse = settings.get("dynamic_split_fuse", True)
        properties: dict[str, Any] = {"INFERENCE_NUM_THREADS": settings["threads"], "PERFORMANCE_HINT": "LATENCY", **settings.get("properties", {})}
        self.pipeline = openvino_genai.ContinuousBatchingPipeline(model, scheduler, "CPU", properties)

    def generate(self, prompts: Sequence[Prompt], n_out: int) -> int:
        asked = [self.openvino.Tensor(self.numpy.array([prompt], self.numpy.int64)) for prompt in prompts]
        said = self.pipeline.generate(asked, [self._config(max_new_tokens=n_out, ignore_eos=True)] * len(asked))
        return sum(len(each.m_generation_ids[0]) for each in said)

    def logprobs(self, windows: Sequence[Prompt]) -> list[float]:
        found = []
        for number, window in enumerate(windows):
            asked = self.openvino.Tensor(self.numpy.array([window], self.numpy.int64))
            handle = self.pipeline.add_request(number, asked, self._config(max_new_tokens=1, echo=True, logprobs=1, ignore_eos=True))
            logs: list[float] = []
            while self.pipeline.has_non_finished_requests():
                self.pipeline.step()
                for each in handle.read().values() if handle.can_read() else ():
                    logs += each.generated_log_probs
            found += logs[1 : len(window)]
        return found

    def _config(self, **fields: Any) -> Any:
        config = self.genai.GenerationConfig()
        for name, value in fields.items():
            setattr(config, name, value)
        config.do_sample = False
        return config


class Transformers:
    """transformers' generate in fp32, all requests as one static batch."""

    def __init__(self, model: str, concurrent: int, settings: dict[str, Any]) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(settings["threads"])
        self.torch = torch
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, settings.get("dtype", "float32"))).eval()

    def generate(self, prompts: Sequence[Prompt], n_out: int) -> int:
        with self.torch.inference_mode():
            asked = self.torch.tensor(prompts)
            said = self.model.generate(asked, attention_mask=self.torch.ones_like(asked), max_new_tokens=n_out, min_new_tokens=n_out, do_sample=False)
        return int((said.shape[1] - asked.shape[1]) * len(prompts))

    def logprobs(self, windows: Sequence[Prompt]) -> list[float]:
        found = []
        with self.torch.inference_mode():
            for window in windows:
                ids = self.torch.tensor([window])
                logs = self.model(ids).logits[0, :-1].float().log_softmax(-1)
                found += logs.gather(1, ids[0, 1:, None])[:, 0].tolist()
        return found


ENGINES: Mapping[str, Callable[[str, int, dict[str, Any]], Peer]] = {"llama.cpp": LlamaCpp, "openvino": OpenVino, "transformers": Transformers}


def main(engines: Mapping[str, Callable[[str, int, dict[str, Any]], Peer]] = ENGINES) -> None:
    """Serve orders: engine, model, concurrent, settings as JSON, file of token ids."""
    engine, model, concurrent, settings, text = sys.argv[1:6]
    ids = json.loads(Path(text).read_text(encoding="utf-8"))
    out = sys.stdout
    peer = engines[engine](model, int(concurrent), json.loads(settings))
    out.write("\n@" + json.dumps({"ready": True}) + "\n")
    out.flush()
    for line in sys.stdin:
        order = json.loads(line)
        if "windows" in order:
            logs = peer.logprobs(order["windows"])
            said: dict[str, Any] = {"logprobs": logs}
            assert all(math.isfinite(log) for log in logs)
        else:
            n_in, at = order["n_in"], order["turn"] * 7919
            prompts = [[ids[(at + row * 4001 + place) % len(ids)] for place in range(n_in)] for row in range(order["concurrent"])]
            started, busy = time.perf_counter(), time.process_time()
            tokens = peer.generate(prompts, order["n_out"])
            said = {"seconds": time.perf_counter() - started, "processor_s": time.process_time() - busy, "tokens": tokens}
        out.write("\n@" + json.dumps(said) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
